"""Sequences of tasks: accuracy over all tasks seen after every stage, and what each task lost until the end."""

from collections.abc import Callable, Iterator
from typing import Any

from peftbench.record import Record
from peftbench.report.figures.parts import Figure, Material, Panel, Series, bounds, summary
from peftbench.report.sequences import is_sequence

GROUP = "Sequences of tasks"
BAND = "mean over seeds; band: its 95% bootstrap interval (from 3 seeds on)"
Points = dict[int, float]  # number of a task in its order, from 1 -> percent
Runs = dict[str, list[Record]]  # row of the table -> its runs
Tasks = tuple[str, ...]  # as they came
Order = tuple[str, str, Tasks]  # column of the table, what the order is called, its tasks


def stages(material: Material) -> Iterator[Figure]:
    """Accuracy over all tasks seen so far, a panel for every order; what learned all at once is a point at the end."""
    note = f"{BAND}; a point alone: learned all tasks at once"
    yield from _figure(material, "sequences", "after every stage", "accuracy over all tasks seen (%)", _seen, note)


def forgotten(material: Material) -> Iterator[Figure]:
    """Best accuracy of each task after any stage less that after the last one, in the order of learning."""
    yield from _figure(material, "sequences_forgotten", "what was forgotten", "lost of the best (points)", _lost, BAND)


def _figure(
    material: Material, word: str, choice: str, label: str, points: Callable[[Record, Tasks], Points], note: str
) -> Iterator[Figure]:
    panels = []
    orders = _orders(material)
    several = len({column for column, *_ in orders}) > 1
    for (column, order, tasks), runs in orders.items():
        lines = {name: [points(record, tasks) for record in same] for name, same in runs.items()}
        series = [line for name, told in lines.items() if (line := _line(name, told, tasks)).x]
        if series:
            ticks = [(float(number), task) for number, task in enumerate(tasks, 1)]
            title = f"{column}, order {order}" if several else f"order {order}"
            panels.append(Panel(title, "task learned", label, column, series=series, ticks=ticks))
    if panels:
        yield Figure(word, GROUP, choice, "lines", panels, note)


def _orders(material: Material) -> dict[Order, Runs]:
    """The runs of every row by the order of their tasks; what learned all at once is in each order."""
    orders: dict[Order, Runs] = {}
    at_once: dict[str, Runs] = {}
    for column in material.columns:
        for name, same in material.of(column):
            records = [material.records[int(place)] for place in same["record"]]
            tasks = _tasks(records[0].made.keys) if records[0].made and all(map(is_sequence, records)) else ()
            if tasks and all(len(record.metrics.evaluations) == 1 for record in records):
                at_once.setdefault(column, {})[name] = records
            elif tasks:
                order = name.partition(", order ")[2].partition(" ")[0]
                orders.setdefault((column, order, tasks), {})[name] = records
    return {order: runs | at_once.get(order[0], {}) for order, runs in orders.items()}


def _tasks(keys: dict[str, Any]) -> Tasks:
    """The tasks in the order of learning; none where a stranger's record says something else."""
    tasks = keys.get("tasks")
    return tuple(tasks) if isinstance(tasks, list) and all(isinstance(task, str) for task in tasks) else ()


def _line(name: str, told: list[Points], tasks: Tasks) -> Series:
    """A learner's line through what all of its runs tell; it is drawn alike in every order."""
    learner, _, order = name.partition(", order ")
    shown = " ".join([learner, *order.split()[1:]])
    known = sorted(set.intersection(*(set(points) for points in told)))
    every = [summary(points[number] for points in told) for number in known]
    notes = [f"{tasks[number - 1]}: {one.words()}" for number, one in zip(known, every, strict=True)]
    middle = [one.mean for one in every]
    return Series(shown, [*map(float, known)], middle, *bounds(every), notes, rows=(name,), method=learner)


def _seen(record: Record, tasks: Tasks) -> Points:
    scores = [one.metrics.get("last") for one in record.metrics.evaluations]
    first = len(tasks) if len(scores) == 1 else 1
    told = enumerate(scores[: len(tasks)], first)
    return {number: 100 * score for number, score in told if score is not None}


def _lost(record: Record, tasks: Tasks) -> Points:
    evaluations = record.metrics.evaluations
    if len(evaluations) < 2:
        return {}
    lost = {}
    for number, task in enumerate(tasks[:-1], 1):  # the last one had no time to be forgotten
        scores = [score for one in evaluations if (score := one.metrics.get(f"{task}_accuracy")) is not None]
        last = evaluations[-1].metrics.get(f"{task}_accuracy")
        if last is not None:
            lost[number] = 100 * (max(scores) - last)
    return lost
