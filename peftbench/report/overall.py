"""Every pair of rows over all tasks: whether one is better in the mean, in both readings of a mean over tasks."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from peftbench.ground.quantity import quantity
from peftbench.report import over_tasks
from peftbench.report.columns import Column, by_task
from peftbench.report.statistics import MARGIN, Estimate, Interval, Paired, holm
from peftbench.report.verdict import Verdict, word_of

Pair = tuple[str, str]
Tasks = Mapping[str, Paired]
Mean = tuple[Estimate, Interval | None, Tasks]  # the same with seeds and rows drawn anew; what it is of


def matrix(columns: Sequence[Column], margin: float = MARGIN) -> list[Verdict]:
    """The verdict on every pair of rows that has runs on all tasks: over these tasks, then over all tasks like these.

    Each reading is one family of tests. Below two tasks there is nothing to take a mean of. In a `Verdict` of these,
    tasks stand in the place of seeds.
    """
    alone = by_task(columns)
    if len(alone) < 2:
        return []
    fixed: dict[Pair, Mean] = {}
    random: dict[Pair, Mean] = {}
    for first, second in itertools.combinations(_in_order(alone), 2):
        tasks = {column.name: both for column in alone if (both := column.paired(first, second)) is not None}
        together = over_tasks.combine(tasks) if len(tasks) == len(alone) else None
        if together is not None and together.fixed is not None:
            fixed[first, second] = together.fixed, together.drawn, tasks
        if together is not None and together.random is not None:
            random[first, second] = together.random, None, tasks
    number = len(alone)
    return [
        *_judged(fixed, f"mean of these {number} tasks", "t-test of the tasks' mean, each with its own noise", margin),
        *_judged(random, "mean over all tasks like these", "t-test of a mixed model, tasks drawn at random", margin),
    ]


def _in_order(columns: Sequence[Column]) -> list[str]:
    """The rows that every column has, the best mean first."""
    rows = [name for name in columns[0].scores if all(name in column.scores for column in columns)]
    means = {name: np.mean([np.mean(list(column.scores[name].values())) for column in columns]) for name in rows}
    return sorted(means, key=lambda name: -means[name])


def _judged(pairs: Mapping[Pair, Mean], name: str, test: str, margin: float) -> list[Verdict]:
    """One family."""
    p_values = holm([estimate.p() for estimate, *_ in pairs.values()])
    p_of_equal = holm([estimate.p_of_equality(margin) for estimate, *_ in pairs.values()])
    family = f"{quantity(len(pairs), 'pair')} in the {name}"
    return [
        Verdict(
            first, second, name, len(tasks), "tasks", sum(task.mean > 0 for task in tasks.values()), None,
            estimate.mean, estimate.interval(), drawn, p, p_of_equality, word_of(estimate.mean, p, p_of_equality),
            margin, estimate.visible(len(pairs)), test, family, len(pairs),
        )
        for ((first, second), (estimate, drawn, tasks)), p, p_of_equality in zip(
            pairs.items(), p_values, p_of_equal, strict=True
        )
    ]  # fmt: skip
