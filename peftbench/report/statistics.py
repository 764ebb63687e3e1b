"""What the difference between two methods is worth: its error from seeds and dev rows, tests, what a design can show.

The runs of a row of a table are its seeds; each pair of runs of one seed gives one difference. Two things would
come out otherwise another time: the seeds, and the sentences of the dev set, which all seeds share. Their part in the
error of a mean difference is that of readers and cases in Obuchowski and Rockette 1995 ("Hypothesis testing of
diagnostic accuracy for multiple readers and multiple tests"). The part of few seeds has few degrees of freedom, the
part of many rows is as good as known; limits for such a sum are those of Howe 1974 ("Approximate confidence limits on
the mean of X + Y where X and Y are two tabled independent random variables"). One pair of degrees of freedom for the
sum (Hillis 2007) lets three seeds be wrong too often: scripts/verdicts.py.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.multitest import multipletests

ALPHA = 0.05
POWER = 0.8
MARGIN = 1.0  # points within which two methods count as equal
MOST_SEEDS = 1000
LEAST_P = 1e-30
LEAST_DRAWN = 6  # seeds: of 3, 4 and 5 drawn anew, 88, 91 and 92% of the intervals hold
LAST_BITS = 1e-9  # points by which equal scores may differ


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval, in points."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean difference in points, and the variance of its error, which is above 0.

    Attributes:
        mean: first less second.
        of_seeds: the variance that seeds (or tasks) bring in, estimated with `freedom` degrees.
        freedom: seeds less one, or what stands for it.
        of_rows: the variance that the dev rows bring in for all seeds alike.
    """

    mean: float
    of_seeds: float
    freedom: float
    of_rows: float = 0.0

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.of_seeds + self.of_rows)

    def half(self, tail: float) -> float:
        """How far from the mean the limit lies that the truth is beyond with this probability (Howe 1974)."""
        of_seeds, of_rows = special.stdtrit(self.freedom, tail), special.ndtri(tail)
        return math.sqrt(of_seeds**2 * self.of_seeds + of_rows**2 * self.of_rows)

    def _tail(self, distance: float) -> float:
        """The probability at whose limit this distance is, one side."""
        if distance <= 0:
            return 1 - self._tail(-distance) if distance else 0.5
        if distance >= self.half(LEAST_P):
            return LEAST_P
        logarithm = optimize.brentq(lambda p: self.half(math.exp(p)) - distance, math.log(LEAST_P), math.log(0.5))
        return math.exp(logarithm)

    def p(self) -> float:
        """Two-sided p of "no difference"."""
        return 2 * self._tail(abs(self.mean))

    def p_of_equality(self, margin: float) -> float:
        """p of "they differ by `margin` points or more": two one-sided tests (Schuirmann 1987), the larger p."""
        return self._tail(margin - abs(self.mean))

    def interval(self, level: float = 1 - ALPHA) -> Interval:
        """Both limits of the mean."""
        half = self.half((1 - level) / 2)
        return Interval(self.mean, self.mean - half, self.mean + half)

    def p_of_distance(self, margin: float) -> float:
        """Two-sided p of "they differ by `margin` points or less": below 5% where the 95% interval lies beyond it."""
        return min(1.0, 2 * self._tail(abs(self.mean) - margin))

    def equal_within(self, tests: float = 1) -> float:
        """The smallest margin within which these numbers show equality, as one of so many tests."""
        return abs(self.mean) + self.half(ALPHA / tests)

    def visible(self, tests: float = 1) -> float:
        """The smallest true difference that a study like this shows in four of five repetitions, as one of so many
        tests (half as many where they are one-sided). Too small in half of all studies and too large in the other half:
        see `unbiased`."""
        return smallest_shown(unbiased(self.of_seeds, self.freedom), self.freedom, self.of_rows, tests)


