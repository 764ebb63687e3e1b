"""trackio follows a run: a database on this machine, or wherever trackio's own variables say (`trackio show`)."""

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from peftbench.config.spec import TrackerSpec
from peftbench.ground.errors import first_line, shown, warn
from peftbench.training.fit import Scores


class TrackioRun:
    """One trackio run for one cell."""

    def __init__(self, run: Any) -> None:
        self._run, self._last = run, 0

    def begin(self, steps: int, done: int) -> None:
        """Nothing to log."""

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._last = step
        self._run.log({f"train/{key}": value for key, value in facts.items()}, step=step)

    def evaluation(self, evaluation: Scores) -> None:
        """See `Watcher`."""
        self._last = evaluation.step
        points = {f"dev/{key}": value for key, value in evaluation.metrics.items()}
        self._run.log({**points, "dev/epoch": evaluation.epoch}, step=evaluation.step)

    def end(self, summary: Mapping[str, Any]) -> None:
        """trackio has no summary: its numbers are a last point."""
        numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
        self._run.log({f"summary/{key}": value for key, value in numbers.items()}, step=self._last)


@contextmanager
def trackio_run(tracker: TrackerSpec, folder: Path, described: Mapping[str, Any]) -> Iterator[list[TrackioRun]]:
    """A trackio run while the block runs; every cell and every attempt is a run of its own.

    What trackio prints is not shown: the record says where everything is. That it fails never stops a run.

    Args:
        folder: the run's own, which trackio does not use.
        described: the cell's group, name, tags and config; tags become a part of the config.
    """
    import trackio

    with warnings.catch_warnings():
        warnings.showwarning = _of_trackio(warnings.showwarning)
        run = None
        try:
            with redirect_stdout(io.StringIO()):
                run = trackio.init(
                    project=tracker.project,
                    name=described["name"],
                    group=described["group"],
                    config={**described["config"], "tags": list(described["tags"])},
                    embed=False,
                    auto_log_gpu=False,  # the record has time, memory and energy
                    auto_log_cpu=False,
                )
        except Exception as error:  # whatever a server, a disk or a database says
            warn(f"tracker=trackio: {shown(first_line(error))}; this run is not followed")
        try:
            yield [] if run is None else [TrackioRun(run)]
        finally:
            if run is not None:
                with redirect_stdout(io.StringIO()):
                    trackio.finish()


def _of_trackio(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows a warning of trackio's threads, which go on without what could not be kept, in a line; others as before."""

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        if "trackio" in Path(filename).parts:
            warn(f"tracker=trackio: {shown(' '.join(str(message).split()), 200)}")
        else:
            otherwise(message, category, filename, *rest, **named)

    return show
