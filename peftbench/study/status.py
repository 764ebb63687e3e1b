"""How a study stands, and what a sweep would cost, by what records say. No torch, no Hydra."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal

import yaml

from peftbench.ground import escape, untrusted
from peftbench.ground.errors import DataError, warn
from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE, study_folder
from peftbench.record import damage, find_records, read_record
from peftbench.study import index, lock
from peftbench.study.cell_state import CellState, CellStates
from peftbench.study.estimates import Estimates
from peftbench.study.index import Planned, kind_of

State = Literal["done", "running", "failed", "stopped", "stale", "missing"]
BEFORE_TYPED = [yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.SequenceStartEvent]
AFTER_TYPED = [yaml.DocumentEndEvent, yaml.StreamEndEvent]  # after the end of the list
MOST_TYPED = 64 << 10  # bytes of the file of what was typed for a cell
STATES: tuple[State, ...] = ("done", "running", "failed", "stopped", "stale", "missing")


@dataclass(frozen=True)
class CellStatus:
    """One cell of a study.

    Attributes:
        folder: under `outputs`.
        state: done; running (a living runner holds it); failed (diverged included); stopped (it goes on from a
            checkpoint); stale (an artefact of runs that have learned something else since); missing (nothing is there
            yet, or a result of other rows or weights, or without predictions that were asked for).
        seconds: what it took, where it is done.
        peak_mb: MiB that it took at most, where it is done.
        reason: the last line of its error, where it failed; which run changed, where it is stale.
        command: what runs it by itself; empty where nothing says what was typed.
        unknown: rows or weights cannot be read here, so that its record counts without being compared with them.
        worker: who runs it, and for how long (s), where it is running.
    """

    folder: str
    state: State
    seconds: float | None
    peak_mb: float | None
    reason: str | None
    command: str
    unknown: bool = False
    worker: str | None = None
    age_s: float | None = None


def cells_of(outputs: Path, study: str) -> list[CellStatus]:
    """Every cell of a study, in the order in which the cells were asked for.

    Raises:
        ConfigError: there is no such study.
    """
    study_folder(outputs, study)
    cells = {cell.folder: cell for cell in index.read(outputs / study).values()}
    for path in (outputs / study).glob("*/*/.hydra/overrides.yaml"):  # cells that ran by themselves
        if (folder := str(path.parent.parent.relative_to(outputs))) not in cells:
            cells[folder] = Planned(folder, _typed(path))
    for path in find_records(outputs / study):
        cells.setdefault(folder := str(path.parent.relative_to(outputs)), Planned(folder, []))
    states = CellStates(outputs, study)
    own = [cell for cell in cells.values() if not re.search(r"/(split\d+-)?seed\d+-[0-9a-f]{8}$", cell.folder)]
    return [_status(states, cell) for cell in own]  # others were moved aside


def cells_if_any(outputs: Path, study: str) -> list[CellStatus]:
    """The same, empty where there is no such study yet."""
    return cells_of(outputs, study) if (outputs / study).is_dir() else []


def _status(states: CellStates, cell: Planned) -> CellStatus:
    folder, again = cell.folder, escape.command(cell.overrides)
    path = states.outputs / folder / RECORD_FILE
    state = _state(states, cell)
    if state is not None and state.seen.status == "done" and state.need in (None, "nothing"):
        unknown = cell.reads is not None and state.need is None
        return CellStatus(folder, "done", state.seen.seconds, state.seen.peak_mb, None, again, unknown)
    if lock.alive(held := path.with_name(lock.FILE)):
        return CellStatus(folder, "running", None, None, None, again, worker=lock.owner(held), age_s=lock.age(held))
    if (problem := damage(path)) is not None:
        return CellStatus(folder, "failed", None, None, problem, again if cell.overrides else "")
    if state is not None and state.is_deadly:
        reason = f"its runners died: {', '.join(map(str, state.deaths))} (workers leave it alone)"
        return CellStatus(folder, "failed", None, None, reason, again)
    if state is not None and state.seen.status not in (None, "done"):
        record = read_record(path)
        reason = f"{record.status}: {record.reason}"
        if state.is_quarantined:
            reason += f" (failed on {', '.join(record.failed_on)}; left alone unless asked)"
        return CellStatus(folder, "failed", None, None, reason, escape.command(cell.overrides or record.overrides))
    if state is not None and state.changed:
        reason = f"{state.changed[0]} has been run again since"
        return CellStatus(folder, "stale", None, None, reason, escape.command(read_record(path).overrides))
    stopped = path.with_name(CHECKPOINT_FILE).exists()
    return CellStatus(folder, "stopped" if stopped else "missing", None, None, None, again)


def _state(states: CellStates, cell: Planned) -> CellState | None:
    """None: its record cannot be read."""
    try:
        return states.state(cell)
    except DataError:
        return None


def _is_text(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent)


def _typed(path: Path) -> list[str]:
    """What was typed for a cell, as Hydra wrote it down; nothing, and a line, where that cannot be read."""
    try:
        # event by event: what yaml can make of aliases, merged mappings and deep nesting is never made
        events = yaml.parse(untrusted.read_bytes(path, MOST_TYPED), yaml.CSafeLoader)
        before = [type(event) for event in islice(events, len(BEFORE_TYPED))]
        words: list[str] = [event.value for event in takewhile(_is_text, events)]  # type: ignore[attr-defined]
        if (before, [type(event) for event in islice(events, len(AFTER_TYPED))]) != (BEFORE_TYPED, AFTER_TYPED):
            raise ValueError
        return words
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except (ValueError, yaml.YAMLError):
        reason = "not a list of what was typed"
    warn(f"{escape.terminal(str(path))}: {reason}")
    return []


def by_state(cells: Iterable[CellStatus]) -> dict[State, int]:
    """How many cells are in each state."""
    numbers: dict[State, int] = dict.fromkeys(STATES, 0)
    for cell in cells:
        numbers[cell.state] += 1
    return numbers


def seconds_left(cells: Sequence[CellStatus]) -> float | None:
    """Seconds that what is not done would take one runner; None: nothing is known."""
    return estimates(cells).total(cell.folder for cell in cells if cell.state != "done")


def estimates(cells: Iterable[CellStatus]) -> Estimates:
    """What others may take, by what finished cells took."""
    return Estimates((cell.folder, cell.seconds) for cell in cells if cell.seconds is not None)


def peak_of(folders: Sequence[str], cells: Iterable[CellStatus]) -> float | None:
    """MiB that the largest of these cells may take, by what others of their kind, else all others, took."""
    known: dict[str, float] = {}
    for cell in cells:
        if cell.peak_mb is not None:
            known[kind_of(cell.folder)] = max(cell.peak_mb, known.get(kind_of(cell.folder), 0.0))
    estimates = [known.get(kind_of(folder), max(known.values())) for folder in folders] if known else []
    return max(estimates, default=None)
