"""How often the intervals of scores over tasks hold the truth: simulated studies of known truth.

    python scripts/aggregates.py [--repeats 1000] [--seeds 3 4 5 10 20] [--tasks 3 8]

A method's scores on a task are normal over seeds. Tasks differ in their means (points from full fine-tuning) and in how
much seeds do, by sizes seen in the study under docs/study. The truth of an aggregate is that of 100,000 seeds. For the
probability of improvement two methods are equal, so that it is 50%.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from peftbench.report.aggregates import AGGREGATES, Bounded, aggregate, improvement

MEANS = (-3.0, -1.0, -0.3, -2.0, -0.5, 0.2, -1.5, -4.0)  # points, task by task
SPREADS = (2.0, 1.0, 0.3, 2.5, 1.0, 0.5, 0.2, 1.5)  # standard deviation over seeds


def scores(random: np.random.Generator, seeds: int, tasks: int) -> np.ndarray:
    """Scores (seeds, tasks) of one method."""
    return random.normal(MEANS[:tasks], SPREADS[:tasks], (seeds, tasks))


def holds(interval: Bounded, truth: float) -> bool:
    """Whether the interval holds the truth; one that is not given claims nothing."""
    return interval.low is None or interval.high is None or interval.low <= truth <= interval.high


def rate(values: list[bool]) -> str:
    """A share in percent with its 95% interval (Clopper and Pearson)."""
    low, high = proportion_confint(sum(values), len(values), method="beta")
    return f"{100 * np.mean(values):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def coverage(tasks: int, seeds: int, repeats: int) -> dict[str, list[bool]]:
    """Of every aggregate and of the probability of improvement, whether each study's interval holds the truth."""
    truths = {word: float(of(scores(np.random.default_rng(5), 100_000, tasks))) for word, of in AGGREGATES.items()}
    random = np.random.default_rng([tasks, seeds, 3])
    held: dict[str, list[bool]] = {word: [] for word in (*AGGREGATES, "improvement")}
    for _ in range(repeats):
        one, other = (scores(random, seeds, tasks) for _ in range(2))
        for word, of in AGGREGATES.items():
            held[word].append(holds(aggregate(one, of), truths[word]))
        held["improvement"].append(holds(improvement(list(zip(one.T, other.T, strict=True))), 0.5))
    return held


def lines(seeds: list[int], tasks: list[int], repeats: int) -> Iterator[str]:
    """The table, line by line."""
    yield f"| tasks | seeds | {' | '.join(AGGREGATES)} | improvement |"
    yield "|---:" * (3 + len(AGGREGATES)) + "|"
    for number in tasks:
        for count in seeds:
            held = coverage(number, count, repeats)
            yield f"| {number} | {count} | {' | '.join(rate(values) for values in held.values())} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="studies per line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5, 10, 20])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 8])
    options = parser.parse_args()
    for line in lines(options.seeds, options.tasks, options.repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
