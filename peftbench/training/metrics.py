"""GLUE's metrics on arrays, edge cases included. `glue_metric.py` offers them as an `evaluate.Metric`.

Those of classification are counted here: scikit-learn's, whose numbers they are to the bit, cost every run
0.7 s and 78 MB, as it imports pandas and pyarrow.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from peftbench.ground.quantity import quantity


@dataclass(frozen=True)
class Scores:
    """Metrics of one split, in [-1, 1], and whether the predictions are all the same."""

    values: dict[str, float]
    collapsed: bool


def score(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Compute the named metrics.

    Args:
        names: of accuracy, f1 (of class 1), matthews_correlation, pearson, spearman.
        predictions: class ids (rows,), or numbers for a regression.
        references: the same shape.

    Constant predictions give a Matthews correlation and correlations of 0 (scipy would say nan), and `collapsed`.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(f"{quantity(len(predictions), 'prediction')} for {quantity(len(references), 'row')}")
    collapsed = bool((predictions == predictions[0]).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant or one-class input, which `collapsed` and 0 stand for
        values = {name: float(METRICS[name](predictions, references)) for name in names}
    return Scores(values, collapsed)


def standard_error(name: str, predictions: np.ndarray, references: np.ndarray, resamples: int = 100) -> float:
    """Standard error of a metric over the rows: its spread when rows are drawn anew with replacement."""
    random = np.random.default_rng(0)
    draws = random.integers(0, len(references), size=(resamples, len(references)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may hold one class only
        values = [METRICS[name](predictions[rows], references[rows]) for rows in draws]
    return float(np.std(values, ddof=1))


def predict(logits: np.ndarray) -> np.ndarray:
    """Class ids (rows,) of logits (rows, classes), or the values (rows,) of a regression's (rows, 1)."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Share of the rows that are right."""
    return float((predictions == references).mean())


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """Harmonic mean of precision and recall of class 1; 0 where neither side knows that class."""
    both = int(((predictions == 1) & (references == 1)).sum())
    either = int((predictions == 1).sum() + (references == 1).sum())
    return 2 * both / either if either else 0.0


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004); 0 where one side has one class only."""
    classes = np.union1d(predictions, references)[:, None]
    predicted, true = ((classes == side).sum(axis=1, dtype=np.float64) for side in (predictions, references))
    rows = float(len(references))
    right = float((predictions == references).sum())
    spread = (rows**2 - predicted @ predicted) * (rows**2 - true @ true)
    return float((right * rows - predicted @ true) / np.sqrt(spread)) if spread else 0.0


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation; 0 where one side is constant."""
    from scipy.stats import pearsonr  # a fifth of a second and 22 MB that only regressions need

    return _or_zero(pearsonr, predictions, references)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman's correlation of ranks; 0 where one side is constant."""
    from scipy.stats import spearmanr

    return _or_zero(spearmanr, predictions, references)


def _or_zero(function: Callable[..., tuple[float, float]], predictions: np.ndarray, references: np.ndarray) -> float:
    value = function(predictions, references)[0] if len(predictions) > 1 else 0.0
    return 0.0 if np.isnan(value) else float(value)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (accuracy, f1, matthews_correlation, pearson, spearman)
}
