"""A study's figures (matplotlib), as PNG and PDF: readable in print and for colour-blind readers."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbench.record import SEARCH_SUFFIX, BudgetFacts, Record, budget_facts, find_records
from peftbench.report.records import Study, column_of, name_of, readable
from peftbench.report.table import apart

# Okabe and Ito's colours, which colour-blind readers tell apart, each with a marker and a dash of its own for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")

Drawing = Callable[[Study, pd.DataFrame, Path], Figure | None]


def save_all(study: Study, outputs: Path, folder: Path) -> Iterator[Path]:
    """Draw every figure that the study has the records for; gives the paths written."""
    rows = apart(study)[0]
    if rows.empty:
        return
    rows = rows.dropna(subset=["score"])
    for name, draw in FIGURES.items():
        figure = draw(study, rows, outputs)
        if figure is None:
            continue
        for kind in ("png", "pdf"):
            path = folder / f"{name}.{kind}"
            figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"CreationDate": None} if kind == "pdf" else {})
            yield path
        plt.close(figure)


def entries(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Score against trainable backbone entries, with the Pareto front: nothing with fewer entries scores higher."""
    return _scatter(study, rows, "backbone", "trainable backbone entries", log=True)


def seconds(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Score against training time."""
    return _scatter(study, rows, "train_s", "seconds of training")


def memory(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Score against the peak memory of the process."""
    return _scatter(study, rows, "peak_mb", "peak memory (MiB)")


def curves(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Dev score over training: mean over seeds, and the band from the lowest to the highest."""
    figure, axes = _axes(rows)
    records = study.done()
    for axis, (column, same) in zip(axes, rows.groupby("column"), strict=True):
        for i, (name, group) in enumerate(_by_name(rows, same)):
            per_seed = [_curve(records[int(place)]) for place in group["record"]]
            steps = sorted(set.intersection(*(set(curve) for curve in per_seed)))
            values = np.array([[curve[step] for step in steps] for curve in per_seed])
            style = _style(i)
            axis.plot(steps, values.mean(axis=0), label=name, markersize=4, **style)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, lw=0)
        axis.set(title=str(column), xlabel="optimizer steps", ylabel="dev score (%)")
    return _legend(figure, axes)


def seeds(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Every seed's score by method, and their mean."""
    figure, axes = _axes(rows)
    for axis, (column, same) in zip(axes, rows.groupby("column"), strict=True):
        names: list[str] = []
        for i, (name, group) in enumerate(_by_name(rows, same)):
            style = _style(i)
            scores = group["score"].to_numpy()
            axis.scatter(scores, [len(names)] * len(scores), color=style["color"], marker=style["marker"], alpha=0.8)
            axis.plot([scores.mean()] * 2, [len(names) - 0.3, len(names) + 0.3], color="black", lw=1.5)
            names.append(name)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set(title=str(column), xlabel="dev score (%)")
    return figure


def growth(study: Study, rows: pd.DataFrame, _: Path) -> Figure | None:
    """Growing selections: entries unmasked over the steps, their kinds and layers at the end, and layers over time."""
    records = [(record, facts) for record in study.done() if (facts := budget_facts(record.budget)).growth]
    if not records:
        return None
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.8), layout="constrained")
    labels = [f"{name_of(record)}, {column_of(record)}" for record, _ in records]
    for i, label in enumerate(dict.fromkeys(labels)):
        same = [facts for (_, facts), other in zip(records, labels, strict=True) if other == label]
        curve = np.array(same[0].growth)
        axes[0].step(curve[:, 0], curve[:, 1], where="post", label=label, color=_style(i)["color"], ls=DASHES[i % 4])
        for axis, places in ((axes[1], [one.by_kind for one in same]), (axes[2], [one.by_layer for one in same])):
            shares = pd.DataFrame(places).mean() / max(1, same[0].used)
            axis.plot(shares.index, 100 * shares, label=label, **_style(i))
    axes[0].set(xlabel="optimizer steps", ylabel="unmasked entries")
    axes[1].set(xlabel="kind", ylabel="share of the budget (%)")
    axes[1].tick_params(axis="x", rotation=30)
    axes[2].set(xlabel="layer", ylabel="share of the budget (%)")
    for axis in axes[1:3]:
        axis.set_ylim(bottom=0)
    first: BudgetFacts = records[0][1]
    for i, layer in enumerate(first.by_layer):
        counts = [moment.by_layer.get(layer, 0) for moment in first.over_time]
        axes[3].plot([moment.step for moment in first.over_time], counts, label=f"layer {layer}", **_style(i))
    axes[3].set(xlabel="optimizer steps", ylabel="unmasked entries", title=f"by layer: {labels[0]}")
    return _legend(figure, axes)


