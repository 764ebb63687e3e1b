"""How much a rate matters: what every search lost beside the rate that it chose, the backbone's and the head's."""

from itertools import pairwise
from typing import Any

from peftbench.ground.errors import ConfigError
from peftbench.report.rates import Tried, tried
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet
from peftbench.report.table import apart

NOTES = (
    "score: of the chosen rate, in percent, on the rows of the search, with its seed and steps; the others: points "
    "from there, at the next smaller and larger rate and at the worst of all tried",
    "none: no rate was tried beyond, so a better one may lie there; failed: that try failed or diverged",
)


def sheet(study: Study) -> Sheet:
    """What every row of the study's table tried on every task.

    Raises:
        ConfigError: nothing was searched.
    """
    every = tried(study, apart(study)[0])
    if not every:
        raise ConfigError(f"study {study.name}: no rate was searched; select=lr searches the learning rate")
    head = ["task", "method", "rate", "chosen", "score", "smaller", "larger", "worst", "tried"]
    numbers: list[list[Any]] = [["task", "method", "key", "rate", "score", "chosen"]]
    for one in every:
        numbers += [[one.column, one.name, one.key, x, y, int(x == one.chosen)] for x, y in one.scores.items()]
    title = f"{study.name}: what the rates are worth that were tried"
    return Sheet(title, head, [_row(one) for one in every], list(NOTES), numbers, words=3)


def _row(one: Tried) -> list[str]:
    rates = list(one.scores)
    below = {larger: smaller for smaller, larger in pairwise(rates)}
    above = dict(pairwise(rates))
    score = one.known.get(one.chosen)
    worst = "–" if score is None else f"{min(one.known.values()) - score:+.1f}"
    beside = (_loss(one, side.get(one.chosen)) for side in (below, above))
    return [
        one.column, one.name, one.key, f"{one.chosen:g}", "–" if score is None else f"{score:.1f}", *beside, worst,
        f"{len(rates)}, {rates[0]:g} to {rates[-1]:g}",
    ]  # fmt: skip


def _loss(one: Tried, rate: float | None) -> str:
    """Points from the chosen rate's score to that of a rate beside it."""
    if rate is None:
        return "none"
    if rate not in one.known:
        return "failed"
    return f"{one.known[rate] - one.known[one.chosen]:+.1f}" if one.chosen in one.known else "–"
