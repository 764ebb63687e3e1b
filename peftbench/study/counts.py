"""Every trainable count that a paper states, against ours: without weights, in seconds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from peftbench.ground.errors import ConfigError
from peftbench.papers import Paper, Row
from peftbench.runner.counts import Counts, count_cell, kept_bounds
from peftbench.study.compose_many import cells_from

Verdict = Literal[
    "as printed",
    "as the closed form",
    "rounds as printed",
    "within the bounds",
    "not explained",
    "nothing printed",
    "not in this bench",
]
PRINTED = re.compile(r"([0-9.]+)([KMB%])")
UNITS = {"K": 1_000, "M": 1_000_000, "B": 1_000_000_000}


@dataclass(frozen=True)
class Checked:
    """A row's printed count, our count, and how they compare.

    Attributes:
        ours: entries, the head included where the paper counts it; None: this bench cannot run the row.
        verdict: "as printed" (ours rounds to the printed figure, and is the closed form's where there is one),
            "as the closed form" (nothing is printed), "rounds as printed" (and yet is not the closed form's: the row's
            note says what is counted otherwise), "within the bounds" (the method prunes, and the printed figure lies
            between the least and the most that it can leave), "not explained" (ours does not round to the printed
            figure).
        bounds: what is kept when training has ended, at least and at most, where that is not what trained.
    """

    row: Row
    ours: int | None
    verdict: Verdict
    bounds: tuple[int, int] | None = None


def check(paper: Paper) -> Iterator[Checked]:
    """Check every row of a paper.

    Raises:
        ConfigError: the overrides of a row are not possible.
    """
    cells = cells_from([[f"model={row.model}", "task=mrpc", *row.run] for row in paper.rows if row.run is not None])
    for row in paper.rows:
        if row.run is None:
            yield Checked(row, None, "not in this bench")
            continue
        cell = next(cells)
        if isinstance(cell, ConfigError):
            raise cell
        counts = count_cell(cell)
        if counts.kept != counts.backbone:
            yield _pruned(row, counts, kept_bounds(cell))
            continue
        ours = counts.total if row.counts_head else counts.backbone
        yield Checked(row, ours, _verdict(row, ours, counts))


def _pruned(row: Row, counts: Counts, bounds: tuple[int, int]) -> Checked:
    """A row whose method prunes: what it leaves depends on the data, and only bounds are known."""
    inside = row.trainable is not None and bounds[0] <= entries_printed(row.trainable, counts.model) <= bounds[1]
    return Checked(row, counts.backbone, "within the bounds" if inside else "not explained", bounds)


def _verdict(row: Row, ours: int, counts: Counts) -> Verdict:
    same = row.count is None or row.count == ours
    if row.trainable is None:
        return "not explained" if not same else "nothing printed" if row.count is None else "as the closed form"
    if not rounds_to(ours, counts.model, row.trainable):
        return "not explained"
    return "as printed" if same else "rounds as printed"


def rounds_to(entries: int, model: int, printed: str) -> bool:
    """Whether a count, rounded as a printed figure is (0.3M, 5.65M, 320K, 0.08%), is that figure."""
    match = PRINTED.fullmatch(printed)
    if not match:
        return False
    step = Decimal(1).scaleb(int(Decimal(match[1]).as_tuple().exponent)) * _unit(match[2], model)
    return abs(entries - entries_printed(printed, model)) <= step / 2


def entries_printed(printed: str, model: int) -> Decimal:
    """The entries that a printed figure stands for (a share is one of the model's); not a number where it is none."""
    match = PRINTED.fullmatch(printed)
    return Decimal(match[1]) * _unit(match[2], model) if match else Decimal("nan")


def _unit(sign: str, model: int) -> Decimal:
    return Decimal(model) / 100 if sign == "%" else Decimal(UNITS[sign])
