"""Scores of a whole study put together: interquartile mean, performance profile, probability of improvement.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264, section
4), with its stratified bootstrap: a task is a stratum, and runs are drawn with replacement within it. The intervals
are of runs alone: the tasks are these, and so are their dev rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from peftbench.ground.errors import ConfigError
from peftbench.report import bootstrap
from peftbench.report.records import Study, repeated, tasks_alone
from peftbench.report.sheet import Sheet
from peftbench.report.table import apart

BASE = "full"  # what scores over tasks are relative to
RESAMPLES = 2000
LEAST_RUNS = 3  # of every task, for an interval
FEW_RUNS = 10  # below them intervals are seen to be too narrow: scripts/aggregates.py
CUT = 0.25  # of all runs, at either end


@dataclass(frozen=True)
class Bounded:
    """A figure with its 95% interval; `low` and `high` are None below three runs of a task."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparable:
    """Scores of several tasks on one scale.

    Attributes:
        scores: row of the table -> (runs, columns), of the runs that have every column.
        scale: what the numbers are.
        columns: the table's.
        relative: whether they are relative to full fine-tuning.
    """

    scores: dict[str, np.ndarray]
    scale: str
    columns: list[str]
    relative: bool


def comparable(rows: pd.DataFrame) -> Comparable:
    """Scores less the mean of full fine-tuning on the same task, in points; as they are where the study lacks it.

    Full fine-tuning counts where its row (of all labels, no prompt) has every column; its mean is taken as known. A
    seed (and split of few labels) counts where it has all columns. Several splits are the runs then, means over their
    seeds.

    Args:
        rows: as `table.apart` gives them.
    """
    if rows.empty:
        return Comparable({}, "", [], relative=False)
    rows = rows.dropna(subset=["score"])
    columns = tasks_alone(sorted(rows["column"].unique()))
    rows = rows[rows["column"].isin(columns)]
    base = rows[rows["name"] == BASE].groupby("column")["score"].mean()
    relative = len(base) == len(columns)
    less = rows["column"].map(base) if relative else 0.0
    runs = (
        rows.assign(comparable=rows["score"] - less)
        .pivot_table(index=["name", "seed", "split"], columns="column", values="comparable", sort=False)
        .reindex(columns=columns)
        .dropna()
    )
    scores = {str(name): repeated(same).to_numpy() for name, same in runs.groupby(level="name", sort=False)}
    return Comparable(scores, "points from full fine-tuning" if relative else "dev score (%)", columns, relative)


def sheet(study: Study) -> Sheet:
    """The aggregates of every row of the study's table that has all columns.

    Raises:
        ConfigError: no row has.
    """
    rows = apart(study)[0]
    together = comparable(rows)
    if not together.scores:
        raise ConfigError(
            f"study {study.name}: no row of its table has a run with every task, so nothing is put together"
        )
    head = ["method", *AGGREGATES, "runs of each task"]
    texts: list[list[str]] = []
    numbers: list[list[Any]] = [["method", "aggregate", "value", "low", "high", "runs", "tasks", "scale"]]
    for name, scores in together.scores.items():
        figures = {word: aggregate(scores, function) for word, function in AGGREGATES.items()}
        texts.append([name, *(in_words(figure, together.relative) for figure in figures.values()), str(len(scores))])
        numbers += [
            [name, word, figure.value, figure.low, figure.high, len(scores), len(together.columns), together.scale]
            for word, figure in figures.items()
        ]
    title = f"{study.name}: {', '.join(together.columns)} put together, {together.scale} [95% interval]"
    splits = rows.groupby("name")["split"].nunique().max() > 1
    return Sheet(title, head, texts, _notes(together, set(rows["name"]), splits), numbers)


def _notes(together: Comparable, names: set[str], splits: bool) -> list[str]:
    """What the figures are, what they are relative to, and what they do not say."""
    kept = np.mean([shares(scores) for scores in together.scores.values()], axis=0)
    parts = ", ".join(f"{100 * share:.0f}% {column}" for share, column in zip(kept, together.columns, strict=True))
    notes = [
        "IQM: mean of the middle half of all runs; median, mean: of the tasks' means; intervals: runs drawn anew "
        "within each task, from 3 runs on (Agarwal et al. 2021)",
        "relative to the mean of full on each task, which is taken as known"
        if together.relative
        else "full has not every task here, so these are dev scores in percent, whatever the metric",
        f"what IQM's middle half is of: {parts}",
        f"the intervals say what other seeds would change, not what others than these {len(kept)} tasks would",
    ]
    if min(len(scores) for scores in together.scores.values()) < FEW_RUNS:
        notes.append("with few runs these intervals are too narrow: about 80% of them hold with 3, 85% with 4")
    if splits:
        notes.append("with several splits of few labels a run is a split, the mean over its seeds")
    if left := sorted(names - together.scores.keys()):
        notes.append(f"left out, without a seed that has every task: {', '.join(left)}")
    return notes