def rates(study: Study, rows: pd.DataFrame, outputs: Path) -> Figure | None:
    """Score of every learning rate that was tried before the runs, on the rows it was chosen on."""
    points = [
        (column_of(record), record.cell.method, record.lr, 100 * score)
        for _, record in readable(find_records(outputs / f"{study.name}{SEARCH_SUFFIX}"))
        if record.status == "done" and record.metrics.evaluations
        if (score := record.metrics.evaluations[-1].chosen_by) is not None
    ]
    if not points:
        return None
    tried = pd.DataFrame(points, columns=["column", "name", "lr", "score"])
    figure, axes = _axes(tried)
    for axis, (column, same) in zip(axes, tried.groupby("column"), strict=True):
        for i, (name, group) in enumerate(_by_name(tried, same)):
            group = group.sort_values("lr")
            axis.semilogx(group["lr"], group["score"], label=name, **_style(i))
        axis.set(title=str(column), xlabel="learning rate", ylabel="score on the rows of the search (%)")
    return _legend(figure, axes)


FIGURES: dict[str, Drawing] = {
    "entries": entries,
    "seconds": seconds,
    "memory": memory,
    "curves": curves,
    "seeds": seeds,
    "growth": growth,
    "learning_rates": rates,
}


def _scatter(study: Study, rows: pd.DataFrame, x: str, label: str, log: bool = False) -> Figure:
    figure, axes = _axes(rows)
    for axis, (column, same) in zip(axes, rows.groupby("column"), strict=True):
        points = []
        for i, (name, group) in enumerate(_by_name(rows, same)):
            style = _style(i) | {"linestyle": "none"}
            cost, score = float(group[x].median()), float(group["score"].mean())
            spread = float(group["score"].std()) if len(group) > 1 else 0.0
            axis.errorbar(max(cost, 1.0) if log else cost, score, yerr=spread, label=name, capsize=3, **style)
            points.append((max(cost, 1.0) if log else cost, score))
        front = pareto(points)
        axis.step(*zip(*front, strict=True), where="post", color="grey", lw=1, zorder=0)
        axis.set(title=str(column), xlabel=label, ylabel="dev score (%)")
        if log:
            axis.set_xscale("log")
    return _legend(figure, axes)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score), those that no cheaper or equally cheap point reaches, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _axes(rows: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    number = rows["column"].nunique()
    figure, axes = plt.subplots(1, number, figsize=(4.2 * number, 3.8), squeeze=False, layout="constrained")
    return figure, list(axes[0])


def _by_name(every: pd.DataFrame, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every name of the study in one order, so that it has one colour in all panels; empty ones are skipped."""
    for name in dict.fromkeys(every["name"]):
        if len(group := rows[rows["name"] == name]):
            yield str(name), group


def _style(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def _legend(figure: Figure, axes: Sequence[Axes]) -> Figure:
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _curve(record: Record) -> dict[int, float]:
    name = record.headline.name
    scores = {item.step: item.metrics.get(name) for item in record.metrics.evaluations}
    return {step: 100 * score for step, score in scores.items() if score is not None}
