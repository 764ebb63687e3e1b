"""How sure an edit's change of rate is: seeds, and the rows that can show the behaviour, drawn anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.ground.errors import DataError
from peftbench.record import Record
from peftbench.report import bootstrap, flips
from peftbench.report.predictions import ROUNDING
from peftbench.report.records import Study

Run = tuple[Path, Record]
Span = tuple[float, float, float]  # a value and the ends of its 95% interval


@dataclass(frozen=True)
class Shown:
    """Which rows show a behaviour before and after an edit, of those that can (rows,) bool."""

    numbers: tuple[int, ...]
    before: np.ndarray
    after: np.ndarray


Key = tuple[str, frozenset[tuple[str, str]], frozenset[str | None]]


def made_of(record: Record) -> Key:
    """What an edit and its unedited run have in common: task, rows and parents."""
    hashes = record.hashes
    return record.cell.task, frozenset(hashes.data.items()), frozenset(hashes.parents.values())


def unedited(study: Study) -> dict[Key, Run]:
    """The rows from which a study's edits move, by what they are made of."""
    runs = zip(study.folders, study.records, strict=True)
    return {
        made_of(record): (folder, record)
        for folder, record in runs
        if record.made is not None and record.made.by == "edit" and record.made.keys == {"floor": True}
    }


def shown(run: Run, before: Run, answer: str, numbers: Sequence[int], rates: tuple[float, float]) -> Shown:
    """What the stored predictions of an edit and of its unedited run say of some rows.

    Args:
        answer: the label that shows the behaviour.
        numbers: of the rows that can.
        rates: as recorded, before and after.

    Raises:
        DataError: they cannot be read, are of other rows, or give other rates.
    """
    said = [flips.answers(*one).said for one in (before, run)]
    if len({len(one) for one in said}) > 1 or max(numbers) >= len(said[0]):
        raise DataError(f"{run[0]}: predictions of other rows than those that the edit was scored on")
    sides = [one[list(numbers)] == answer for one in said]
    for side, rate, (folder, _) in zip(sides, rates, (before, run), strict=True):
        if not abs(side.mean() - rate) < ROUNDING:
            raise DataError(f"{folder}: its predictions give the rate {side.mean():.4f}, the record says {rate:.4f}")
    return Shown(tuple(numbers), *sides)


def change(seeds: Mapping[int, Shown]) -> Span | None:
    """The change of rate, mean over seeds; None where there is no seed, or they are of different rows."""
    every = list(seeds.values())
    return _difference([one.after for one in every], [one.before for one in every]) if _same_rows(every) else None


def beside(method: Mapping[int, Shown], control: Mapping[int, Shown]) -> Span | None:
    """The method's rate minus a control's, mean over the seeds that both have; None as of `change`."""
    shared = sorted(method.keys() & control.keys())
    if not _same_rows([side[seed] for side in (method, control) for seed in shared]):
        return None
    return _difference([method[seed].after for seed in shared], [control[seed].after for seed in shared])


def _same_rows(every: Sequence[Shown]) -> bool:
    return len({one.numbers for one in every}) == 1


def _difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Span:
    """The difference of two shares of the same rows, seed by seed."""
    sides = np.stack([*one, *other])
    drawn = bootstrap.of_rows("accuracy", sides, np.ones(sides.shape[1], dtype=bool))
    return float(np.mean(one) - np.mean(other)), *bootstrap.crossed(drawn[: len(one)] - drawn[len(one) :])
