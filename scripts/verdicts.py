"""How often each verdict is wrong, and how often it is given where it should be: simulated studies of known truth.

    python scripts/verdicts.py [--repeats 1000] [--seeds 3 5 8 20] [--tasks 1 3 8] [--methods 2 8]

Methods predict the rows of GLUE's dev sets. Whether a row is right depends on how hard it is (the same for all
methods), on how it suits the method (the same for all its seeds), on the seed and on chance. The parts are near those
of the study under docs/study, where the difference of two methods on MRPC spreads over seeds by 2.0 points (here 2.1)
and over rows by 1.0 (here 0.9). Equal methods have equal scores on new rows and new seeds, exactly. Everything after
the predictions is the package's own: `columns`, `verdict`, `over_tasks`, and `table` for the marks.

Four tables: how often a verdict is wrong; how often a difference is shown that the design says it shows; the same for
means over tasks; and how often the method that is truly best of several is not marked.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from peftbench.report import bootstrap, over_tasks, table, verdict
from peftbench.report.columns import Column
from peftbench.report.statistics import ALPHA, Paired, smallest_shown

RESAMPLES = 300  # of the rows
LEVEL = 0.8  # share of rows that are right
# Variances of what decides whether a row is right: its hardness, method x row, seed, method x row x seed.
HARDNESS, SUITS, SEED, CHANCE = 1.0, 0.12, 0.003, 0.15
TOTAL = (HARDNESS + SUITS + SEED + CHANCE) ** 0.5
SPREAD = 2.0  # points by which the true difference varies over tasks, as a standard deviation
THESE, ALL = "mean of these tasks", "mean over all tasks"


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


def column(random: np.random.Generator, task: Task, seeds: int, ahead: Sequence[float]) -> Column:
    """One task's scores of methods that are right on so many points more rows in the long run than `LEVEL`."""
    labels = (random.random(task.rows) < task.positive).astype(float)
    hardness = random.normal(0, HARDNESS**0.5, task.rows)
    sides = []
    for points in ahead:
        suits = hardness + random.normal(0, SUITS**0.5, task.rows)
        noise = random.normal(0, SEED**0.5, (seeds, 1)) + random.normal(0, CHANCE**0.5, (seeds, task.rows))
        right = suits + noise > -TOTAL * stats.norm.ppf(LEVEL + points / 100)
        sides.append(np.where(right, labels, 1 - labels))
    predictions = np.concatenate(sides)
    scores = 100 * bootstrap.whole(task.metric, predictions, labels)
    resampled = 100 * bootstrap.of_rows(task.metric, predictions, labels, RESAMPLES)
    rows = {f"m{number}": range(number * seeds, (number + 1) * seeds) for number in range(len(ahead))}
    return Column(
        task.name,
        {name: {(seed, 0): float(scores[place]) for seed, place in enumerate(own)} for name, own in rows.items()},
        {name: {(seed, 0): resampled[place] for seed, place in enumerate(own)} for name, own in rows.items()},
        task.rows,
    )


def study(random: np.random.Generator, task: Task, seeds: int, ahead: float = 0.0) -> Paired:
    """The differences of two methods, the first of which is `ahead`."""
    paired = column(random, task, seeds, (ahead, 0.0)).paired("m0", "m1")
    if paired is None:
        raise RuntimeError("two methods without a common seed")
    return paired


def judged(pairs: dict[str, Paired], margin: float = 1.0) -> list[verdict.Verdict]:
    """The verdicts of `peftbench compare` on the tasks of one comparison."""
    return verdict.judge({("a", "b", task): paired for task, paired in pairs.items()}, "tasks", margin)


@cache
def true_parts(task: Task) -> tuple[float, float]:
    """The variance of one seed's difference and that which the rows bring in for all seeds (from 2000 seeds)."""
    random = np.random.default_rng(1)
    pilots = [study(random, task, 50) for _ in range(40)]
    of_one_seed = float(np.mean([pilot.of_seeds * 50 for pilot in pilots]))
    return of_one_seed, float(np.mean([pilot.of_rows for pilot in pilots]))


def true_visible(task: Task, seeds: int, tests: int) -> float:
    """The smallest difference that shows with 80% power, from the true parts of the error."""
    of_one_seed, of_rows = true_parts(task)
    return smallest_shown(of_one_seed / seeds, seeds - 1, of_rows, tests)


def true_visible_means(tasks: Sequence[Task], seeds: int) -> dict[str, float]:
    """The same for the mean of these tasks, and for that of all tasks like these, which differ by `SPREAD` points."""
    parts = [true_parts(task) for task in tasks]
    of_seeds, of_rows = (sum(values) / len(tasks) ** 2 for values in zip(*parts, strict=True))
    squares = sum((of_one / seeds / len(tasks) ** 2) ** 2 for of_one, _ in parts) / (seeds - 1)
    freedom = (of_seeds / seeds) ** 2 / squares  # Satterthwaite 1946
    of_tasks = SPREAD**2 / len(tasks) + of_seeds / seeds + of_rows
    return {
        THESE: smallest_shown(of_seeds / seeds, freedom, of_rows),
        ALL: smallest_shown(of_tasks, len(tasks) - 1),
    }


