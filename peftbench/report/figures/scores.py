"""Score against cost, every seed's score, and one method at several budgets."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from peftbench.report.figures.parts import Figure, Front, Material, Pair, Panel, Series, Summary, bounds, summary
from peftbench.report.records import tasks_alone

COSTS = {
    "entries": ("backbone", "trainable backbone entries", True),
    "seconds": ("train_s", "seconds of training", False),
    "memory": ("peak_mb", "peak memory (MiB)", False),
    "flops": ("tflops", "TFLOPs of training", True),
    "energy": ("joules", "joules by the machine's meters", False),
}
FAR = 2.0  # times the range of all others: a score so far below is left outside
LEFT = 5  # rows at least that an axis shows
SIDE_BY_SIDE = 0.025  # of the axis, between methods of one cost
WIDEST = 0.1  # of the axis, from the first to the last of many of them: more would show another cost
SCORE = "dev score (%)"
INTERVALS = "bars: 95% t-interval of the mean over seeds (from 2 seeds on); small: single seeds"


def costs(material: Material) -> Iterator[Figure]:
    """Score against each cost that records tell: a panel per task, and one of the mean relative to full fine-tuning.

    A row is there where all of its runs tell that cost.
    """
    places: list[tuple[str, str | None, str, dict[str, tuple[pd.DataFrame, Summary]]]] = [
        (column, column, SCORE, {name: (same, material.summaries[name, column]) for name, same in material.of(column)})
        for column in material.columns
    ]
    relative, label = relative_scores(material)
    if relative:
        of_row = dict(iter(material.rows.groupby("name")))
        title = f"mean of {len(tasks_alone(material.columns))} tasks"
        places.append((title, None, label, {name: (of_row[name], score) for name, score in relative.items()}))
    for word, (key, cost, log) in COSTS.items():
        panels = []
        for title, column, label, runs in places:
            known = {name: (same, score) for name, (same, score) in runs.items() if same[key].notna().all()}
            points = {name: (_cost(same, key), score) for name, (same, score) in known.items()}
            if points:
                panels.append(_against(title, column, label, points, cost, log))
        front = "line: no cheaper method scores higher, with the interval of the method on it"
        note = f"{INTERVALS}; {front}; equal costs side by side"
        if panels:
            yield Figure(word, "Score against cost", cost, "points", panels, note)


def seeds(material: Material) -> Iterator[Figure]:
    """Every seed's score by method, the mean and its interval."""
    panels = []
    for column in material.columns:
        summaries = {name: material.summaries[name, column] for name, _ in material.of(column)}
        panels.append(by_row(column, column, SCORE, summaries))
    relative, label = relative_scores(material)
    if relative:
        panels.append(by_row(f"mean of {len(tasks_alone(material.columns))} tasks", None, label, relative))
    yield Figure("seeds", "Every seed", "seeds", "rows", panels, INTERVALS)


def budgets(material: Material) -> Iterator[Figure]:
    """Score against entries of methods that have several budgets."""
    panels = []
    for column in material.columns:
        points: dict[str, list[tuple[float, Summary, str]]] = {}
        for name, same in material.of(column):
            method, budget = same[["method", "budget"]].iloc[0]
            if name in (method, f"{method} {budget}"):  # under the main protocol, with all labels
                point = (_cost(same, "backbone"), material.summaries[name, column], name)
                points.setdefault(method, []).append(point)
        lines = {method: sorted(line, key=lambda point: point[0]) for method, line in points.items()}
        series = [_line(method, line) for method, line in lines.items() if len({cost for cost, *_ in line}) > 1]
        if series:
            panels.append(Panel(column, "trainable backbone entries", SCORE, column, log=True, series=series))
    if panels:
        yield Figure("budgets", "Budgets", "budgets", "lines", panels, "band: 95% t-interval of the mean over seeds")


def relative_scores(material: Material) -> tuple[dict[str, Summary], str]:
    """Of every row that has all columns, the mean over them less that of full fine-tuning; and what it is called.

    Without full fine-tuning it is the mean itself; with one column there is none.
    """
    together = material.together
    if len(together.columns) < 2:
        return {}, ""
    means = {name: summary(runs.mean(axis=1)) for name, runs in together.scores.items()}
    return means, together.scale if together.relative else f"mean {together.scale}"


