"""What a difference between methods is worth: intervals, paired tests, how many seeds a claim needs."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two methods over the same seeds and tasks.

    Attributes:
        task: a task, or "all" of them together.
        pairs: (task, seed) pairs that both have.
        difference: mean of first less second, in points.
        interval: bootstrap interval of that mean; None below 3 pairs.
        p: of the paired permutation test (all sign flips where there are few pairs), Holm-corrected over the tasks.
        improvement: share of pairs in which the first is better, ties counted half.
        seeds_needed: pairs at which a difference of this size shows in four of five repetitions; None: not
            estimable, or beyond any study.
    """

    task: str
    pairs: int
    difference: float
    interval: Interval | None
    p: float | None
    improvement: float
    seeds_needed: int | None


def bootstrap(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """The mean over seeds and its percentile bootstrap interval (scipy); None below 3 values."""
    if len(values) < 3:
        return None
    mean = float(np.mean(values))
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (np.asarray(values),), np.mean, confidence_level=level, method="percentile", rng=np.random.default_rng(0)
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of a paired permutation test (scipy): how often flipped signs give as large a mean.

    With n pairs it cannot fall below 2 / 2^n; None below 2 pairs.
    """
    if len(differences) < 2:
        return None
    result = stats.permutation_test(
        (np.asarray(differences), np.zeros(len(differences))),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (statsmodels)."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Pairs at which a paired t-test of level 5% sees a difference of this size with power 80% (statsmodels)."""
    if len(differences) < 2 or np.ptp(differences) == 0 or np.mean(differences) == 0:
        return None
    effect = abs(float(np.mean(differences))) / float(np.std(differences, ddof=1))
    if effect < 0.01:  # over 78,000 pairs: nobody runs so many
        return None
    needed = float(np.max(TTestPower().solve_power(effect_size=min(effect, 5.0), alpha=ALPHA, power=POWER, nobs=None)))
    return max(2, math.ceil(needed)) if math.isfinite(needed) else None


def compare(scores: Mapping[str, Mapping[tuple[str, Any], float]], first: str, second: str) -> list[Comparison]:
    """Two methods, task by task and over all tasks.

    Args:
        scores: method -> (task, seed, with few labels (seed, split)) -> percent.
    """
    both = sorted(scores[first].keys() & scores[second].keys())
    tasks = sorted({task for task, _ in both})
    groups = {task: [pair for pair in both if pair[0] == task] for task in tasks}
    if len(tasks) > 1:
        groups["all"] = both
    differences = {
        task: [scores[first][pair] - scores[second][pair] for pair in pairs] for task, pairs in groups.items()
    }
    raw = {task: paired_p(values) for task, values in differences.items()}
    tested = [task for task in tasks if raw[task] is not None]
    corrected = dict(zip(tested, holm([p for task in tested if (p := raw[task]) is not None]), strict=True))
    return [
        Comparison(
            task,
            len(values),
            float(np.mean(values)),
            bootstrap(values),
            corrected.get(task, raw[task]),
            float(np.mean([0.5 if value == 0 else float(value > 0) for value in values])),
            seeds_needed(values),
        )
        for task, values in differences.items()
    ]


def not_beaten(scores: Mapping[str, Sequence[float]]) -> set[str]:
    """Rows of one column that the best row does not beat outside the noise: Welch's t-test at 5%, Holm-corrected.

    Rows with one seed are left out: how noisy they are is not known.
    """
    known = {name: values for name, values in scores.items() if len(values) > 1}
    if not known:
        return set()
    best = max(known, key=lambda name: float(np.mean(known[name])))
    others = [name for name in known if name != best]
    p_values = holm([_welch(known[best], known[name]) for name in others])
    return set(known) - {name for name, p in zip(others, p_values, strict=True) if p < ALPHA}


def _welch(one: Sequence[float], other: Sequence[float]) -> float:
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return float(np.mean(one) == np.mean(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly equal seeds: the p-value is as small as it looks
        return float(stats.ttest_ind(one, other, equal_var=False).pvalue)