@dataclass(frozen=True)
class Paired:
    """Differences between two methods in points, first less second.

    Attributes:
        differences: of each seed (seeds,).
        resampled: the same with the dev rows drawn anew (seeds with predictions, resamples); None: none are stored.
        unit: what each difference is of: seeds, or splits of few labels, which stand in the place of seeds.
        without: the runs without predictions, in words, where others of the column have theirs.
    """

    differences: np.ndarray
    resampled: np.ndarray | None = None
    unit: str = "seeds"
    without: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """How many differences there are."""
        return len(self.differences)

    @property
    def drawn(self) -> np.ndarray | None:
        """What a crossed bootstrap draws from: `resampled`, where every seed has predictions and there are enough."""
        whole = self.resampled is not None and len(self.resampled) == self.seeds >= LEAST_DRAWN
        return self.resampled if whole else None

    @cached_property
    def mean(self) -> float:
        """The mean difference."""
        return float(self.differences.mean())

    @cached_property
    def of_seeds(self) -> float:
        """Variance of the mean that the seeds bring in, with what the rows do to each of them by itself."""
        flat = self.seeds < 2 or np.ptp(self.differences) < LAST_BITS
        return 0.0 if flat else float(self.differences.var(ddof=1)) / self.seeds

    @cached_property
    def of_rows(self) -> float:
        """Variance that the rows bring in for all seeds alike: the covariance of two seeds' differences."""
        if self.resampled is None or (stored := len(self.resampled)) < 2:
            return 0.0
        of_sum = float(self.resampled.sum(axis=0).var(ddof=1))
        of_each = float(self.resampled.var(axis=1, ddof=1).sum())
        return max(0.0, of_sum - of_each) / (stored * (stored - 1))

    @cached_property
    def estimate(self) -> Estimate | None:
        """The mean with its error; None where there is no noise to compare with: one seed, or all seeds alike."""
        known = self.of_seeds + self.of_rows > 0
        return Estimate(self.mean, self.of_seeds, self.seeds - 1, self.of_rows) if known else None

    def p(self) -> float:
        """Two-sided p of "no difference", before any correction; 1 for a single seed."""
        if self.estimate is not None:
            return self.estimate.p()
        return self._p_of_signs() if abs(self.mean) > LAST_BITS else 1.0

    def _p_of_signs(self) -> float:
        """Two-sided p of differences that are all alike: two arrangements of all their signs are as far out."""
        return min(1.0, 2 / 2**self.seeds)

    def p_of_equality(self, margin: float) -> float:
        """p of "they differ by `margin` points or more", before any correction; 1 for a single seed."""
        if self.estimate is not None:
            return self.estimate.p_of_equality(margin)
        return self._p_of_signs() if abs(self.mean) < margin else 1.0

    def p_of_distance(self, margin: float) -> float:
        """Two-sided p of "they differ by `margin` points or less", before any correction; 1 for a single seed."""
        if self.estimate is not None:
            return self.estimate.p_of_distance(margin)
        return self._p_of_signs() if abs(self.mean) > margin else 1.0

    def p_of_side(self, margin: float) -> float:
        """p of what a claim of equality is tested against, on the side of the margin where the mean lies."""
        return self.p_of_equality(margin) if abs(self.mean) < margin else self.p_of_distance(margin)

    def seeds_needed(self, tests: int = 1) -> float | None:
        """Seeds at which a difference of this size shows in four of five repetitions, as `_least` counts them; None: it
        cannot be said."""

        def shows(of_seeds: float, freedom: float) -> bool:
            return abs(self.mean) >= smallest_shown(of_seeds, freedom, self.of_rows, tests)

        return self._least(shows) if self.mean else None

    def seeds_for_equality(self, margin: float, tests: int = 1) -> float | None:
        """The same for equality within `margin`, where the methods are truly equal."""

        def shows(of_seeds: float, freedom: float) -> bool:
            return power_of_equality(of_seeds, freedom, self.of_rows, margin, tests) >= POWER

        return self._least(shows)

    def _least(self, shows: Callable[[float, float], bool]) -> float | None:
        """The least number of seeds that show something; above `MOST_SEEDS` where these do not, infinity where the
        rows' part of the error alone is too large; None where there is no noise to go by.

        Args:
            shows: whether so large a variance from seeds with so many degrees of freedom does.
        """
        if self.estimate is None:
            return None
        if not shows(0.0, MOST_SEEDS):
            return math.inf
        spread = unbiased(self.of_seeds, self.seeds - 1) * self.seeds
        tried = range(2, MOST_SEEDS + 1)
        return tried.start + bisect.bisect_left(tried, True, key=lambda seeds: shows(spread / seeds, seeds - 1))


