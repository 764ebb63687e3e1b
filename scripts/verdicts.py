"""How often each verdict is wrong, and how often it is given where it should be: simulated studies of known truth.

    python scripts/verdicts.py [--into FILE] [--minutes 9] [--part errors ties power metrics marks] [--repeats 2000]
                               [--seeds 3 5 8 20] [--tasks 1 3 8] [--methods 2 8]

The studies are those of scripts/simulated_studies.py; all that follows their predictions is the package's own. The
work is cut into pieces of at most 250 studies, each with random numbers of its own, so that nothing depends on the
order. With --into every finished piece is added to FILE, and what is there is not made again; no piece begins later
than --minutes after the start. So the same command, called until it says that nothing is left, makes the tables in as
short stretches as one likes, and --part, --seeds and --tasks choose some of them. Without --into all is made at once.

Five tables, each line with the share that it should have:

    errors   equal methods: any verdict that says otherwise, for one task, several, and both means over tasks
    ties     methods one margin apart: how often they count as equal; equal methods: how often they do; and how often
             a claim of equality is refuted. Of the usual methods, and of such whose answers nearly agree
    power    methods as far apart as a design shows in four of five repetitions
    metrics  equal methods scored by every metric
    marks    several methods: how often the one that is truly best is not marked
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from simulated_studies import METRICS, NEAR, TASKS, USUAL, Parts, Task, columns, pairs  # type: ignore[import-not-found]
from statsmodels.stats.proportion import proportion_confint

from peftbench.report import bootstrap, over_tasks, table, verdict
from peftbench.report.over_tasks import OverTasks
from peftbench.report.statistics import ALPHA, Estimate, Paired, holm, power_of_equality, smallest_shown

MARGIN = 1.0  # points
SPREAD = 2.0  # points by which the true difference varies over tasks, as a standard deviation
NEAR_SPREAD = 0.3  # the same of methods whose answers nearly agree
PIECE = 250  # studies
PILOTS, PILOT_SEEDS = 40, 50  # studies from which the true parts of an error are taken, and their seeds
LARGEST, MOST = 15.0, 19.0  # points by which a method can be ahead in the mean, and at all: LEVEL + MOST < 100%
THESE, ALL = "mean of these tasks", "mean over all tasks"
WRONG, OUTSIDE = "at most 5", "0 is outside of the interval of seeds and rows drawn anew"

Counts = Counter[str]  # "what happened | how often it should, %" -> in how many studies it did
Cell = tuple[str, int, int]  # part, tasks (or methods), seeds


def of_tasks(
    random: np.random.Generator, tasks: Sequence[Task], seeds: int, ahead: np.ndarray, parts: Parts = USUAL
) -> Iterator[dict[str, Paired]]:
    """Two methods on several tasks, in every study; the first is ahead by so many points (studies, tasks)."""
    own = zip(random.spawn(len(tasks)), tasks, ahead.T, strict=True)
    made = [pairs(one, task, seeds, points, parts) for one, task, points in own]
    for study in zip(*made, strict=True):
        yield dict(zip([task.name for task in tasks], study, strict=True))


def by_accuracy(tasks: Sequence[Task]) -> list[Task]:
    """The same dev sets, scored by the metric whose points are those by which a method is ahead."""
    return [replace(task, metric="accuracy") for task in tasks]


def combined(study: dict[str, Paired]) -> tuple[OverTasks, Estimate, Estimate]:
    """The tasks together, and both means."""
    together = over_tasks.combine(study)
    if together is None or together.fixed is None or together.random is None:
        raise RuntimeError("a simulated study without noise")
    return together, together.fixed, together.random


def errors(random: np.random.Generator, tasks: int, seeds: int, repeats: int) -> Counts:
    """Equal methods. For the mean over all tasks like these, the methods differ on every task, by `SPREAD` points in
    standard deviation, and not in the mean over tasks."""
    counts: Counts = Counter()
    for study in of_tasks(random, TASKS[:tasks], seeds, np.zeros((repeats, tasks))):
        items = verdict.judge({("a", "b", task): paired for task, paired in study.items()}, "tasks", MARGIN)
        counts[f"ahead or behind on any task | {WRONG}"] += any(item.word in ("ahead", "behind") for item in items)
        if (drawn := items[0].drawn) is not None:
            counts[f"rte: {OUTSIDE} | 5"] += not drawn.low <= 0 <= drawn.high
        if tasks > 1:
            together, fixed, _ = combined(study)
            counts[f"depends on the task | {WRONG}"] += bool((together.interaction or 0.0) < ALPHA)
            counts[f"{THESE} | {WRONG}"] += fixed.p() < ALPHA
            if (drawn := together.drawn) is not None:
                counts[f"{THESE}: {OUTSIDE} | 5"] += not drawn.low <= 0 <= drawn.high
    if tasks > 1:
        for study in of_tasks(random, by_accuracy(TASKS[:tasks]), seeds, random.normal(0, SPREAD, (repeats, tasks))):
            counts[f"{ALL} | {WRONG}"] += combined(study)[2].p() < ALPHA
    return counts


def ties(random: np.random.Generator, tasks: int, seeds: int, repeats: int) -> Counts:
    """Equality within the margin, on the largest dev sets first."""
    counts: Counts = Counter()
    chosen = by_accuracy(TASKS[::-1][:tasks])
    margins = np.full((repeats, tasks), MARGIN)
    for name, parts in (("usual", USUAL), ("near", NEAR)):
        for study in of_tasks(random, chosen, seeds, margins, parts):
            counts[f"{name}, a margin apart: tied on any task | {WRONG}"] += min(_equal(study)) < ALPHA
            counts[f"{name}, a margin apart: = refuted on any task | {WRONG}"] += _refuted(study)
            if tasks > 1:
                counts[f"{name}, a margin apart: {THESE}, tied | {WRONG}"] += _tied(combined(study)[1])
        for study in of_tasks(random, chosen, seeds, 0 * margins, parts):
            paired = study[chosen[0].name]
            should = f"{100 * true_power_of_equality(chosen[0], seeds, tasks, parts):.0f}"
            seen = paired.p_of_equality(MARGIN) < ALPHA / tasks
            counts[f"{name}, equal: tied on {chosen[0].name}, one of {tasks} | {should}"] += seen
            if tasks > 1:
                counts[f"{name}, equal: {THESE}, tied | "] += _tied(combined(study)[1])
        for study in of_tasks(random, chosen, seeds, 3 * margins, parts):
            counts[f"{name}, three margins apart: = refuted on any task | "] += _refuted(study)
    for what, mean in (("a margin apart", MARGIN), ("equal", 0.0)) if tasks > 1 else ():
        for study in of_tasks(random, chosen, seeds, random.normal(mean, NEAR_SPREAD, (repeats, tasks)), NEAR):
            counts[f"near, {what}: {ALL}, tied | {WRONG if mean else ''}"] += _tied(combined(study)[2])
    return counts


def _equal(study: dict[str, Paired]) -> list[float]:
    """p of every task, corrected."""
    return holm([paired.p_of_equality(MARGIN) for paired in study.values()])


def _refuted(study: dict[str, Paired]) -> bool:
    """Whether a plan's claim of equality is refuted on any task."""
    p_values = holm([paired.p_of_side(MARGIN) for paired in study.values()])
    return any(p < ALPHA and abs(one.mean) > MARGIN for p, one in zip(p_values, study.values(), strict=True))


