"""What a compatible update saves: the flips of an update beside those of another, from the same older version.

MUSCLE (arXiv 2407.09435, section 3): with an old model M1, a new one M2 and a compatible one Mc,
change of NFR = NFR(M1 -> Mc) - NFR(M1 -> M2), and the same in percent of NFR(M1 -> M2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbench.ground.errors import ConfigError
from peftbench.report import bootstrap, flips
from peftbench.report.flips import Figure
from peftbench.report.versions import Version


@dataclass(frozen=True)
class Saving:
    """Two updates of one older version on one task.

    Attributes:
        column: task and metric.
        old, new, without: names of the older version, of the update, and of the one it is compared with.
        pairs: of seeds that all three have.
        by: measure -> that of the update minus that of the other, with its 95% interval; seeds and rows drawn together.
        base: NFR from the older version to the other update.
    """

    column: str
    old: str
    new: str
    without: str
    pairs: int
    by: dict[str, Figure]
    base: float

    @property
    def share(self) -> float | None:
        """The change of NFR as a share of the other update's; None where that has no flips."""
        return self.by["NFR"].value / self.base if self.base else None


def between(updates: Sequence[tuple[Version, Version]], others: Sequence[tuple[Version, Version]]) -> list[Saving]:
    """Every update beside every other of the same older version, on the seeds that all have.

    Args:
        updates: older version and update; others: older version and what the update is compared with.

    Raises:
        ConfigError: nothing can be compared.
        DataError: predictions cannot be read, or are of other rows.
    """
    savings = [
        _of((old, new), without, seeds)
        for old, new in updates
        for before, without in others
        if (before.column, before.name) == (old.column, old.name)
        and (seeds := tuple(seed for seed in new.seeds if seed in without.seeds))
    ]
    if not savings:
        raise ConfigError("--without: no task and seeds in common with the update")
    return savings


def _of(update: tuple[Version, Version], without: Version, seeds: tuple[int, ...]) -> Saving:
    """The draws of both are of the same rows and seeds, in one order: their differences are paired."""
    old, new, other = (replace(version, seeds=seeds) for version in (*update, without))
    (one, drawn), (base, drawn_base) = flips.of_task(old, new), flips.of_task(old, other)
    by = {
        name: Figure(figure.value - base.figures[name].value, *bootstrap.interval(drawn[name] - drawn_base[name]))
        for name, figure in one.figures.items()
    }
    return Saving(one.column, one.old, one.new, base.new, len(seeds), by, base.figures["NFR"].value)


def lines(savings: Sequence[Saving]) -> list[str]:
    """A line for each, in percent."""
    return [_line(saving) for saving in savings]


def _line(saving: Saving) -> str:
    measures = ["NFR", "change"] if "change" in saving.by else ["NFR", "PFR"]
    parts = [_difference(name, saving.by[name]) for name in measures]
    if saving.share is not None:
        parts[0] += f", {100 * saving.share:+.0f}% of {100 * saving.base:.1f}"
    return f"{saving.column}, {saving.old} → {saving.new} instead of {saving.without}: {'; '.join(parts)}"


def _difference(name: str, figure: Figure) -> str:
    words = {"change": "accuracy"}.get(name, name)
    return f"{words} {100 * figure.value:+.1f} [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]"
