"""Whether a run's probabilities are what its answers are worth, from the stored logits."""

import numpy as np
from scipy.special import softmax

from peftbench.ground.errors import DataError
from peftbench.report import axes, predictions
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

BINS = 15
ECE, BRIER, CONFIDENCE = "ECE", "Brier score", "confidence"
MEASURES = (Measure(ECE, times=100), Measure(BRIER, 3), Measure(CONFIDENCE, times=100))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far confidence and accuracy lie apart, in [0, 1] (Guo et al. 2017, arXiv:1706.04599, equation 3).

    The sum over bins of the share of rows in it times the distance of their accuracy from their mean confidence, which
    is the largest probability. Bins have equal width, each with its upper edge.

    Args:
        probabilities: (rows, classes); of equal ones the first class is the answer.
        labels: class ids (rows,).
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(bins * confidence).astype(int) - 1, 0, bins - 1)
    apart = np.bincount(place, right - confidence, minlength=bins)
    return float(np.abs(apart).sum() / len(labels))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over rows of the squared distance from the truth, summed over all classes, in [0, 2] (Brier 1950).

    With two classes it is twice the score of the positive class alone.

    Args:
        probabilities: (rows, classes).
        labels: class ids (rows,).
    """
    truth = np.eye(probabilities.shape[1])[labels.astype(int)]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def sheet(study: Study) -> Sheet:
    """Calibration error, Brier score and mean confidence of every cell of the study's table whose task has classes."""
    cells, left_out = axes.of_classes(study, _measured)
    notes = [
        f"ECE: expected calibration error in percent, {BINS} bins of equal width",
        "Brier score: summed over classes, 0 to 2; confidence: mean of the largest probability, in percent",
        "probabilities: softmax of the stored logits (5 decimals)",
    ]
    return axes.sheet(f"{study.name}: calibration on dev, mean ± sd over runs", MEASURES, cells, [*notes, *left_out])


def _measured(place: Place, unusable: list[str]) -> Measured:
    values: dict[str, list[float]] = {measure.name: [] for measure in MEASURES}
    for run, scored in axes.stored(place, unusable):
        try:
            probabilities = softmax(predictions.logits(*run), axis=1)
        except DataError as error:
            unusable.append(error.every[0])
            continue
        values[ECE].append(expected_calibration_error(probabilities, scored.labels))
        values[BRIER].append(brier_score(probabilities, scored.labels))
        values[CONFIDENCE].append(float(probabilities.max(axis=1).mean()))
    return Measured(place, values, len(values[ECE]))