def front_of(points: Sequence[tuple[float, Summary]]) -> Front:
    """The Pareto front of means over seeds, and at every cost the interval of the method that is on it there.

    It is that method's own. The highest of several means is on average above the highest true one, so that no interval
    about it says where the true front is.
    """
    best: dict[float, Summary] = {}  # by cost
    highest: Summary | None = None
    for cost, one in sorted(points, key=lambda point: point[0]):
        highest = one if highest is None or one.mean > highest.mean else highest
        best[cost] = highest
    low = [one.mean if one.low is None else one.low for one in best.values()]
    high = [one.mean if one.high is None else one.high for one in best.values()]
    return Front(list(best), [one.mean for one in best.values()], low, high)


def _against(
    title: str, column: str | None, label: str, points: dict[str, tuple[float, Summary]], cost: str, log: bool
) -> Panel:
    places = _side_by_side({name: x for name, (x, _) in points.items()}, log)
    series = [
        Series(
            name,
            [places[name]],
            [one.mean],
            *bounds([one]),
            [f"{one.words()}, {x:,.0f} {cost}"],
            [(places[name], score) for score in one.scores],
        )
        for name, (x, one) in points.items()
    ]
    limits, below = limits_of({name: scores for name, (_, scores) in points.items()})
    front = front_of(list(points.values()))
    return Panel(title, cost, label, column, log, series, front, limits=limits, below=below)


def by_row(title: str, column: str | None, label: str, rows: dict[str, Summary]) -> Panel:
    """A panel with a line for each row: its mean, interval and seeds."""
    limits, below = limits_of(rows)
    series = [
        Series(name, [one.mean], [0.0], *bounds([one]), [one.words()], [(score, 0.0) for score in one.scores])
        for name, one in rows.items()
    ]
    return Panel(title, label, "", column, series=series, limits=limits, below=below)


def limits_of(rows: dict[str, Summary]) -> tuple[Pair | None, str]:
    """Limits of an axis of scores without those far below all others, and what these are."""
    order = sorted(rows, key=lambda name: max(rows[name].scores))
    for at in range(len(order) - LEFT, 0, -1):
        upper = [score for name in order[at:] for score in rows[name].scores]
        width = max(upper) - min(upper)
        if width and min(upper) - max(rows[order[at - 1]].scores) > FAR * width:
            words = [f"{name} {rows[name].mean:.1f}" for name in order[:at]]
            return (min(upper) - 0.1 * width, max(upper) + 0.1 * width), "below: " + ", ".join(words)
    return None, ""


def _side_by_side(costs: dict[str, float], log: bool) -> dict[str, float]:
    """Where to draw each: those of nearly one cost are moved apart, so that none hides another."""
    scale = np.log10 if log else float
    at = {name: float(scale(max(cost, 1.0))) for name, cost in sorted(costs.items(), key=lambda item: item[1])}
    axis = max(at.values()) - min(at.values())
    width = SIDE_BY_SIDE * axis
    places: dict[str, float] = {}
    group: list[str] = []
    for name, x in [*at.items(), ("", np.inf)]:
        if group and x - at[group[0]] > width:
            apart = min(width, WIDEST * axis / max(1, len(group) - 1))
            for i, one in enumerate(group):
                moved = at[one] + (i - (len(group) - 1) / 2) * apart if len(group) > 1 else at[one]
                places[one] = 10**moved if log else moved
            group = []
        group.append(name)
    return places


def _line(method: str, points: Sequence[tuple[float, Summary, str]]) -> Series:
    summaries = [summary for _, summary, _ in points]
    notes = [f"{name}: {summary.words()}, {cost:,.0f} entries" for cost, summary, name in points]
    x = [cost for cost, *_ in points]
    rows = tuple(name for _, _, name in points)
    return Series(method, x, [summary.mean for summary in summaries], *bounds(summaries), notes, rows=rows)


def _cost(rows: pd.DataFrame, key: str) -> float:
    return float(rows[key].astype(float).median())
