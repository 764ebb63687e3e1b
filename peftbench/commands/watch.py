"""`peftbench status --watch`: a study as it goes, until nothing is left to wait for, or nobody works on it."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live
from rich.table import Table as Terminal
from rich.text import Text

from peftbench.commands import artefact_work
from peftbench.commands.artefact_work import LineStatus
from peftbench.commands.screen import duration
from peftbench.commands.tables import console
from peftbench.ground.quantity import quantity
from peftbench.record import find_records
from peftbench.study import lock, status
from peftbench.study.status import CellStatus

EVERY = 2.0  # seconds between two looks
QUIET = 60.0  # seconds in which nothing ran or ended, after which nobody works on a study


@dataclass(frozen=True)
class Look:
    """What one look at a study shows."""

    cells: list[CellStatus]
    lines: list[LineStatus]

    @property
    def states(self) -> list[str]:
        """How every cell and line stands."""
        return [*(cell.state for cell in self.cells), *(line.state for line in self.lines)]

    @property
    def is_running(self) -> bool:
        """Whether somebody works on it."""
        return "running" in self.states

    @property
    def is_open(self) -> bool:
        """Whether something may yet be done."""
        return bool({"running", "stopped", "missing", "open"} & set(self.states))

    @property
    def ended(self) -> int:
        """How many cells and lines are through, well or not."""
        return self.states.count("done") + self.states.count("failed")


def watch(outputs: Path, study: str) -> list[CellStatus]:
    """Show a study while something is open and something ran or ended in the last minute; gives how it stood at last.

    Raises:
        ConfigError: there is no such study.
        DataError: its list of artefacts' lines cannot be read.
    """
    began, seen = time.monotonic(), _look(outputs, study)
    busy = began if seen.is_running else began - _seconds_since_an_end(outputs / study)
    done_before = status.by_state(seen.cells)["done"]
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while seen.is_open and time.monotonic() - busy < QUIET:
            live.update(view(study, seen.cells, done_before, time.monotonic() - began, seen.lines), refresh=True)
            time.sleep(EVERY)
            before, seen = seen, _look(outputs, study)
            if seen.is_running or seen.ended != before.ended:
                busy = time.monotonic()
    return seen.cells


def _look(outputs: Path, study: str) -> Look:
    return Look(status.cells_of(outputs, study), artefact_work.lines_of(outputs, study))


def _seconds_since_an_end(study: Path) -> float:
    """How long ago the last record was written, by the folder's clock; without end where there is none."""
    newest = -float("inf")
    for path in find_records(study):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return lock.clock_of(study) - newest


def view(
    study: str, cells: Sequence[CellStatus], done_before: int, seconds: float, lines: Sequence[LineStatus] = ()
) -> Terminal:
    """One look: how many cells are in each state, how fast they go, what is left, and what each worker does.

    Args:
        done_before: cells that were done when the watch began.
        seconds: how long it has gone on.
        lines: of artefacts.
    """
    numbers = status.by_state(cells)
    states = "  ".join(f"{number} {state}" for state, number in numbers.items() if number or state == "done")
    rate = f"{(numbers['done'] - done_before) / max(seconds, 1e-9) * 60:.1f} cells a minute"
    left = status.seconds_left(cells)
    if left:
        workers = quantity(numbers["running"], "worker")
        rate += f", about {duration(left / max(1, numbers['running']))} left for {workers}"
    made = f"\n{artefact_work.in_words(lines)}" if lines else ""
    title = Text(f"{study}: {quantity(len(cells), 'cell')}: {states}\n{rate}{made}")
    table = Terminal(title=title, box=None, title_justify="left")
    for head in ("worker", "cell", "for"):
        table.add_column(head)
    running = [(cell.folder.partition("/")[2], cell.worker, cell.age_s) for cell in cells if cell.state == "running"]
    running += [(str(one.line), one.worker, one.age_s) for one in lines if one.state == "running"]
    for what, worker, age in running:
        table.add_row(Text(worker or "another runner"), Text(what), "" if age is None else duration(age))
    return table
