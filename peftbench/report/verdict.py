"""Whether one method beats another on a task: a word, the numbers behind it, and what the design could have shown."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from peftbench.report import bootstrap
from peftbench.report.columns import Column
from peftbench.report.statistics import ALPHA, MARGIN, Interval, Paired, holm

Word = Literal["ahead", "behind", "tied", "not decided"]


@dataclass(frozen=True)
class Verdict:
    """Two methods on one column of a study's table; a difference is first less second, in points.

    Attributes:
        first, second: rows of the table.
        column: of the table, or what several of them were combined to.
        seeds: how many differences there are: one for each seed that both have, or each split of few labels.
        unit: which of these; better: in how many of them the first is better.
        rows: dev rows that the test knows of; None: seeds alone.
        difference: mean over seeds.
        interval: 95% interval of the test, not corrected for the family; None where the noise is not known.
        drawn: the crossed bootstrap's, seeds and rows drawn anew; None without all predictions or below six seeds.
        p: of "no difference", corrected by Holm over the family; 1 for a single seed.
        p_of_equality: of "they differ by the margin or more", likewise.
        word: ahead or behind: p is below 5%; tied: equal within the margin at 5%; else not decided.
        margin: points within which two methods count as equal.
        visible: the smallest difference that this design shows in four of five repetitions, as one of its family;
            None where the noise is not known.
        test: what was used.
        family: what was corrected for, a noun in the plural; tests: how many of these, without pairs of a single seed.
    """

    first: str
    second: str
    column: str
    seeds: int
    unit: str
    better: int
    rows: int | None
    difference: float
    interval: Interval | None
    drawn: Interval | None
    p: float
    p_of_equality: float
    word: Word
    margin: float
    visible: float | None
    test: str
    family: str
    tests: int


def judge(
    pairs: Mapping[tuple[str, str, str], Paired],
    family: str,
    margin: float = MARGIN,
    rows: Mapping[str, int] | None = None,
    planned: int = 0,
) -> list[Verdict]:
    """The verdict on every pair, all of them one family, and all their verdicts of equality another.

    Args:
        pairs: (first, second, column) -> differences.
        family: what the pairs are, a noun in the plural.
        margin: points within which two methods count as equal.
        rows: column -> how many dev rows it has.
        planned: how many tests there will be, where some have no runs yet.
    """
    tested = [key for key, paired in pairs.items() if paired.seeds > 1]
    tests = max(len(tested), planned)
    p_values = dict(zip(tested, holm([pairs[key].p() for key in tested], tests), strict=True))
    p_of_equal = dict(zip(tested, holm([pairs[key].p_of_equality(margin) for key in tested], tests), strict=True))
    verdicts = []
    for (first, second, column), paired in pairs.items():
        p, p_of_equality = (known.get((first, second, column), 1.0) for known in (p_values, p_of_equal))
        estimate = paired.estimate
        drawn = None if paired.drawn is None else bootstrap.crossed(paired.drawn)
        verdicts.append(
            Verdict(
                first, second, column, paired.seeds, paired.unit, int((paired.differences > 0).sum()),
                None if paired.resampled is None else (rows or {}).get(column),
                paired.mean,
                estimate.interval() if estimate else None,
                Interval(paired.mean, *drawn) if drawn else None,
                p, p_of_equality, word_of(paired.mean, p, p_of_equality), margin,
                estimate.visible(tests) if estimate else None,
                test_of(paired), family, tests,
            )
        )  # fmt: skip
    return verdicts


def word_of(difference: float, p: float, p_of_equality: float) -> Word:
    """The verdict: a difference that is shown counts first, then equality that is shown."""
    if p < ALPHA and difference:
        return "ahead" if difference > 0 else "behind"
    return "tied" if p_of_equality < ALPHA else "not decided"


def test_of(paired: Paired) -> str:
    """What p, the interval and equality come from, in words: signs where all differences are alike, else a t-test."""
    if paired.seeds < 2:
        return "no test"
    if paired.estimate is None:
        return f"flipped signs over {paired.unit} alone"
    return f"paired t-test over {paired.unit} {'alone' if paired.resampled is None else 'and dev rows'}"


def matrix(columns: Sequence[Column], margin: float = MARGIN) -> list[Verdict]:
    """Every pair of rows in every column, each column one family; the first of a pair has the better mean."""
    verdicts = []
    for column in columns:
        means = {name: float(np.mean(list(seeds.values()))) for name, seeds in column.scores.items()}
        order = sorted(means, key=lambda name: -means[name])
        pairs = {
            (first, second, column.name): paired
            for first, second in itertools.combinations(order, 2)
            if (paired := column.paired(first, second)) is not None
        }
        verdicts += judge(pairs, f"pairs in {column.name}", margin, {column.name: column.rows or 0})
    return verdicts


@dataclass(frozen=True)
class Contest:
    """The rows of a column that may be its best.

    Attributes:
        rows: those of at least two seeds that no other row is shown to be better than: the truly best one is among
            them with 95% probability (Hsu 1984, "Constrained simultaneous confidence intervals for multiple
            comparisons with the best"; each row is tested once against all others, one-sided, by Bonferroni).
        worse: those that another row is shown to be better than, on the seeds that both have.
        tests: what was used.
        visible: the difference in points that a pair of rows shows in four of five repetitions (median of the pairs).
    """

    rows: set[str]
    worse: set[str]
    tests: list[str]
    visible: float | None


def contenders(column: Column) -> Contest:
    """Which rows of a column may be its best."""
    paired = {
        (first, second): both
        for first, second in itertools.combinations(column.scores, 2)
        if (both := column.paired(first, second)) is not None and both.seeds > 1
    }
    rows = {name for pair in paired for name in pair}
    others = max(1, len(rows) - 1)
    worse = {
        second if both.mean > 0 else first
        for (first, second), both in paired.items()
        if both.mean and both.p() / 2 * others < ALPHA
    }
    tests = list(dict.fromkeys(test_of(both) for both in paired.values()))
    visible = [both.estimate.visible(others / 2) for both in paired.values() if both.estimate]
    return Contest(rows - worse, worse, tests, float(np.median(visible)) if visible else None)
