"""Studies of known truth: methods that predict the rows of dev sets as large as GLUE's.

Whether a row is right depends on how hard it is (the same for all methods), on how it suits the method (the same for
all its seeds), on the seed and on chance. Equal methods have equal scores on new rows and new seeds, exactly. Of a
regression the same parts make up the error of a row's number, and a seed makes all its errors larger or smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from peftbench.report import bootstrap
from peftbench.report.columns import Column
from peftbench.report.statistics import Paired

RESAMPLES = 300  # of the rows
LEVEL = 0.8  # share of rows that are right
HARDNESS = 1.0  # variance over rows, the unit of all other variances
ERROR = 0.5  # of a regression: standard deviation of the error of a hard row over that of the labels
HELD = 4_000_000  # predictions that are made at a time


@dataclass(frozen=True)
class Parts:
    """Variances of what decides whether a row is right beside its hardness: method x row, seed, method x row x seed."""

    suits: float
    seed: float
    chance: float

    @property
    def whole(self) -> float:
        """Standard deviation of all parts together."""
        return float((HARDNESS + self.suits + self.seed + self.chance) ** 0.5)


# Near docs/study, where two methods on MRPC differ by 2.0 points over seeds (here 2.1) and 1.0 over rows (here 0.9).
USUAL = Parts(0.12, 0.003, 0.15)
NEAR = Parts(0.01, 0.0002, 0.02)  # methods whose answers nearly agree


@dataclass(frozen=True)
class Task:
    """A dev set: its name, rows and metric, and the share of its rows that are of class 1."""

    name: str
    rows: int
    metric: str
    positive: float = 0.5

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return self.metric in ("pearson", "spearman")


TASKS = (
    Task("rte", 277, "accuracy"),
    Task("mrpc", 408, "accuracy", 0.68),
    Task("cola", 1043, "matthews_correlation", 0.69),
    Task("sst2", 872, "accuracy"),
    Task("wnli", 71, "accuracy", 0.44),
    Task("stsb", 1500, "pearson"),
    Task("qnli", 5463, "accuracy"),
    Task("mnli", 9815, "accuracy", 0.33),
)
METRICS = (TASKS[0], Task("mrpc", 408, "f1", 0.68), TASKS[2], TASKS[5], Task("400 rows of stsb", 400, "spearman"))


def columns(
    random: np.random.Generator, task: Task, seeds: int, ahead: np.ndarray, parts: Parts = USUAL
) -> Iterator[Column]:
    """One column of a table for every study, of the methods m0, m1, ...

    Studies that are made at a time share their labels, of which a score depends little, so that the package's own
    bootstrap takes them together.

    Args:
        ahead: by how many points of accuracy each method is right more often than `LEVEL` (studies, methods); of a
            regression all are equal.
    """
    size = max(1, HELD // (ahead.shape[1] * seeds * task.rows))
    for start in range(0, len(ahead), size):
        some = ahead[start : start + size]
        labels = random.random(task.rows)
        if not task.regression:
            labels = (labels < task.positive).astype(float)
        predictions = _predictions(random, labels, seeds, some, parts, task.regression)
        runs = predictions.reshape(-1, task.rows)
        scores = 100 * bootstrap.whole(task.metric, runs, labels).reshape(predictions.shape[:3])
        drawn = 100 * bootstrap.of_rows(task.metric, runs, labels, RESAMPLES)
        drawn = drawn.reshape(*predictions.shape[:3], RESAMPLES)
        yield from (_column(task, *study) for study in zip(scores, drawn, strict=True))


def _predictions(
    random: np.random.Generator, labels: np.ndarray, seeds: int, ahead: np.ndarray, parts: Parts, regression: bool
) -> np.ndarray:
    """(studies, methods, seeds, rows)."""
    (studies, methods), rows = ahead.shape, len(labels)
    of_rows = HARDNESS**0.5 * random.standard_normal((studies, 1, 1, rows), np.float32)
    of_rows = of_rows + parts.suits**0.5 * random.standard_normal((studies, methods, 1, rows), np.float32)
    of_seeds = parts.seed**0.5 * random.standard_normal((studies, methods, seeds, 1), np.float32)
    chance = parts.chance**0.5 * random.standard_normal((studies, methods, seeds, rows), np.float32)
    if regression:
        return np.asarray(labels + ERROR * labels.std() * np.exp(of_seeds) * (of_rows + chance))
    right = of_rows + of_seeds + chance > -parts.whole * stats.norm.ppf(LEVEL + ahead / 100)[..., None, None]
    return np.where(right, labels, 1 - labels)


def _column(task: Task, scores: np.ndarray, drawn: np.ndarray) -> Column:
    """A study's, from (methods, seeds) and (methods, seeds, resamples)."""
    return Column(
        task.name,
        {f"m{i}": {(seed, 0): float(one) for seed, one in enumerate(own)} for i, own in enumerate(scores)},
        {f"m{i}": {(seed, 0): one for seed, one in enumerate(own)} for i, own in enumerate(drawn)},
        task.rows,
    )


def pairs(
    random: np.random.Generator, task: Task, seeds: int, ahead: np.ndarray, parts: Parts = USUAL
) -> Iterator[Paired]:
    """The differences of two methods, the first of which is so many points ahead, in every study (studies,)."""
    for column in columns(random, task, seeds, np.stack([ahead, np.zeros(len(ahead))], axis=1), parts):
        paired = column.paired("m0", "m1")
        if paired is None:
            raise RuntimeError("two methods without a common seed")
        yield paired