def of_mean(values: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float] | None:
    """The 95% t-interval of the mean of some seeds' scores, cut where no score can be (scipy).

    None: there is no noise to compare with, as of a single value or of equal ones. Of three values drawn anew the
    percentile interval is theirs, from the lowest to the highest, and holds in 75 of 100 cases.
    """
    if len(values) < 2 or np.ptp(values) < 1e-9:  # equal scores may differ in their last bit
        return None
    low, high = stats.t.interval(1 - ALPHA, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    return max(float(low), limits[0]), min(float(high), limits[1])


def smallest_shown(of_seeds: float, freedom: float, of_rows: float = 0.0, tests: float = 1) -> float:
    """The smallest true difference that a design shows in four of five repetitions.

    Args:
        of_seeds, freedom, of_rows: as of `Estimate`, the true variances.
        tests: in the family of which it is one; half as many where they are one-sided.
    """
    whole = of_seeds + of_rows
    return math.sqrt(whole) * detectable(freedom, ALPHA / tests, of_seeds / whole) if whole else 0.0


def power_of_equality(of_seeds: float, freedom: float, of_rows: float, margin: float, tests: float = 1) -> float:
    """How often a design shows that equal methods differ by less than `margin`: the power of two one-sided tests.

    Args:
        of_seeds, freedom, of_rows, tests: as of `smallest_shown`.
    """
    estimated = of_seeds * estimated_over_true(freedom)
    tail = ALPHA / tests
    half = np.sqrt(special.stdtrit(freedom, tail) ** 2 * estimated + special.ndtri(tail) ** 2 * of_rows)
    within = (margin - half) / max(math.sqrt(of_seeds + of_rows), LAST_BITS)
    return float(np.maximum(0.0, 2 * special.ndtr(within) - 1).mean())


def estimated_over_true(freedom: float) -> np.ndarray:
    """1000 equally likely values of an estimated variance over the true one (1000,)."""
    return np.asarray(stats.chi2.ppf((np.arange(1000) + 0.5) / 1000, freedom) / freedom)


def unbiased(variance: float, freedom: float) -> float:
    """The variance that is as often too large as too small; one estimated from 3 seeds is too small in 63% of studies.

    That of normal differences over its truth is chi-square over its degrees, whose median is below 1.
    """
    return variance * freedom / float(special.chdtri(freedom, 0.5))


def detectable(degrees: float, alpha: float, share: float = 1.0) -> float:
    """The true difference, in standard errors, that a two-sided test sees with power 80%.

    scipy's noncentral t (and statsmodels' power with it) has no numbers for few degrees and a strict level, so the
    power is the normal's, averaged over 1000 values of the estimated variance.

    Args:
        degrees: with which the seeds' part of the variance is estimated.
        alpha: level of the test, both sides.
        share: the seeds' part.
    """
    return _detectable(float(f"{degrees:.2g}"), alpha, round(share, 2))


@lru_cache(maxsize=100_000)
def _detectable(degrees: float, alpha: float, share: float) -> float:
    variances = estimated_over_true(degrees)
    of_seeds, of_rows = special.stdtrit(degrees, alpha / 2) ** 2, special.ndtri(alpha / 2) ** 2
    needed = np.sqrt(of_seeds * share * variances + of_rows * (1 - share))
    return float(
        optimize.brentq(lambda effect: special.ndtr(effect - needed).mean() - POWER, 0, 2 * needed.max(), rtol=1e-4)
    )


def holm(p_values: Sequence[float], tests: int = 0) -> list[float]:
    """Holm's correction (statsmodels).

    Args:
        p_values: those that are known.
        tests: how many the family has, where some are not known yet: these count as 1.
    """
    every = [*p_values, *[1.0] * (tests - len(p_values))]
    return [float(p) for p in multipletests(every, method="holm")[1]][: len(p_values)] if p_values else []
