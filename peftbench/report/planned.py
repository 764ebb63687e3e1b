"""What claims come to on the tasks of cells that have not run: the tests of a plan, or why there could be none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from peftbench.config import parents
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, shown
from peftbench.report.records import column_of_cell, name_of_cell
from peftbench.report.table import row_named

Sign = Literal[">", "="]  # ahead; equal within the margin
Rows = Mapping[tuple[str, str], Mapping[str, set[str]]]  # (row, column) of a table -> kind of cell -> seeds


@dataclass(frozen=True)
class Test:
    """One claim on one task.

    Attributes:
        first, second: rows of the table, by their whole names.
        sign: what is claimed.
        column: of the table.
    """

    first: str
    sign: Sign
    second: str
    column: str

    def __str__(self) -> str:
        return f"{self.first} {self.sign} {self.second} on {self.column}"


def parts(claim: str) -> tuple[str, Sign, str]:
    """The first row, what is claimed of it, and the second row.

    Raises:
        ConfigError: the claim has not this form.
    """
    signs: tuple[Sign, ...] = get_args(Sign)
    for sign in signs:
        first, separator, second = (text.strip() for text in claim.partition(sign))
        if separator and first and second and not set(signs) & set(second):
            return first, sign, second
    raise ConfigError(f'--claim {shown(claim)}: "ONE > OTHER" (ahead), or "ONE = OTHER" (tied within the margin)')


def tests(claims: Sequence[str], folders: Sequence[str], kinds: Mapping[str, Cell], study: str) -> list[Test]:
    """Every claim on every task where both of its rows will have two seeds (or splits of few labels) in common.

    Args:
        folders: all cells, under the outputs.
        kinds: a cell of every folder that seeds share.
        study: its name.

    Raises:
        ConfigError: a claim names no row of these cells, or several; there is no such task; or a claim comes twice.
    """
    rows = _rows(folders, kinds)
    every: list[Test] = []
    for claim in claims:
        try:
            made = list(_of_claim(*parts(claim), rows, study))
        except ConfigError as error:
            raise ConfigError([f"--claim {shown(claim)}: {problem}" for problem in error.every]) from None
        if twice := [test for test in made if test in every]:
            raise ConfigError(f"--claim {shown(claim)}: {twice[0]} is claimed twice")
        every += made
    return every


def _rows(folders: Sequence[str], kinds: Mapping[str, Cell]) -> Rows:
    several = len({cell.model.name for cell in kinds.values()}) > 1
    rows: dict[tuple[str, str], dict[str, set[str]]] = {}
    for folder in folders:
        shared, _, seed = folder.rpartition("/")
        cell = kinds[shared]
        kind = parents.row_of(cell) or cell.fingerprint
        place = name_of_cell(cell, several), column_of_cell(cell)
        rows.setdefault(place, {}).setdefault(kind, set()).add(seed)
    return rows


def _of_claim(first: str, sign: Sign, second: str, rows: Rows, study: str) -> Iterator[Test]:
    names = list(dict.fromkeys(name for name, _ in rows))
    first, second = (row_named(word, names, study) for word in (first, second))
    if first == second:
        raise ConfigError(f"{first} is both sides")
    tested = False
    for column in dict.fromkeys(column for _, column in rows):
        sides = [_seeds(name, column, rows) for name in (first, second)]
        if len(sides[0] & sides[1]) > 1:
            tested = True
            yield Test(first, sign, second, column)
    if not tested:
        raise ConfigError(f"{first} and {second} have no task with two seeds in common")


def _seeds(name: str, column: str, rows: Rows) -> set[str]:
    by_kind = rows.get((name, column), {})
    if len(by_kind) > 1:
        raise ConfigError(f"{name} stands for {len(by_kind)} kinds of cells on {column}, and a claim is of one")
    return next(iter(by_kind.values()), set())
