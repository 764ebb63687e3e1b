"""GLUE's metrics on arrays, edge cases included. `glue_metric.py` offers them as an `evaluate.Metric`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


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
        raise ValueError(f"{len(predictions)} predictions for {len(references)} rows")
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


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(predictions: np.ndarray, references: np.ndarray) -> float:
        value = function(predictions, references)[0] if len(predictions) > 1 else 0.0
        return 0.0 if np.isnan(value) else float(value)

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda predictions, references: accuracy_score(references, predictions),
    "f1": lambda predictions, references: f1_score(references, predictions, zero_division=0),
    "matthews_correlation": lambda predictions, references: matthews_corrcoef(references, predictions),
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}
