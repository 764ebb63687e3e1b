"""What a compatible update saves: the flips of an update beside those of another, from the same older version.

MUSCLE (arXiv 2407.09435, section 3): with an old model M1, a new one M2 and a compatible one Mc,
change of NFR = NFR(M1 -> Mc) - NFR(M1 -> M2), and the same in percent of NFR(M1 -> M2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
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


Pair = tuple[Version, Version]  # an older version and an update of it


def between(updates: Sequence[Pair], others: Sequence[Pair]) -> tuple[list[Saving], list[str]]:
    """Every update beside every other of the same older version, on the older one's seeds that both have; and a line
    for each that has no counterpart.

    Raises:
        ConfigError: none has one.
        DataError: predictions cannot be read, or are of other rows.
    """
    savings, notes = [], []
    for update in updates:
        beside = [other for other in others if _shared(update, other)]
        savings += [_of(update, other, _shared(update, other)) for other in beside]
        if not beside:
            notes.append(f"{update[1].column}, {update[1].name}: left out, --without has no such row with its seeds")
    if not savings:
        raise ConfigError(notes)
    return savings, notes


def _shared(update: Pair, other: Pair) -> list[int]:
    """Seeds of the older version in both pairs; none where it is not the same version."""
    (old, _), (same, _) = update, other
    if (old.column, old.name) != (same.column, same.name):
        return []
    return [seed for seed in old.seeds if seed in same.seeds]


def _of(update: Pair, other: Pair, shared: Sequence[int]) -> Saving:
    """The draws of both are of the same rows and seeds, in one order: their differences are paired."""
    (one, drawn), (base, drawn_base) = (flips.of_task(*_on(pair, shared)) for pair in (update, other))
    by = {
        name: Figure(figure.value - base.figures[name].value, *bootstrap.interval(drawn[name] - drawn_base[name]))
        for name, figure in one.figures.items()
    }
    return Saving(one.column, one.old, one.new, base.new, len(shared), by, base.figures["NFR"].value)


def _on(pair: Pair, shared: Sequence[int]) -> list[Version]:
    """Both versions with those seeds alone which the older one has in `shared`."""
    places = [pair[0].seeds.index(seed) for seed in shared]
    return [replace(version, seeds=tuple(version.seeds[i] for i in places)) for version in pair]


def lines(savings: Sequence[Saving]) -> list[str]:
    """A line for each, in percent."""
    return [_line(saving) for saving in savings]


def _line(saving: Saving) -> str:
    measures = ["NFR", "change"] if "change" in saving.by else ["NFR", "PFR"]
    parts = [_difference(name, saving.by[name]) for name in measures]
    if saving.share is not None:
        parts[0] += f", {100 * saving.share:+.0f}% of {100 * saving.base:.1f}"
    versions = f"{saving.old} → {saving.new} instead of {saving.without}"
    return f"{saving.column}, {versions} ({quantity(saving.pairs, 'pair')}): {'; '.join(parts)}"


def _difference(name: str, figure: Figure) -> str:
    words = {"change": "accuracy"}.get(name, name)
    return f"{words} {100 * figure.value:+.1f} [{100 * figure.low:+.1f}, {100 * figure.high:+.1f}]"
