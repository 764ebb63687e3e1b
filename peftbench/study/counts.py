"""Every trainable count that a paper states, against ours: without weights, in seconds."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from peftbench.errors import ConfigError
from peftbench.papers import Paper, Row
from peftbench.runner.counts import Counts, plan
from peftbench.study.many import cells_from

Verdict = Literal[
    "as printed", "as the closed form", "rounds as printed", "not explained", "nothing printed", "not in this bench"
]
UNITS = {"K": 1_000, "M": 1_000_000, "B": 1_000_000_000}


@dataclass(frozen=True)
class Checked:
    """A row's printed count, our count, and how they compare.

    Attributes:
        ours: entries, the head included where the paper counts it; None: this bench cannot run the row.
        verdict: "as printed" (ours rounds to the printed figure, and is the closed form's where there is one),
            "as the closed form" (nothing is printed), "rounds as printed" (and yet is not the closed form's: the row's
            note says what is counted otherwise), "not explained" (ours does not round to the printed figure).
    """

    row: Row
    ours: int | None
    verdict: Verdict


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
        counts = plan(cell)
        ours = counts.total if row.counts_head else counts.backbone
        yield Checked(row, ours, _verdict(row, ours, counts))


def _verdict(row: Row, ours: int, counts: Counts) -> Verdict:
    same = row.count is None or row.count == ours
    if row.trainable is None:
        return "not explained" if not same else "nothing printed" if row.count is None else "as the closed form"
    if not rounds_to(ours, counts.model, row.trainable):
        return "not explained"
    return "as printed" if same else "rounds as printed"


def rounds_to(entries: int, model: int, printed: str) -> bool:
    """Whether a count, rounded as a printed figure is (0.3M, 5.65M, 320K, 0.08%), is that figure."""
    match = re.fullmatch(r"([0-9.]+)([KMB%])", printed)
    if not match:
        return False
    figure, unit = Decimal(match[1]), match[2]
    value = Decimal(100 * entries) / model if unit == "%" else Decimal(entries) / UNITS[unit]
    step = Decimal(1).scaleb(int(figure.as_tuple().exponent))
    return abs(value - figure) <= step / 2