def _tied(estimate: Estimate) -> bool:
    return estimate.p_of_equality(MARGIN) < ALPHA


def power(random: np.random.Generator, tasks: int, seeds: int, repeats: int) -> Counts:
    """Differences that show in four of five repetitions, by the true noise at that difference; those that are above
    `LARGEST` are left out."""
    counts: Counts = Counter()
    for task in by_accuracy(TASKS[:2]):
        size = true_visible(task, seeds, tasks)
        for paired in pairs(random, task, seeds, np.full(repeats if size <= LARGEST else 0, size)):
            what = f"{task.name}, {size:.1f} points apart, one of {tasks}"
            counts[f"{what}: shown | 80"] += paired.mean > 0 and paired.p() < ALPHA / tasks
            said = 0.0 if paired.estimate is None else paired.estimate.visible(tasks)
            counts[f"{what}: the design says a larger one | 50"] += said > size
    chosen = by_accuracy(TASKS[:tasks])
    for name, spread in ((THESE, 0.0), (ALL, SPREAD)) if tasks > 1 else ():
        size = true_visible_mean(name, tuple(chosen), seeds)
        ahead = np.minimum(random.normal(size, spread, (repeats if size <= LARGEST else 0, tasks)), MOST)
        for study in of_tasks(random, chosen, seeds, ahead):
            _, *means = combined(study)
            counts[f"{name}, {size:.1f} points apart: shown | 80"] += means[name == ALL].p() < ALPHA
    return counts


