"""Whether the seeds of a method give the same answers row by row, from the stored predictions."""

import numpy as np

from peftbench.report import axes
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

ALL, PAIRS, RIGHT = "all runs agree", "two runs agree", "all runs right"
MEASURES = (Measure(ALL, times=100), Measure(PAIRS, times=100), Measure(RIGHT, times=100))


def unanimous(answers: np.ndarray) -> float:
    """The share of rows on which all runs give one answer; it falls with the number of runs.

    Args:
        answers: class ids (runs, rows).
    """
    return float((answers == answers[0]).all(axis=0).mean())


def pairwise(answers: np.ndarray) -> float:
    """The share of rows on which two runs give one answer, the mean over all pairs of runs.

    Args:
        answers: class ids (runs, rows), of at least two runs.
    """
    runs = len(answers)
    each = [(answers == answer).sum(axis=0) for answer in np.unique(answers)]
    same = sum((number * (number - 1)).mean() for number in each)
    return float(same / (runs * (runs - 1)))


def sheet(study: Study) -> Sheet:
    """Agreement of every cell of the study's table whose task has classes."""
    cells, left_out = axes.of_classes(study, _measured)
    notes = [
        f"in percent of the dev rows; {PAIRS}: mean over all pairs of runs",
        f"{ALL}, {RIGHT}: fall with the number of runs; compare them at equal numbers",
        "two runs of accuracy a that err independently agree on a² + (1 - a)² of the rows, where there are two classes",
    ]
    return axes.sheet(f"{study.name}: answers of different runs on dev", MEASURES, cells, [*notes, *left_out])


def _measured(place: Place, unusable: list[str]) -> Measured:
    every = [scored for _, scored in axes.stored(place, unusable)]
    if len(every) < 2:
        return Measured(place, {}, len(every))
    answers = np.stack([scored.predictions for scored in every])
    right = float((answers == every[0].labels).all(axis=0).mean())
    values = {ALL: [unanimous(answers)], PAIRS: [pairwise(answers)], RIGHT: [right]}
    return Measured(place, values, len(every))