def errors(random: np.random.Generator, tasks: int, seeds: int) -> dict[str, bool]:
    """One study of equal methods: which verdicts are wrong. For the mean over all tasks like these, the methods differ
    on every task, by `SPREAD` points in standard deviation, and not in the mean over tasks."""
    pairs = {task.name: study(random, task, seeds) for task in TASKS[:tasks]}
    wrong = {"ahead or behind on any task": any(item.word in ("ahead", "behind") for item in judged(pairs))}
    if tasks == 1:
        apart = {task.name: study(random, task, seeds, 1.0) for task in TASKS[:1]}
        return wrong | {"tied, 1 point apart": judged(apart)[0].word == "tied"}
    together = over_tasks.combine(pairs)
    if together is None or together.fixed is None or together.interaction is None:
        raise RuntimeError("a simulated study without noise")
    wrong |= {"depends on the task": together.interaction < ALPHA, THESE: together.fixed.p() < ALPHA}
    return wrong | {ALL: _shown(differing(random, TASKS[:tasks], seeds, 0.0), "random")}


def differing(
    random: np.random.Generator, tasks: Sequence[Task], seeds: int, mean: float
) -> over_tasks.OverTasks | None:
    """One study of methods whose difference varies over tasks about this mean."""
    return over_tasks.combine({task.name: study(random, task, seeds, random.normal(mean, SPREAD)) for task in tasks})


def _shown(together: over_tasks.OverTasks | None, reading: str) -> bool:
    """Whether a mean over tasks is shown to be another than 0."""
    estimate = getattr(together, reading, None)
    if estimate is None:
        raise RuntimeError("a simulated study without noise")
    return bool(estimate.p() < ALPHA)


def shows(random: np.random.Generator, task: Task, seeds: int, tests: int, size: float) -> tuple[bool, float]:
    """One study with a true difference: whether it is seen as one of `tests`, and what the design said it would see."""
    paired = study(random, task, seeds, size)
    if paired.estimate is None:
        raise RuntimeError("a simulated study without noise")
    return paired.mean > 0 and paired.p() < ALPHA / tests, paired.estimate.visible(tests)


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


def power_of_means(number: int, seeds: int, repeats: int) -> dict[str, tuple[float, list[bool]]]:
    """For both means over tasks a difference of the size that shows in four of five repetitions, and how often it
    did. All tasks are scored by accuracy: its points are those by which a method is ahead."""
    tasks = [replace(task, metric="accuracy") for task in TASKS[:number]]
    sizes, random = true_visible_means(tasks, seeds), np.random.default_rng([number, seeds, 5])
    these, every = [], []
    for _ in range(repeats):
        alike = {task.name: study(random, task, seeds, sizes[THESE]) for task in tasks}
        these.append(_shown(over_tasks.combine(alike), "fixed"))
        every.append(_shown(differing(random, tasks, seeds, sizes[ALL]), "random"))
    return {THESE: (sizes[THESE], these), ALL: (sizes[ALL], every)}


def unmarked(methods: int, seeds: int, ahead: float, repeats: int) -> tuple[list[bool], list[bool]]:
    """Studies of several methods on RTE of which the first is truly ahead of all others, which are equal: whether it
    is not among those that may be the best (Hsu's set), and whether a table does not mark it (bold or a tie sign)."""
    random = np.random.default_rng([methods, seeds, round(10 * ahead)])
    outside, unsigned = [], []
    for _ in range(repeats):
        scored = column(random, TASKS[0], seeds, (ahead, *[0.0] * (methods - 1)))
        means = {name: float(np.mean(list(runs.values()))) for name, runs in scored.scores.items()}
        order, contest = sorted(means, key=lambda name: -means[name]), verdict.contenders(scored)
        outside.append("m0" not in contest.rows)
        unsigned.append("m0" not in {order[0], *table.tied(order[1:], contest)})
    return outside, unsigned


def lines(seeds: list[int], tasks: list[int], methods: list[int], repeats: int) -> Iterator[str]:
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
    yield ""
    yield "| mean | tasks | seeds | difference, points | shown, % |"
    yield "|---|---:|---:|---:|---:|"
    for number in tasks:
        for count in seeds if number > 1 else ():
            for name, (size, seen) in power_of_means(number, count, repeats if number < 8 else repeats // 2).items():
                yield f"| {name} | {number} | {count} | {size:.1f} | {rate(seen)} |"
    yield ""
    yield "| methods | seeds | the best is ahead by, points | not among the contenders, % | not marked, % |"
    yield "|---:|---:|---:|---:|---:|"
    for number in methods:
        for count in seeds:
            for ahead in (0.0, 1.0):
                outside, unsigned = unmarked(number, count, ahead, repeats)
                yield f"| {number} | {count} | {ahead:.0f} | {rate(outside)} | {rate(unsigned)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="studies per line")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8, 20])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--methods", type=int, nargs="+", default=[2, 8], help="for the marks")
    options = parser.parse_args()
    for line in lines(options.seeds, options.tasks, options.methods, options.repeats):
        print(line, flush=True)


if __name__ == "__main__":
    main()