def metrics(random: np.random.Generator, _: int, seeds: int, repeats: int) -> Counts:
    """Equal methods scored by every metric."""
    counts: Counts = Counter()
    for task in METRICS:
        for paired in pairs(random, task, seeds, np.zeros(repeats)):
            what = f"{task.metric}, {task.name}"
            counts[f"{what}: ahead or behind | {WRONG}"] += paired.p() < ALPHA
            if paired.resampled is not None:
                low, high = bootstrap.crossed(paired.resampled)
                counts[f"{what}: {OUTSIDE} | 5"] += not low <= 0 <= high
    return counts


def marks(random: np.random.Generator, methods: int, seeds: int, repeats: int) -> Counts:
    """Several methods on RTE of which the first is truly ahead of all others, which are equal: whether it is not among
    those that may be the best (Hsu's set), and whether a table does not mark it (bold or a tie sign)."""
    counts: Counts = Counter()
    for points in (0.0, 1.0, 15.0):
        ahead = np.zeros((repeats, methods))
        ahead[:, 0] = points
        for scored in columns(random, TASKS[0], seeds, ahead):
            means = {name: float(np.mean(list(runs.values()))) for name, runs in scored.scores.items()}
            order, contest = sorted(means, key=lambda name: -means[name]), verdict.contenders(scored)
            what = f"the best of {methods} is {points:g} points ahead"
            counts[f"{what}: not among the contenders | {WRONG}"] += "m0" not in contest.rows
            counts[f"{what}: not marked | "] += "m0" not in {order[0], *table.tied(order[1:], contest)}
    return counts


PARTS: dict[str, Callable[[np.random.Generator, int, int, int], Counts]] = {
    "errors": errors, "ties": ties, "power": power, "metrics": metrics, "marks": marks,
}  # fmt: skip


@cache
def true_parts(task: Task, ahead: float = 0.0, parts: Parts = USUAL) -> tuple[float, float]:
    """The variance of one seed's difference and that which the rows bring in for all seeds, of methods that are so many
    points apart: methods that are nearly always right vary less."""
    random = np.random.default_rng(1)
    pilots = list(pairs(random, task, PILOT_SEEDS, np.full(PILOTS, ahead), parts))
    of_one_seed = float(np.mean([pilot.of_seeds * PILOT_SEEDS for pilot in pilots]))
    return of_one_seed, float(np.mean([pilot.of_rows for pilot in pilots]))


def _where_it_shows(shown: Callable[[float], float]) -> float:
    """The difference that is the smallest shown one of methods that differ by it."""
    size = 0.0
    for _ in range(4):
        size = shown(min(round(size, 1), LARGEST))
    return size


@cache
def true_visible(task: Task, seeds: int, tests: int) -> float:
    """The smallest difference that shows with 80% power, from the true parts of the error."""

    def shown(ahead: float) -> float:
        of_one_seed, of_rows = true_parts(task, ahead)
        return smallest_shown(of_one_seed / seeds, seeds - 1, of_rows, tests)

    return _where_it_shows(shown)