def in_words(figure: Bounded, signed: bool) -> str:
    """63.1 [62.0, 64.2]; with a sign where it is a difference."""
    sign = "+" if signed else ""
    interval = "" if figure.low is None else f" [{figure.low:{sign}.1f}, {figure.high:{sign}.1f}]"
    return f"{figure.value:{sign}.1f}{interval}"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Of (..., runs, tasks) the mean without the lowest and the highest quarter of all runs of all tasks."""
    return np.asarray(stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), CUT, axis=-1))


def shares(scores: np.ndarray) -> np.ndarray:
    """The part (tasks,) that each task has in the runs (runs, tasks) whose mean the interquartile mean is."""
    tasks = scores.shape[1]
    cut = int(CUT * scores.size)
    kept = np.argsort(scores, axis=None, kind="stable")[cut : scores.size - cut]
    return np.bincount(kept % tasks, minlength=tasks) / len(kept)


def mean(scores: np.ndarray) -> np.ndarray:
    """Of (..., runs, tasks) the mean."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: np.ndarray) -> np.ndarray:
    """Of (..., runs, tasks) the median over tasks of the means over runs."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQM": interquartile_mean,
    "median": median,
    "mean": mean,
}


def aggregate(scores: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> Bounded:
    """One of `AGGREGATES`, or its like, with the interval of runs drawn anew within each task.

    Args:
        scores: (runs, tasks).
        function: of (..., runs, tasks), gives (...).
    """
    return _bounded(float(function(scores)), function(_drawn(scores)) if len(scores) >= LEAST_RUNS else None)


def profile(scores: np.ndarray, thresholds: Sequence[float]) -> list[Bounded]:
    """The share of runs that score above each threshold, every task with equal weight (the paper's equation 2).

    Args:
        scores: (runs, tasks).
        thresholds: on the scale of the scores.
    """
    drawn = _drawn(scores) if len(scores) >= LEAST_RUNS else None
    return [
        _bounded(float((scores > least).mean()), None if drawn is None else (drawn > least).mean(axis=(1, 2)))
        for least in thresholds
    ]


def improvement(tasks: Sequence[tuple[np.ndarray, np.ndarray]]) -> Bounded:
    """How often a run of the first scores above one of the second on the same task (the paper's equation 3).

    The mean over tasks of Mann and Whitney's share of all pairs of runs, equal scores by half. Nothing is compared
    across tasks, so metrics may differ. 1/2: neither is better. There is no interval below three runs of a task, nor
    where all pairs of every task agree: drawing these runs anew would change nothing, other runs might.

    Args:
        tasks: of each the scores of the first (runs,) and of the second (runs,); seeds are not matched.
    """
    every = [float(_above(first, second)) for first, second in tasks]
    value = float(np.mean(every))
    few = min(len(side) for both in tasks for side in both) < LEAST_RUNS
    if few or set(every) <= {0.0, 1.0}:
        return Bounded(value, None, None)
    random = np.random.default_rng(0)
    drawn = [_above(*(side[random.integers(0, len(side), (RESAMPLES, len(side)))] for side in both)) for both in tasks]
    return _bounded(value, np.mean(drawn, axis=0))


def _above(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of (..., runs) each, the share of pairs in which the first is higher, and half of the equal ones."""
    difference = first[..., :, None] - second[..., None, :]
    return np.asarray(((np.sign(difference) + 1) / 2).mean(axis=(-2, -1)))


def _drawn(scores: np.ndarray) -> np.ndarray:
    """Scores (RESAMPLES, runs, tasks) with the runs of every task drawn anew, each task by itself."""
    places = np.random.default_rng(0).integers(0, len(scores), (RESAMPLES, *scores.shape))
    return np.take_along_axis(scores[None], places, axis=1)


def _bounded(value: float, drawn: np.ndarray | None) -> Bounded:
    if drawn is None:
        return Bounded(value, None, None)
    return Bounded(value, *bootstrap.interval(drawn))
