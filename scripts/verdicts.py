"""How often each verdict is wrong, and how often it is given where it should be: simulated studies of known truth.

    python scripts/verdicts.py [--repeats 1000] [--seeds 3 5 8 20] [--tasks 1 3 8]

Two methods predict the rows of GLUE's dev sets. Whether a row is right depends on how hard it is (the same for both
methods), on how it suits the method (the same for all its seeds), on the seed and on chance. The parts are near those
of the study under docs/study, where the difference of two methods on MRPC spreads over seeds by 2.0 points (here 2.1)
and over rows by 1.0 (here 0.9). Equal methods have equal scores on new rows and new seeds, exactly. Everything after
the predictions is the package's own: `columns`, `verdict`, `over_tasks`.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from peftbench.report import bootstrap, over_tasks, verdict
from peftbench.report.statistics import ALPHA, Estimate, Paired

RESAMPLES = 300  # of the rows
LEVEL = 0.8  # share of rows that are right
# Variances of what decides whether a row is right: its hardness, method x row, seed, method x row x seed.
HARDNESS, SUITS, SEED, CHANCE = 1.0, 0.12, 0.003, 0.15
TOTAL = (HARDNESS + SUITS + SEED + CHANCE) ** 0.5


@dataclass(frozen=True)
class Task:
    """A dev set: its name, rows and metric, and the standard deviation of its labels' share (of class 1)."""

    name: str
    rows: int
    metric: str
    positive: float


TASKS = (
    Task("rte", 277, "accuracy", 0.5),
    Task("mrpc", 408, "accuracy", 0.68),
    Task("cola", 1043, "matthews_correlation", 0.69),
    Task("sst2", 872, "accuracy", 0.5),
    Task("wnli", 71, "accuracy", 0.44),
    Task("stsb", 1500, "accuracy", 0.5),
    Task("qnli", 5463, "accuracy", 0.5),
    Task("mnli", 9815, "accuracy", 0.33),
)


def study(random: np.random.Generator, task: Task, seeds: int, ahead: float = 0.0) -> Paired:
    """The differences of two methods, the first of which is right on `ahead` points more rows in the long run."""
    labels = (random.random(task.rows) < task.positive).astype(float)
    hardness = random.normal(0, HARDNESS**0.5, task.rows)
    sides = []
    for points in (ahead, 0.0):
        suits = hardness + random.normal(0, SUITS**0.5, task.rows)
        noise = random.normal(0, SEED**0.5, (seeds, 1)) + random.normal(0, CHANCE**0.5, (seeds, task.rows))
        right = suits + noise > -TOTAL * stats.norm.ppf(LEVEL + points / 100)
        sides.append(np.where(right, labels, 1 - labels))
    predictions = np.concatenate(sides)
    scores = 100 * bootstrap.whole(task.metric, predictions, labels)
    resampled = 100 * bootstrap.of_rows(task.metric, predictions, labels, RESAMPLES)
    return Paired(scores[:seeds] - scores[seeds:], resampled[:seeds] - resampled[seeds:])


def judged(pairs: dict[str, Paired], margin: float = 1.0) -> list[verdict.Verdict]:
    """The verdicts of `peftbench compare` on the tasks of one comparison."""
    return verdict.judge({("a", "b", task): paired for task, paired in pairs.items()}, "tasks", margin)


def true_visible(task: Task, seeds: int, tests: int) -> float:
    """The smallest difference that shows with 80% power, from the true parts of the error (of 2000 seeds)."""
    random = np.random.default_rng(1)
    pilots = [study(random, task, 50) for _ in range(40)]
    of_seeds = float(np.mean([pilot.of_seeds * 50 for pilot in pilots])) / seeds
    of_rows = float(np.mean([pilot.of_rows for pilot in pilots]))
    return Estimate(0.0, of_seeds, seeds - 1, of_rows).visible(tests)


def errors(random: np.random.Generator, tasks: int, seeds: int, spread: float = 2.0) -> dict[str, bool]:
    """One study of equal methods: which verdicts are wrong. For the mean over all tasks like these, the methods differ
    on every task, by `spread` points in standard deviation, and not in the mean over tasks."""
    pairs = {task.name: study(random, task, seeds) for task in TASKS[:tasks]}
    wrong = {"ahead or behind on any task": any(item.word in ("ahead", "behind") for item in judged(pairs))}
    if tasks == 1:
        apart = {task.name: study(random, task, seeds, 1.0) for task in TASKS[:1]}
        return wrong | {"tied, 1 point apart": judged(apart)[0].word == "tied"}
    together = over_tasks.combine(pairs)
    if together is None or together.fixed is None or together.interaction is None:
        raise RuntimeError("a simulated study without noise")
    wrong |= {"depends on the task": together.interaction < ALPHA, "mean of these tasks": together.fixed.p() < ALPHA}
    differ = {task.name: study(random, task, seeds, random.normal(0, spread)) for task in TASKS[:tasks]}
    other = over_tasks.combine(differ)
    return wrong | {"mean over all tasks": bool(other and other.random and other.random.p() < ALPHA)}


def shows(random: np.random.Generator, task: Task, seeds: int, tests: int, size: float) -> tuple[bool, float]:
    """One study with a true difference: whether it is seen as one of `tests`, and what the design said it would see."""
    paired = study(random, task, seeds, size)
    if paired.estimate is None:
        raise RuntimeError("a simulated study without noise")
    return paired.mean > 0 and paired.p(tests) < ALPHA / tests, paired.estimate.visible(tests)


def rate(values: list[bool]) -> str:
    """A share in percent with its 95% interval (Clopper and Pearson)."""
    low, high = proportion_confint(sum(values), len(values), method="beta")
    return f"{100 * np.mean(values):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def false_positives(tasks: int, seeds: int, repeats: int) -> dict[str, list[bool]]:
    """Every verdict's errors over many studies."""
    random = np.random.default_rng([tasks, seeds, 11])
    every = [errors(random, tasks, seeds) for _ in range(repeats)]
    return {name: [one[name] for one in every] for name in every[0]}


def power(task: Task, seeds: int, tests: int, repeats: int) -> tuple[float, list[bool], float]:
    """A difference of the size that shows in four of five repetitions, how often it did, and the size said (median)."""
    size, random = true_visible(task, seeds, tests), np.random.default_rng([seeds, tests, 7])
    every = [shows(random, task, seeds, tests, size) for _ in range(repeats)]
    return size, [seen for seen, _ in every], float(np.median([said for _, said in every]))


def lines(seeds: list[int], tasks: list[int], repeats: int) -> Iterator[str]:
    """The tables, line by line."""
    yield "| verdict | tasks | seeds | wrong, % |"
    yield "|---|---:|---:|---:|"
    for number in tasks:
        for count in seeds:
            for name, values in false_positives(number, count, repeats if number < 8 else repeats // 2).items():
                yield f"| {name} | {number} | {count} | {rate(values)} |"
    yield ""
    yield "| task | seeds | tests | difference, points | shown, % | the design said, points |"
    yield "|---|---:|---:|---:|---:|---:|"
    for task in TASKS[:2]:
        for count in seeds:
            for tests in (1, 3):
                size, seen, said = power(task, count, tests, repeats)
                yield f"| {task.name} | {count} | {tests} | {size:.1f} | {rate(seen)} | {said:.1f} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="studies per line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8, 20])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 3, 8])
    options = parser.parse_args()
    for line in lines(options.seeds, options.tasks, options.repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