@cache
def true_visible_mean(name: str, tasks: tuple[Task, ...], seeds: int) -> float:
    """The same for the mean of these tasks, or that of all tasks like these, which differ by `SPREAD` points."""

    def shown(ahead: float) -> float:
        parts = [true_parts(task, ahead) for task in tasks]
        of_seeds, of_rows = (sum(values) / len(tasks) ** 2 for values in zip(*parts, strict=True))
        if name == ALL:
            return smallest_shown(SPREAD**2 / len(tasks) + of_seeds / seeds + of_rows, len(tasks) - 1)
        squares = sum((of_one / seeds / len(tasks) ** 2) ** 2 for of_one, _ in parts) / (seeds - 1)
        return smallest_shown(of_seeds / seeds, (of_seeds / seeds) ** 2 / squares, of_rows)  # Satterthwaite 1946

    return _where_it_shows(shown)


@cache
def true_power_of_equality(task: Task, seeds: int, tests: int, parts: Parts) -> float:
    """How often equal methods are shown to differ by less than the margin, from the true parts of the error."""
    of_one_seed, of_rows = true_parts(task, 0.0, parts)
    return power_of_equality(of_one_seed / seeds, seeds - 1, of_rows, MARGIN, tests)


def piece(cell: Cell, number: int, size: int) -> Counts:
    """So many studies of a cell of a table; the same number gives the same studies."""
    part, tasks, seeds = cell
    counts = PARTS[part](np.random.default_rng([list(PARTS).index(part), tasks, seeds, number]), tasks, seeds, size)
    return Counter({name: int(count) for name, count in counts.items()})


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Those that were asked for: a part, for so many tasks (methods, of the marks), with so many seeds."""
    for part in options.part:
        for number in {"metrics": [1], "marks": options.methods}.get(part, options.tasks):
            yield from ((part, number, seeds) for seeds in options.seeds)


def lines(part: str, made: dict[Cell, list[tuple[int, Counts]]]) -> Iterator[str]:
    """A part's table; `made` has every finished piece of a cell, how many studies it is of and what they came to."""
    yield f"| {'methods' if part == 'marks' else 'tasks'} | seeds | studies | {part} | should be, % | is, % |"
    yield "|---:|---:|---:|---|---:|---:|"
    for (_, number, seeds), pieces in made.items():
        studies, counts = sum(size for size, _ in pieces), Counter[str]()
        for _, some in pieces:
            counts.update(some)
        for name, count in counts.items():
            low, high = proportion_confint(count, studies, method="beta")  # Clopper and Pearson
            rate = f"{100 * count / studies:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            yield f"| {number} | {seeds} | {studies} | {name} | {rate} |"
    yield ""


def main() -> None:
    """Make what is left within the time, and print the tables of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="file of the finished pieces, one a line")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no piece begins")
    parser.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--repeats", type=int, default=2000, help="studies per cell of a table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 8, 20])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--methods", type=int, nargs="+", default=[2, 8], help="for the marks")
    options = parser.parse_args()
    end, left = time.monotonic() + 60 * options.minutes, 0
    kept: dict[tuple[Cell, int, int], Counts] = {}
    if options.into is not None and options.into.exists():
        for line in options.into.read_text().splitlines():
            cell, number, size, counts = json.loads(line)
            kept[tuple(cell), number, size] = Counter(counts)
    made: dict[Cell, list[tuple[int, Counts]]] = {}
    for cell in cells(options):
        for number, start in enumerate(range(0, options.repeats, PIECE)):
            key = cell, number, min(PIECE, options.repeats - start)
            if key not in kept and time.monotonic() >= end:
                left += 1
                continue
            if key not in kept:
                kept[key] = piece(*key)
                if options.into is not None:
                    with options.into.open("a") as file:
                        print(json.dumps([*key, kept[key]]), file=file)
            made.setdefault(cell, []).append((key[2], kept[key]))
    for part in options.part:
        for line in lines(part, {cell: pieces for cell, pieces in made.items() if cell[0] == part}):
            print(line)
    print(f"{left} pieces are left: call this again" if left else "nothing is left")


if __name__ == "__main__":
    main()
