"""Scores on parts of the dev rows: short and long ones, those that share words or do not, with a negation or not."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peftbench.ground.wording import negates, shared, words_of
from peftbench.record import Record
from peftbench.report import axes, bootstrap, predictions
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

Texts = tuple[tuple[str, ...], ...]  # one tuple of strings per text column, rows long
WHOLE = "all"
LENGTHS = ("short", "middle", "long")
OVERLAPS = ("few shared words", "many shared words")
NEGATED = ("negation", "no negation")
MEASURES = tuple(Measure(name) for name in (WHOLE, *LENGTHS, *OVERLAPS, *NEGATED))


@dataclass(frozen=True)
class Subsets:
    """Parts of some rows.

    Attributes:
        masks: name -> whether each row is in it (rows,); a name is missing where nothing is split so.
        limits: what splits them, in words.
    """

    masks: dict[str, np.ndarray]
    limits: str


def split(texts: Texts) -> Subsets:
    """The parts of these rows, by their words in lower case.

    Length: words of all texts together, split at its tertiles. Shared words: Jaccard's index of the two texts' words,
    split at its median; not where there is one text. Negation: see `wording.negates`.
    """
    words = [[words_of(text) for text in column] for column in texts]
    lengths = np.array([sum(map(len, row)) for row in zip(*words, strict=True)])
    first, second = np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf")
    negated = np.array([any(map(negates, row)) for row in zip(*words, strict=True)])
    masks = dict(
        zip(LENGTHS, (lengths <= first, (first < lengths) & (lengths <= second), second < lengths), strict=True)
    )
    limits = f"short: up to {first} words, long: from {second + 1} on"
    if len(texts) == 2:
        overlap = np.array([shared(one, other) for one, other in zip(*words, strict=True)])
        middle = float(np.median(overlap))
        masks |= dict(zip(OVERLAPS, (overlap <= middle, overlap > middle), strict=True))
        limits += f"; few shared words: up to {100 * middle:.0f}%"
    return Subsets(masks | dict(zip(NEGATED, (negated, ~negated), strict=True)), limits)


def sheet(study: Study, texts_of: Callable[[Record, str], Texts]) -> Sheet:
    """The headline of every cell of the study's table on every part of its dev rows.

    Args:
        texts_of: the rows that a record was scored on, by the name of their split.

    Raises:
        DataError: the rows at hand are others.
    """
    unusable: list[str] = []
    known: dict[str, Subsets] = {}
    cells, notes = [], []
    for place in axes.places(study):
        record = place.runs[0][1]
        name = predictions.scored_split(record)
        sha256 = f"{record.cell.task} {record.hashes.data.get(name)}"
        if sha256 not in known:
            known[sha256] = split(texts_of(record, name))
            notes.append(f"{place.column}: {_described(known[sha256])}")
        cells.append(_measured(place, known[sha256], unusable))
    predictions.name_unusable(unusable)
    notes.append("a part where all answers, or all labels, are one class gives 0 to F1, MCC and correlations")
    notes += axes.not_stored(cells)
    title = f"{study.name}: dev scores in percent on parts of the rows, mean ± sd over runs"
    return axes.sheet(title, MEASURES, cells, notes)


def _described(subsets: Subsets) -> str:
    sizes = ", ".join(f"{name} {int(mask.sum())}" for name, mask in subsets.masks.items())
    return f"{len(next(iter(subsets.masks.values())))} rows: {sizes} ({subsets.limits})"


def _measured(place: Place, subsets: Subsets, unusable: list[str]) -> Measured:
    values: dict[str, list[float]] = {measure.name: [] for measure in MEASURES}
    everything = np.ones_like(subsets.masks[LENGTHS[0]])
    for (folder, _), scored in axes.stored(place, unusable):
        if len(scored.labels) != len(everything):
            unusable.append(f"{folder}: predictions of {len(scored.labels)} rows, where {len(everything)} were scored")
            continue
        for name, mask in {WHOLE: everything, **subsets.masks}.items():
            if mask.any():
                score = bootstrap.whole(scored.metric, scored.predictions[None, mask], scored.labels[mask])
                values[name].append(100 * float(score[0]))
    return Measured(place, values, len(values[WHOLE]))
