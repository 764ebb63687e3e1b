"""Scores when dev rows and seeds are drawn anew: how far a score would move on other sentences and other seeds."""

from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 2000
BLOCK = 2_000_000  # weights that are held at a time, 8 bytes each
LEVEL = 0.95


def of_rows(metric: str, predictions: np.ndarray, labels: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Scores (runs, resamples) of runs on the same rows, each resample the same rows for all of them.

    Args:
        metric: a key of `METRICS`.
        predictions: class ids, or numbers for a regression (runs, rows).
        labels: the same (rows,).
        resamples: how often as many rows are drawn with replacement.

    Raises:
        KeyError: there is no such metric.
    """
    scored = METRICS[metric]
    blocks = [scored(weights, predictions, labels) for weights in _drawn(len(labels), resamples)]
    return np.concatenate(blocks, axis=1)


def whole(metric: str, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Scores (runs,) on all rows."""
    return METRICS[metric](np.ones((1, len(labels))), predictions, labels)[:, 0]


def crossed(*tasks: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of a mean over seeds when seeds and rows are drawn anew (Owen 2007, "The pigeonhole
    bootstrap"); of several tasks that of the mean of their means, each drawn by itself.

    Args:
        tasks: the differences of each (seeds, resamples), the rows of each resample drawn anew.
    """
    random, means = np.random.default_rng(1), []
    for differences in tasks:
        drawn = random.integers(0, len(differences), size=differences.shape)
        mean = np.take_along_axis(differences, drawn, axis=0).mean(axis=0)
        means.append(random.permutation(mean))  # tasks of equally many rows had the same places drawn
    return interval(np.mean(means, axis=0))


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """The percentile interval (95%) of a figure that was drawn anew many times (resamples,)."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _drawn(rows: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each row was drawn, (resamples, rows), in blocks; the same for the same number of rows."""
    random = np.random.default_rng(0)
    size = max(1, BLOCK // rows)
    for start in range(0, resamples, size):
        number = min(size, resamples - start)
        places = random.integers(0, rows, size=(number, rows)) + rows * np.arange(number)[:, None]
        yield np.bincount(places.ravel(), minlength=number * rows).reshape(number, rows).astype(float)


def _accuracy(weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Each metric takes weights (resamples, rows) and gives (runs, resamples)."""
    return np.asarray((predictions == labels).astype(float) @ weights.T / weights.sum(axis=1))


def _f1(weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    both = ((predictions == 1) & (labels == 1)).astype(float) @ weights.T
    either = (predictions == 1).astype(float) @ weights.T + weights @ (labels == 1)
    return np.asarray(2 * both / np.maximum(either, 1))


def _matthews_correlation(weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gorodkin 2004, any number of classes; 0 where one side has one class only."""
    rows = weights.sum(axis=1)
    right = (predictions == labels).astype(float) @ weights.T
    agreement, of_predictions, of_labels = np.zeros_like(right), np.zeros_like(right), np.zeros_like(rows)
    for label in np.union1d(predictions, labels):
        predicted, true = (predictions == label).astype(float) @ weights.T, weights @ (labels == label)
        agreement += predicted * true
        of_predictions += predicted**2
        of_labels += true**2
    spread = (rows**2 - of_predictions) * (rows**2 - of_labels)
    return np.where(spread > 0, (right * rows - agreement) / np.sqrt(np.maximum(spread, 1)), 0.0)


def _pearson(weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    rows = weights.sum(axis=1)
    x, y = predictions - predictions.mean(axis=1, keepdims=True), labels - labels.mean()
    mean_x, mean_y = x @ weights.T / rows, weights @ y / rows
    together = (x * y) @ weights.T / rows - mean_x * mean_y
    spread = (x**2 @ weights.T / rows - mean_x**2) * (weights @ y**2 / rows - mean_y**2)
    return np.where(spread > 1e-24, together / np.sqrt(np.maximum(spread, 1e-24)), 0.0)


def _spearman(weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    true = _ranks(weights, labels)
    return np.stack([_correlations(weights, _ranks(weights, run), true) for run in predictions])


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ranks (resamples, rows) of values (rows,) of which each is there as often as it was drawn; ties share theirs."""
    order = np.argsort(values, kind="stable")
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes) - 1
    up_to = np.cumsum(weights[:, order], axis=1)[:, last]
    before = np.concatenate([np.zeros((len(weights), 1)), up_to[:, :-1]], axis=1)
    return np.asarray(((before + up_to + 1) / 2)[:, place])


def _correlations(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation in every resample, of (resamples, rows) each."""
    rows = weights.sum(axis=1, keepdims=True)
    x, y = (side - (weights * side).sum(axis=1, keepdims=True) / rows for side in (x, y))
    together, spread = (weights * x * y).sum(axis=1), (weights * x**2).sum(axis=1) * (weights * y**2).sum(axis=1)
    return np.where(spread > 1e-24, together / np.sqrt(np.maximum(spread, 1e-24)), 0.0)


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews_correlation,
    "pearson": _pearson,
    "spearman": _spearman,
}
