"""`peftbench status --watch`: a study as it goes, until nothing is left to wait for."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.live import Live
from rich.table import Table as Terminal
from rich.text import Text

from peftbench.commands.screen import duration
from peftbench.commands.tables import console
from peftbench.ground.quantity import quantity
from peftbench.study import status
from peftbench.study.status import CellStatus

EVERY = 2.0  # seconds between two looks


def watch(outputs: Path, study: str) -> list[CellStatus]:
    """Show a study until no cell is running; gives how it stood at last.

    Raises:
        ConfigError: there is no such study.
    """
    began, cells = time.monotonic(), status.cells_of(outputs, study)
    done_before = status.by_state(cells)["done"]
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while status.by_state(cells)["running"]:
            live.update(view(study, cells, done_before, time.monotonic() - began), refresh=True)
            time.sleep(EVERY)
            cells = status.cells_of(outputs, study)
    return cells


def view(study: str, cells: Sequence[CellStatus], done_before: int, seconds: float) -> Terminal:
    """One look: how many cells are in each state, how fast they go, what is left, and each worker's cell.

    Args:
        done_before: cells that were done when the watch began.
        seconds: how long it has gone on.
    """
    numbers = status.by_state(cells)
    states = "  ".join(f"{number} {state}" for state, number in numbers.items() if number or state == "done")
    rate = f"{(numbers['done'] - done_before) / max(seconds, 1e-9) * 60:.1f} cells a minute"
    left = status.seconds_left(cells)
    if left:
        workers = quantity(numbers["running"], "worker")
        rate += f", about {duration(left / max(1, numbers['running']))} left for {workers}"
    title = Text(f"{study}: {quantity(len(cells), 'cell')}: {states}\n{rate}")
    table = Terminal(title=title, box=None, title_justify="left")
    for head in ("worker", "cell", "for"):
        table.add_column(head)
    for cell in cells:
        if cell.state == "running":
            age = "" if cell.age_s is None else duration(cell.age_s)
            table.add_row(Text(cell.worker or "another runner"), Text(cell.folder.partition("/")[2]), age)
    return table
