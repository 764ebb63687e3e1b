"""Flips of several updates as a figure: how many rows each gets wrong, and what it gains, beside seed to seed."""

from collections.abc import Sequence

from peftbench.report.figures.parts import Figure, Panel, Series
from peftbench.report.flips import MEAN, Flips

MEASURES = {
    "NFR": "rows that it gets wrong and were right, %",
    "change": "change of the accuracy, points",
    "PFR": "rows that it gets right and were wrong, %",
}


def updates(compared: Sequence[Flips]) -> Figure:
    """A panel for every task and two measures, a line for each pair of versions."""
    panels = []
    for column in dict.fromkeys(one.column for one in compared):
        here = [one for one in compared if one.column == column]
        classes = all("change" in one.figures for one in here)
        for measure in ("NFR", "change" if classes else "PFR"):
            series = [_line(one, measure) for one in here]
            task = None if column.startswith(MEAN) else column
            panels.append(Panel(column, MEASURES[measure], "", task, series=series))
    note = "interval: 95%, rows and pairs of seeds drawn together; dots: the same from seed to seed of either version"
    return Figure("flips", "Flips", "flips", "rows", panels, note, dot="from seed to seed of one version")


def _line(one: Flips, measure: str) -> Series:
    figure = one.figures[measure]
    value, low, high = (100 * number for number in (figure.value, figure.low, figure.high))
    floors = [] if measure == "change" else [figure.old_floor, figure.new_floor]  # its own are 0
    dots = [(100 * floor, 0.0) for floor in floors if floor is not None]
    method = one.new if " of " in one.new else one.new.split()[0]
    return Series(f"{one.old} → {one.new}", [value], [0.0], [low], [high], dots=dots, rows=(one.new,), method=method)
