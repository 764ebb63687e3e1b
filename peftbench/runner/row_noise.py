"""How sure a run's score is over the rows it was read from, by the predictions that the run kept."""

import math
from pathlib import Path

from peftbench.config.spec import TaskSpec
from peftbench.ground import predictions
from peftbench.training.metrics import standard_error


def error_of(run: Path, task: TaskSpec, rows: str, score: float) -> float:
    """Standard error of a headline score over its rows.

    Accuracy's is binomial, sqrt(score (1 - score) / rows). Any other metric's is its spread when the rows are drawn
    anew with replacement (bootstrap), of the predictions kept: those of the run's selected evaluation.

    Args:
        run: the run's folder.
        rows: held_out or dev.
        score: the headline in [-1, 1].

    Raises:
        DataError: the predictions are not there, or are not of this task.
    """
    split = "held_out" if rows == "held_out" else task.scored()[task.headline][0]
    predicted, labels = predictions.numbers(run, split, task.labels)
    if task.plain_headline == "accuracy":
        return math.sqrt(score * (1 - score) / len(labels))
    return standard_error(task.plain_headline, predicted, labels)
