"""Whether one method beats another, in words and numbers."""

from peftbench.ground.errors import ConfigError
from peftbench.report.records import Study
from peftbench.report.statistics import ALPHA, Comparison, compare
from peftbench.report.table import apart, row_named

PAIRED = ("column", "seed", "split")  # what two runs share that are compared


def lines(study: Study, first: str, second: str) -> list[str]:
    """The verdict over all tasks, then every task.

    Args:
        study: its records.
        first: a row's name, or the method's alone where one row has it.
        second: likewise.

    Raises:
        ConfigError: a row is not in the study's table, or the two have no task and seed in common.
    """
    rows = apart(study)[0]
    names = list(dict.fromkeys(rows["name"])) if len(rows) else []
    first, second = (row_named(word, names, study.name) for word in (first, second))
    rows = rows.dropna(subset=["score"])
    scores = {
        str(name): {
            (str(task), (int(seed), int(split))): float(score)
            for task, seed, split, score in zip(*(group[key] for key in PAIRED), group["score"], strict=True)
        }
        for name, group in rows.groupby("name")
    }
    comparisons = compare(scores, first, second)
    if not comparisons:
        raise ConfigError(f"{first} and {second}: no task and seed in common in study {study.name}")
    return [sentence(comparisons[-1], first, second), *(figures(item) for item in comparisons)]


def sentence(item: Comparison, first: str, second: str) -> str:
    """One sentence that claims no more than the test shows."""
    tasks = "over all tasks" if item.task == "all" else f"on {item.task}"
    better, worse = (first, second) if item.difference > 0 else (second, first)
    size = f"{abs(item.difference):.1f} points, {item.pairs} pairs of task and seed"
    if item.p is None:
        return f"{first} and {second} {tasks}: one pair says nothing about the noise ({size})."
    if item.p < ALPHA:
        return f"{better} beats {worse} {tasks}: {size}, {_p(item.p)}."
    if 2 / 2**item.pairs >= ALPHA:
        return f"{better} is ahead of {worse} {tasks} by {size}; with so few pairs no test can show a difference."
    return f"No difference between {first} and {second} {tasks} outside the noise: {size}, {_p(item.p)}."


def figures(item: Comparison) -> str:
    """The numbers behind a sentence, on one line."""
    parts = [f"{item.task}: {item.difference:+.2f} points"]
    if item.interval:
        parts.append(f"95% interval {item.interval.low:+.2f} to {item.interval.high:+.2f}")
    parts.append("no p" if item.p is None else _p(item.p))
    parts.append(f"better in {100 * item.improvement:.0f}% of {item.pairs} pairs")
    if item.seeds_needed:
        parts.append(f"{item.seeds_needed} pairs would show it")
    return ", ".join(parts)


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p < 0.001"
