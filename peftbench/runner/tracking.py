"""Those who follow a run: W&B, a metrics file, a progress bar. All of them are views; the record is the truth."""

import json
import netrc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peftbench.config.spec import TrackerSpec
from peftbench.ground import environment
from peftbench.ground.errors import shown, warn
from peftbench.ground.files import write_atomically
from peftbench.record import CellName
from peftbench.training.fit import Scores

# W&B's own words for one run, which must not make one of all cells.
OF_ONE_RUN = (
    *("WANDB_RUN_ID", "WANDB_RUN_NAME", "WANDB_NAME", "WANDB_RUN_STORAGE_ID"),
    *("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)


class MetricsFile:
    """metrics.jsonl: one line per logged training point and per evaluation; use it as a context manager."""

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before an older file is replaced; what it raises leaves that one."""
        self._path, self._check = path, check
        self._open: IO[str] | None = None

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._open is not None:
            self._open.close()

    def begin(self, steps: int, done: int) -> None:
        """Drop what was written after the checkpoint: it comes again.

        What is kept goes into a new file: a runner that was paused and lost the cell writes on into the old one.
        """
        kept = self._lines() if done else []
        kept = [line for line in kept if _step_of(line) <= done]
        if kept and "evaluation" in kept[-1] and _step_of(kept[-1]) == done:
            kept.pop()  # the checkpoint was made before it
        write_atomically(self._path, "".join(kept).encode(), self._check)
        self._open = self._path.open("a", encoding="utf-8")

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        except OSError:
            return []

    @property
    def _file(self) -> IO[str]:
        if self._open is None:  # nothing is trained
            self.begin(0, 0)
        assert self._open is not None
        return self._open

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._file.write(json.dumps({"step": step, **facts}) + "\n")

    def evaluation(self, evaluation: Scores) -> None:
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

    def evaluation(self, evaluation: Scores) -> None:
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
    if not show or not Console().is_terminal:
        yield []
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, transient=True) as progress:
        yield [Bar(progress, title)]


class WandbRun:
    """One W&B run for one cell."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def begin(self, steps: int, done: int) -> None:
        """Nothing to log."""

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._run.log({f"train/{key}": value for key, value in facts.items()}, step=step)

    def evaluation(self, evaluation: Scores) -> None:
        """See `Watcher`."""
        points = {f"dev/{key}": value for key, value in evaluation.metrics.items()}
        self._run.log({**points, "dev/epoch": evaluation.epoch}, step=evaluation.step)

    def end(self, summary: Mapping[str, Any]) -> None:
        """See `Watcher`."""
        self._run.summary.update(dict(summary))


def described_to_wandb(cell: CellName, tags: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B is told of a cell: its group, name, tags (these and its own) and configuration."""
    return {
        "group": cell.study,
        "name": f"{cell.task}-{cell.method}-{cell.model}-s{cell.seed}",
        "tags": [cell.task, cell.method, cell.model, f"data:{cell.data}", *tags],
        "config": dict(config),
    }


@contextmanager
def wandb_run(tracker: TrackerSpec, folder: Path, described: Mapping[str, Any]) -> Iterator[list[WandbRun]]:
    """A W&B run while the block runs; it is finished with exit code 1 where the block raises.

    Every cell and every attempt is a run of its own, also after another in this process crashed. W&B being
    unreachable never stops a run.

    Args:
        folder: where W&B's files go.
        described: see `described_to_wandb`.
    """
    how = mode(tracker.mode)
    run = None if how == "disabled" else _begin(tracker, folder, described, how)
    if run is None:
        yield []
        return
    try:
        yield [WandbRun(run)]
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def _begin(tracker: TrackerSpec, folder: Path, described: Mapping[str, Any], how: Any) -> Any:
    """W&B's run of a cell; None where even an offline one cannot be made."""
    for name in OF_ONE_RUN:
        os.environ.pop(name, None)
    if word := environment.wandb_mode():
        os.environ["WANDB_MODE"] = word  # W&B itself does not know all words that it once knew
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings: dict[str, Any] = {
        **described,
        "project": tracker.project,
        "entity": tracker.entity,
        "dir": str(folder.absolute()),  # W&B's own process may stand in another folder
        "reinit": "finish_previous",
    }
    attempts: list[tuple[Any, str]] = [(how, "this run is kept offline"), ("offline", "this run is not followed")]
    for kept_as, otherwise in attempts:
        try:
            timeout = environment.seconds("WANDB_INIT_TIMEOUT", 30.0)
            own = wandb.Settings(console="off", disable_git=True, init_timeout=timeout)
            return wandb.init(mode=kept_as, settings=own, **settings)
        except (wandb.Error, ValueError, OSError) as error:
            reason = shown(next(iter(str(error).strip().splitlines()), type(error).__name__), 100)
            warn(f"tracker.mode={kept_as}: W&B cannot be used ({reason}); {otherwise}")
    return None


def mode(asked: str) -> Any:
    """How W&B is used: online, offline or disabled. `auto` is what W&B's own environment says, else online with a key
    alone: asking for one on a terminal would stop a sweep.

    Raises:
        ConfigError: the environment says something that W&B never knew.
    """
    if asked != "auto":
        return asked
    return environment.wandb_mode() or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now, to the millisecond."""
        return round(time.perf_counter() - self._start, 3)
