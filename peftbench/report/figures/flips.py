"""Flips of several updates as a figure: how many rows each gets wrong, and what it gains, beside seed to seed."""

from collections.abc import Sequence

from peftbench.report.figures.parts import Figure, Panel, Series
from peftbench.report.flips import MEAN, Flips

CLASSES = {"NFR": "rows that it gets wrong and were right, %", "change": "change of the accuracy, points"}
SCORES = {"NFR": "rows that lie farther from their label, %", "PFR": "rows that lie nearer to it, %"}


def updates(compared: Sequence[Flips]) -> Figure:
    """Two measures in a panel each: for every task with a line for each pair of versions, and where there is one pair
    alone, for all tasks with a line for each."""
    columns, pairs = ({getattr(one, key): None for one in compared} for key in ("column", "new"))
    by_task = len(pairs) == 1 < len(columns)
    together: dict[tuple[str, bool], list[Flips]] = {}
    for one in compared:
        title = _versions(one) if by_task else one.column
        together.setdefault((title, "change" in one.figures), []).append(one)
    panels = []
    for (title, classes), lines in together.items():
        task = None if by_task or title.startswith(MEAN) else title
        for measure, label in (CLASSES if classes else SCORES).items():
            series = [_line(one, measure, one.column if by_task else _versions(one)) for one in lines]
            panels.append(Panel(title, label, "", task, series=series))
    note = "interval: 95%, rows and pairs of seeds drawn together; dots: the same from seed to seed of either version"
    return Figure("flips", "Flips", "flips", "rows", panels, note, dot="from seed to seed of one version")


def _versions(one: Flips) -> str:
    return f"{one.old} → {one.new}"


def _line(one: Flips, measure: str, name: str) -> Series:
    figure = one.figures[measure]
    value, low, high = (100 * number for number in (figure.value, figure.low, figure.high))
    floors = [] if measure == "change" else [figure.old_floor, figure.new_floor]  # its own are 0
    dots = [(100 * floor, 0.0) for floor in floors if floor is not None]
    method = one.new if " of " in one.new else one.new.split()[0]
    return Series(name, [value], [0.0], [low], [high], dots=dots, rows=(one.new,), method=method)
