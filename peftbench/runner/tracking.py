"""Those who follow a run: a tracker, a metrics file, a progress bar. All of them are views; the record is the truth."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from peftbench.config.spec import TrackerSpec
from peftbench.ground.files import write_atomically
from peftbench.record import CellName, Record
from peftbench.runner.trackio_run import trackio_run
from peftbench.runner.wandb_run import wandb_run
from peftbench.training.fit import Scores, Watcher


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


def described(cell: CellName, tags: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker is told of a cell: its group, name, tags (these and its own) and configuration."""
    return {
        "group": cell.study,
        "name": f"{cell.task}-{cell.method}-{cell.model}-s{cell.seed}",
        "tags": [cell.task, cell.method, cell.model, f"data:{cell.data}", *tags],
        "config": dict(config),
    }


# How each tracker follows one run while a block runs: given its spec, the run's folder and what `described` says.
TRACKERS: dict[str, Callable[..., AbstractContextManager[Sequence[Watcher]]]] = {
    "wandb": wandb_run,
    "trackio": trackio_run,
}


def follow_made(tracker: TrackerSpec, folder: Path, record: Record) -> None:
    """Tell a tracker of an artefact: a run of its own, with configuration, evaluations and final numbers."""
    assert record.made is not None
    made = {"by": record.made.by, "keys": record.made.keys}
    config = {**record.config, "fingerprint": record.fingerprint, "made": made}
    told = described(record.cell, [*tracker.tags, record.made.by], config)
    with TRACKERS[tracker.kind](tracker, folder, told) as following:
        for watcher in following:
            for one in record.metrics.evaluations:
                numbers = {name: nan if value is None else value for name, value in one.metrics.items()}
                watcher.evaluation(Scores(one.step, one.epoch, numbers, one.collapsed, nan, nan))
            counts = {} if record.counts is None else record.counts.as_dict()
            watcher.end({**counts, record.headline.name: record.headline.value})


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now, to the millisecond."""
        return round(time.perf_counter() - self._start, 3)
