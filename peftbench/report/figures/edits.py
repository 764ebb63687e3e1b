"""Edits of finished runs: the rate of a behaviour, and what else moved, over strength and over the share of rows."""

from collections.abc import Callable, Iterator
from typing import Literal

from peftbench.report import axes, edits
from peftbench.report.edits import Edited, Keys
from peftbench.report.figures.parts import Figure, Material, Panel, Series, Summary, bounds, summary

Axis = Literal["strength", "rows"]
LABELS: dict[Axis, str] = {"strength": "strength (mean lengths of a row)", "rows": "share of all rows (%)"}
SHOWN: dict[str, tuple[str, Callable[[Edited], float | None]]] = {  # word -> axis, value
    "rate": ("rate of the behaviour (%)", lambda edited: 100 * edited.seen.rate),
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


def _edits(material: Material) -> dict[tuple[str, str], list[Edited]]:
    """By column of the table and behaviour."""
    found: dict[tuple[str, str], list[Edited]] = {}
    if not any(record.made is not None and record.made.by == "edit" for record in material.records):
        return found
    for place in axes.places(material.study):
        for (_, record), edited in edits.of_place(material.study, place):
            method = record.cell.method.rpartition(" of ")[2]
            found.setdefault((place.column, f"{method}, {edited.keys.behaviour}"), []).append(edited)
    return found


def _panel(column: str, behaviour: str, every: list[Edited], axis: Axis, word: str) -> Panel:
    label, value = SHOWN[word]
    points: dict[str, dict[float, list[float]]] = {}
    others = {_other(edited.keys, axis) for edited in every}
    for edited in every:
        x, y = getattr(edited.keys, axis), value(edited)
        if y is not None and not isinstance(x, str):
            more = f", {_other(edited.keys, axis)}" if len(others) > 1 else ""
            by_x = points.setdefault(f"{edited.keys.words}{more}", {})
            by_x.setdefault(100 * x if axis == "rows" else x, []).append(y)
    series = []
    for name, by_x in points.items():
        summaries: list[tuple[float, Summary]] = [(x, summary(values)) for x, values in sorted(by_x.items())]
        every_y = [one for _, one in summaries]
        notes = [f"{x:g}: {one.words()}" for x, one in summaries]
        series.append(Series(name, [x for x, _ in summaries], [one.mean for one in every_y], *bounds(every_y), notes))
    return Panel(f"{column}: {behaviour}", LABELS[axis], label, column, series=series)


def _other(keys: Keys, axis: Axis) -> str:
    """The value of the key that is not on the axis."""
    return f"{100 * keys.rows:g}% of rows" if axis == "strength" else f"strength {keys.strength}"
