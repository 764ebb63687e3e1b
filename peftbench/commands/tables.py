"""Tables and sentences on a terminal as wide as it is; where nobody looks (a pipe, a file), as wide as they are.

No word and no number is broken while there is room for the longest. Columns give way in the order that each table
states; what still finds no room follows in further tables below, each with the columns that name a row.
"""

import os
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.table import Table as Terminal
from rich.text import Text

UNLIMITED = 1_000_000  # characters
EDGES = 3  # characters that the frame takes beside a column's text; and one at the end


class Screen(Console):
    """A console that leaves it to the command how to end when the reader is gone."""

    def on_broken_pipe(self) -> None:
        """Called while the error is handled; rich would exit with 1."""
        raise

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        """The terminal's, or what COLUMNS says now; without a terminal, lines are as long as they are."""
        if not self.file.isatty():
            return ConsoleDimensions(UNLIMITED, 25)
        columns = os.environ.get("COLUMNS", "")
        return ConsoleDimensions(int(columns), 25) if columns.isdigit() and int(columns) else super().size


console = Screen(highlight=False)


@dataclass(frozen=True)
class Grid:
    """A table's texts.

    Attributes:
        head: names of the columns.
        rows: as many cells each.
        texts: columns of words, on the left and broken between words; the others are numbers, never broken.
        give_way: columns that may be left out for want of room, the first first.
        names: how many columns at the left say what a row is; they stand in every further table.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Text]]
    texts: Collection[str] = ()
    give_way: Sequence[str] = ()
    names: int = 1


def show(title: str, grid: Grid) -> None:
    """Print a table; a last line names the columns that had to give way."""
    shown, left_out = _kept(grid, console.width)
    if title:
        console.print(Text(title, "italic"))
    for block in _blocks(grid, shown, console.width):
        terminal = Terminal()
        for i, width in _widths(grid, block, console.width).items():
            name = "\n".join(textwrap.wrap(grid.head[i], width, break_long_words=False, break_on_hyphens=False))
            justify: Literal["left", "right"] = "left" if grid.head[i] in grid.texts else "right"
            terminal.add_column(Text(name), justify=justify, width=width, overflow="fold")
        for row in grid.rows:
            terminal.add_row(*(row[i] for i in block))
        console.print(terminal)
    if left_out:
        say(f"no room for: {', '.join(left_out)}")


def say(text: str, style: str | None = None) -> None:
    """Print a sentence, broken between words."""
    console.print(text, style=style, markup=False)


def paste(text: str) -> None:
    """Print a line that is never broken, since somebody may paste it."""
    console.print(text, soft_wrap=True, markup=False)


def _kept(grid: Grid, width: int) -> tuple[list[int], list[str]]:
    """The columns that stay, and the names of those that give way."""
    shown, left_out = list(range(len(grid.head))), []
    for name in (name for name in grid.give_way if name in grid.head):
        if _needed(grid, shown) <= width:
            break
        shown.remove(list(grid.head).index(name))
        left_out.append(name)
    return shown, left_out


def _blocks(grid: Grid, shown: Sequence[int], width: int) -> list[list[int]]:
    """The columns of every table that is printed: the first with as many others as there is room for."""
    first, others = shown[: grid.names], shown[grid.names :]
    blocks = [[*first]]
    for i in others:
        if len(blocks[-1]) > len(first) and _needed(grid, [*blocks[-1], i]) > width:
            blocks.append([*first])
        blocks[-1].append(i)
    return blocks


def _widths(grid: Grid, block: Sequence[int], width: int) -> dict[int, int]:
    """How many characters every column of a table has: what is to spare goes to its texts, from the left."""
    widths = {i: _least(grid, i) for i in block}
    spare = width - _needed(grid, block)
    for i in block:
        if spare > 0 and grid.head[i] in grid.texts:
            more = min(spare, max(0, _most(grid, i) - widths[i]))
            widths[i], spare = widths[i] + more, spare - more
    if spare < 0:  # a word alone is wider than the terminal
        widths[block[0]] = max(1, widths[block[0]] + spare)
    return widths


def _needed(grid: Grid, block: Sequence[int]) -> int:
    return sum(_least(grid, i) + EDGES for i in block) + 1


def _least(grid: Grid, i: int) -> int:
    """The width that breaks nothing: of a text its longest word, of numbers the longest."""
    cells = [str(row[i]) for row in grid.rows]
    pieces = [word for cell in cells for word in cell.split()] if grid.head[i] in grid.texts else cells
    return max((cell_len(piece) for piece in [*grid.head[i].split(), *pieces]), default=1)


def _most(grid: Grid, i: int) -> int:
    return max(cell_len(text) for text in (grid.head[i], *(str(row[i]) for row in grid.rows)))
