"""A study's figures as files (matplotlib): PNG, SVG and PDF, readable in print and for colour-blind readers."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from peftbench.report.figures.every import figures
from peftbench.report.figures.parts import Figure, Front, Material, Panel, style_of
from peftbench.report.records import Study

LEGEND_LINE = 0.17  # inches
MOST_MARKERS = 30  # on one line
LINES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
FORMATS: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

Methods = Mapping[str, str]


def save_all(study: Study, folder: Path) -> Iterator[Path]:
    """Draw every figure that the study has the records for; gives the paths written."""
    material = Material(study)
    for figure in figures(material):
        yield from save(figure, material.methods, folder)


def save(figure: Figure, methods: Methods, folder: Path) -> Iterator[Path]:
    """Draw one figure; gives the paths written.

    Args:
        methods: of every row of the table.
    """
    drawing = draw(figure, methods)
    for form, metadata in FORMATS.items():
        path = folder / f"{figure.word}.{form}"
        with matplotlib.rc_context({"svg.hashsalt": figure.word}):  # the same numbers are the same file
            drawing.savefig(path, dpi=150, metadata=metadata)
        drawing.set_layout_engine("none")  # it stays where it is: to lay it out takes longer than to draw it
        yield path
    plt.close(drawing)


def draw(figure: Figure, methods: Methods) -> Drawing:
    """One figure: a grid of small plots, one legend below.

    Args:
        methods: of every row of the table.
    """
    number = len(figure.panels)
    across = number if number <= 3 or figure.kind == "map" else 2 if number == 4 else 3
    most = max(len(panel.series) for panel in figure.panels)
    alone = number == 1 and figure.kind in ("points", "lines")  # its legend needs room
    height = 0.8 + 0.28 * most if figure.kind == "rows" else 4.6 if alone else 3.4
    width = 3.2 if figure.kind == "map" else 7.0 if alone else 4.6
    size = (width * across, max(2.4, height) * math.ceil(number / across))
    if figure.kind in ("points", "lines"):
        labels = {one.name for panel in figure.panels for one in panel.series}
        size = (size[0], size[1] + LEGEND_LINE * math.ceil(len(labels) / _columns(size[0], labels)))
    drawing, axes = plt.subplots(math.ceil(number / across), across, figsize=size, squeeze=False, layout="constrained")
    every = list(axes.flat)
    for axis in every[number:]:
        axis.set_visible(False)
    for axis, panel in zip(every, figure.panels, strict=False):
        DRAW[figure.kind](axis, panel, methods)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.limits:
            (axis.set_xlim if figure.kind == "rows" else axis.set_ylim)(panel.limits)
        if panel.ticks:
            axis.set_xticks([x for x, _ in panel.ticks], [word for _, word in panel.ticks], minor=False)
            axis.set_xticks([], minor=True)
        axis.text(0.01, 0.01, panel.below, fontsize=8, color="dimgrey", transform=axis.transAxes)
    if figure.kind in ("points", "lines"):
        _legend(drawing, every[:number], size[0])
    drawing.suptitle(figure.choice if figure.kind == "map" else "", fontsize=10)
    return drawing


def _points(axis: Axes, panel: Panel, methods: Methods) -> None:
    if panel.log:
        axis.set_xscale("log")
    if panel.front:
        _front(axis, panel.front)
    for one in panel.series:
        look = style_of(one, methods)
        face = look.colour if look.filled else "none"
        bars = [[one.y[0] - one.low[0]], [one.high[0] - one.y[0]]] if one.low else None
        axis.scatter(
            [x for x, _ in one.dots], [y for _, y in one.dots], color=look.colour, marker=".", s=10, alpha=0.5, lw=0
        )
        axis.errorbar(
            one.x, one.y, bars, label=one.name, color=look.colour, marker=look.marker, mfc=face, ls="none", capsize=2
        )


def _front(axis: Axes, front: Front) -> None:
    x = [*front.x, max(front.x)]  # the last step ends where it begins
    axis.step(x, [*front.y, front.y[-1]], where="post", color="grey", lw=1, zorder=0)
    low, high = [*front.low, front.low[-1]], [*front.high, front.high[-1]]
    axis.fill_between(x, low, high, step="post", color="grey", alpha=0.15, lw=0, zorder=0)


def _lines(axis: Axes, panel: Panel, methods: Methods) -> None:
    if panel.log:
        axis.set_xscale("log")
    for one in panel.series:
        look = style_of(one, methods)
        face = look.colour if look.filled else "none"
        every = math.ceil(len(one.x) / MOST_MARKERS)
        axis.plot(
            one.x, one.y, label=one.name, color=look.colour, marker=look.marker, markevery=every, ms=4, mfc=face,
            ls=LINES[look.dash], lw=1.2
        )  # fmt: skip
        if one.low:
            axis.fill_between(one.x, one.low, one.high, color=look.colour, alpha=0.12, lw=0)
        if one.dots:
            axis.scatter(
                [x for x, _ in one.dots], [y for _, y in one.dots], s=90, facecolors="none", edgecolors=look.colour
            )


def _rows(axis: Axes, panel: Panel, methods: Methods) -> None:
    for at, one in enumerate(panel.series):
        look = style_of(one, methods)
        axis.scatter([x for x, _ in one.dots], [at] * len(one.dots), color=look.colour, marker=".", s=14, alpha=0.6)
        bars = [[one.x[0] - one.low[0]], [one.high[0] - one.x[0]]] if one.low else None
        face = look.colour if look.filled else "none"
        axis.errorbar(one.x, [at], xerr=bars, color=look.colour, marker=look.marker, mfc=face, capsize=2)
    axis.set_yticks(range(len(panel.series)), [one.name for one in panel.series])
    axis.invert_yaxis()
    axis.grid(axis="x", lw=0.4)


def _map(axis: Axes, panel: Panel, _: Methods) -> None:
    assert panel.map
    shown = axis.imshow(panel.map.values, cmap="cividis", vmin=0, aspect="auto", origin="lower")
    axis.set_xticks(range(len(panel.map.columns)), panel.map.columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(panel.map.rows)), panel.map.rows, fontsize=7)
    axis.figure.colorbar(shown, ax=axis, fraction=0.05).ax.tick_params(labelsize=7)


DRAW: dict[str, Callable[[Axes, Panel, Methods], None]] = {
    "points": _points,
    "lines": _lines,
    "rows": _rows,
    "map": _map,
}


def _legend(drawing: Drawing, axes: Sequence[Axes], width: float) -> None:
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        columns = _columns(width, handles)
        drawing.legend(
            [*handles.values()], [*handles], loc="outside lower center", ncols=columns, fontsize=8, frameon=False
        )


def _columns(width: float, labels: Collection[str]) -> int:
    """Columns of a legend that a drawing has room for, so many inches wide."""
    return max(1, int(width / (0.55 + 0.062 * max(map(len, labels), default=0))))
