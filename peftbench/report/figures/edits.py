"""Edits of finished runs: the rate of a behaviour, and what else moved, over strength and over the share of rows."""

from collections.abc import Callable, Iterator
from typing import Literal

from peftbench.report import axes, edits
from peftbench.report.edits import Edited, Keys
from peftbench.report.figures.parts import Figure, Material, Panel, Series, bounds, summary

Axis = Literal["strength", "rows"]
LABELS: dict[Axis, str] = {"strength": "strength (mean lengths of a row)", "rows": "share of all rows (%)"}
SHOWN: dict[str, tuple[str, Callable[[Edited], float | None]]] = {  # word -> axis, value
    "rate": ("change of the rate (points)", lambda edited: 100 * (edited.seen.rate - edited.seen.rate_before)),
    "headline": ("change of the score (points)", lambda edited: edited.headline),
    "collateral": ("change on other tasks (points)", lambda edited: edits.measures(edited)["collateral"]),
}


def curves(material: Material) -> Iterator[Figure]:
    """A figure for every measure and axis along which some edit was varied."""
    panels_of: dict[tuple[str, Axis], list[Panel]] = {}
    for (column, behaviour), every in _edits(material).items():
        for axis in LABELS:
            for word in SHOWN:
                panel = _panel(column, behaviour, every, axis, word)
                if any(len(series.x) > 1 for series in panel.series):
                    panels_of.setdefault((word, axis), []).append(panel)
    for (word, axis), panels in panels_of.items():
        note = "a control's curve is that of the same edit with something else in the method's place"
        yield Figure(f"edits_{word}_{axis}", "Edits", f"{word} over {axis}", "lines", panels, note)


def _edits(material: Material) -> dict[tuple[str, str], list[tuple[str, Edited]]]:
    """By column of the table and behaviour: the edits, each with its row."""
    found: dict[tuple[str, str], list[tuple[str, Edited]]] = {}
    if not any(record.made is not None and record.made.by == "edit" for record in material.records):
        return found
    for place in axes.places(material.study):
        for (_, record), edited in edits.of_place(material.study, place):
            method = record.cell.method.rpartition(" of ")[2]
            found.setdefault((place.column, f"{method}, {edited.keys.behaviour}"), []).append((place.row, edited))
    return found


def _panel(column: str, behaviour: str, every: list[tuple[str, Edited]], axis: Axis, word: str) -> Panel:
    label, value = SHOWN[word]
    lines: dict[tuple[str, str], list[tuple[float, float, str]]] = {}  # control, what is added -> x, y, row
    others = {_other(edited.keys, axis) for _, edited in every}
    for row, edited in every:
        x, y = getattr(edited.keys, axis), value(edited)
        if y is not None and not isinstance(x, str):
            more = f", {_other(edited.keys, axis)}" if len(others) > 1 else ""
            point = (100 * x if axis == "rows" else x, y, row)
            lines.setdefault((edited.keys.words, more), []).append(point)
    series = [_line(control, more, points) for (control, more), points in lines.items()]
    return Panel(f"{column}: {behaviour}", LABELS[axis], label, column, series=series)


def _line(control: str, more: str, points: list[tuple[float, float, str]]) -> Series:
    """One control's curve; a control is drawn alike wherever it stands."""
    by_x: dict[float, list[float]] = {}
    for x, y, _ in sorted(points):
        by_x.setdefault(x, []).append(y)
    every = [summary(values) for values in by_x.values()]
    notes = [f"{x:g}: {one.words()}" for x, one in zip(by_x, every, strict=True)]
    rows = tuple(dict.fromkeys(row for *_, row in points))
    middle = [one.mean for one in every]
    return Series(f"{control}{more}", list(by_x), middle, *bounds(every), notes, rows=rows, method=control)


def _other(keys: Keys, axis: Axis) -> str:
    """The value of the key that is not on the axis."""
    return f"{100 * keys.rows:g}% of rows" if axis == "strength" else f"strength {keys.strength}"
