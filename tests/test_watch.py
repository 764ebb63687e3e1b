"""`status --watch`: it goes on while somebody works on a study, between two cells as well."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peftbench.commands import tables, watch
from peftbench.commands.artefact_work import lines_of
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.saved_lines import End, Line
from peftbench.record import find_records
from peftbench.study import index, lock, status
from peftbench.study.index import Planned
from peftbench.study.lock import Lock

LINE = Line(("merge", "from=s", "method=lora"))


class Clock:
    """Time in which something happens at every look."""

    def __init__(self, events: Iterator[Callable[[], object]]) -> None:
        self.now, self._events = 0.0, events

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self._events, lambda: None)()


@pytest.fixture
def study(finished_study: Path) -> Path:
    """A study of a cell that was done long ago and one that is open."""
    (done,) = find_records(finished_study)
    os.utime(done, (1, 1))
    index.add(finished_study, {"open": Planned("s/mrpc-lora-x-00000000/seed0", ["method=lora"])})
    return finished_study


def seconds_watched(study: Path, monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> float:
    clock = Clock(iter(events))
    monkeypatch.setattr(watch, "time", clock)
    watch.watch(study.parent, study.name)
    return clock.now


def test_a_study_on_which_nobody_works_is_not_watched(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_watched(study, monkeypatch) == 0


def test_between_two_cells_the_watch_goes_on_for_a_minute(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (done,) = find_records(study)
    moment = lock.clock_of(study) - 20
    os.utime(done, (moment, moment))
    assert 38 <= seconds_watched(study, monkeypatch) <= 42, "one ended 20 seconds ago"
    os.utime(done, (1, 1))
    held = Lock(study / "mrpc-lora-x-00000000" / "seed0").take()
    nothing = [lambda: None] * 100
    watched = seconds_watched(study, monkeypatch, *nothing, held.release)
    assert watched == 200 + watch.QUIET, "its last sign was that it ran"


def test_a_study_of_which_nothing_is_open_is_not_watched_any_longer(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_lines.add(study, [LINE])
    held = Lock(saved_lines.folder_of(study, LINE)).take()
    index.forget(study, set(), [])
    (study / index.FILE).unlink()
    assert status.by_state(status.cells_of(study.parent, "s"))["missing"] == 0

    def end() -> None:
        saved_lines.write_end(study, LINE, End("done"), held.check)
        held.release()

    assert seconds_watched(study, monkeypatch, lambda: None, end) == 2 * watch.EVERY


def test_lines_that_are_being_made_are_shown(study: Path) -> None:
    saved_lines.add(study, [LINE])
    with Lock(saved_lines.folder_of(study, LINE)) as held, tables.console.capture() as seen:
        lines, cells = lines_of(study.parent, "s"), status.cells_of(study.parent, "s")
        tables.console.print(watch.view("s", cells, 0, 60.0, lines))
        owner = lock.owner(held.path)
    assert "1 line of artefacts: 0 done, 1 running" in seen.get()
    (row,) = (line for line in seen.get().splitlines() if str(LINE) in line)
    assert row.startswith(f" {owner} ")
