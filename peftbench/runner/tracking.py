"""Those who follow a run: W&B, a metrics file, a progress bar. All of them are views; the record is the truth."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peftbench.config.spec import Cell
from peftbench.training.fit import Evaluation


class MetricsFile:
    """metrics.jsonl: one line per logged training point and per evaluation."""

    def __init__(self, file: IO[str]) -> None:
        """`file` is open for reading and writing: what an interrupted run wrote is kept up to its checkpoint."""
        self._file = file

    def begin(self, steps: int, done: int) -> None:
        """Drop what was written after the checkpoint: it comes again."""
        self._file.seek(0)
        kept = [line for line in self._file if _step_of(line) <= done] if done else []
        if kept and "evaluation" in kept[-1] and _step_of(kept[-1]) == done:
            kept.pop()  # the checkpoint was made before it
        self._file.seek(0)
        self._file.writelines(kept)
        self._file.truncate()

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._file.write(json.dumps({"step": step, **facts}) + "\n")

    def evaluation(self, evaluation: Evaluation) -> None:
        """See `Watcher`."""
        self._file.write(json.dumps({"step": evaluation.step, "evaluation": asdict(evaluation)}) + "\n")
        self._file.flush()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Nothing to write: the record holds it."""


class Bar:
    """A progress bar with loss, speed and the last headline."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress, self._title = progress, title
        self._task: TaskID | None = None
        self._headline = ""

    def begin(self, steps: int, done: int) -> None:
        """See `Watcher`."""
        self._task = self._progress.add_task(self._title, total=steps, completed=done, note="")

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        note = f"loss {facts['loss']:.4f}  {facts['tokens_per_s']:,.0f} tokens/s{self._headline}"
        if self._task is not None:
            self._progress.update(self._task, completed=step, note=note)

    def evaluation(self, evaluation: Evaluation) -> None:
        """See `Watcher`."""
        self._headline = f"  dev {evaluation.chosen_by:.4f}"

    def end(self, summary: Mapping[str, Any]) -> None:
        """Nothing to show: the bar goes away."""


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off in the middle


@contextmanager
def bar(title: str, show: bool) -> Iterator[list[Bar]]:
    """A progress bar while the block runs, or none where nobody looks at a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, transient=True, disable=not show) as progress:
        yield [] if progress.disable or not progress.console.is_terminal else [Bar(progress, title)]


class WandbRun:
    """One W&B run for one cell."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def begin(self, steps: int, done: int) -> None:
        """Nothing to log."""

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._run.log({f"train/{key}": value for key, value in facts.items()}, step=step)

    def evaluation(self, evaluation: Evaluation) -> None:
        """See `Watcher`."""
        points = {f"dev/{key}": value for key, value in evaluation.metrics.items()}
        self._run.log({**points, "dev/epoch": evaluation.epoch}, step=evaluation.step)

    def end(self, summary: Mapping[str, Any]) -> None:
        """See `Watcher`."""
        self._run.summary.update(dict(summary))


@contextmanager
def wandb_run(cell: Cell, config: Mapping[str, Any], folder: Path) -> Iterator[list[WandbRun]]:
    """A W&B run while the block runs; it is finished with exit code 1 where the block raises.

    Every cell and every attempt is a run of its own, also after another in this process crashed. W&B being
    unreachable never stops a run.
    """
    how = mode(cell.tracker.mode)
    if how == "disabled":
        yield []
        return
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    patience = float(os.environ.get("WANDB_INIT_TIMEOUT", "30"))  # seconds
    settings = {
        "project": cell.tracker.project,
        "entity": cell.tracker.entity,
        "group": cell.study,
        "name": f"{cell.task.name}-{cell.method.name}-{cell.model.name}-s{cell.seed}",
        "tags": [cell.task.name, cell.method.name, cell.model.name, f"data:{cell.data.name}", *cell.tracker.tags],
        "config": {**config, "fingerprint": cell.fingerprint},
        "dir": str(folder),
        "reinit": "finish_previous",
        "settings": wandb.Settings(console="off", disable_git=True, init_timeout=patience),
    }
    try:
        run = wandb.init(mode=how, **settings)
    except wandb.Error as error:
        reason = str(error).strip().splitlines()[0]
        print(f"tracker.mode={how}: W&B cannot be used ({reason}); this run is kept offline", file=sys.stderr)
        run = wandb.init(mode="offline", **settings)
    try:
        yield [WandbRun(run)]
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def mode(asked: str) -> Any:
    """Online only with a key: asking for one on a terminal would stop a sweep."""
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import netrc

    try:
        known = netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return "online" if known else "offline"


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now, to the millisecond."""
        return round(time.perf_counter() - self._start, 3)
