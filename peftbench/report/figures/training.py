"""What happened on the way: learning curves, learning rates that were tried, what growing selections chose."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from peftbench.ground.quantity import quantity
from peftbench.ground.record_parts import Moment
from peftbench.record import BudgetFacts, Record, budget_facts
from peftbench.report.figures.parts import Figure, Map, Material, Panel, Series
from peftbench.report.rates import Key, Tried, tried

MOST_POINTS = 200  # of a growth's line
LONGEST_WORD = 100  # letters of a file's name
MOMENTS = 5  # of a map over time
RATES: list[tuple[Key, str, str]] = [
    ("lr", "learning_rates", "learning rate"),
    ("head_lr", "head_rates", "learning rate of the head"),
]


def curves(material: Material) -> Iterator[Figure]:
    """Dev score over training: mean over seeds, and the band from the lowest to the highest; of no artefact."""
    panels = []
    for column in material.columns:
        series = []
        for name, same in material.of(column):
            records = [material.records[int(place)] for place in same["record"]]
            if any(record.made for record in records):  # its evaluations are stages, or go on from a run's
                continue
            scores = [_curve(record) for record in records]
            steps = sorted(set.intersection(*(set(curve) for curve in scores)))
            if len(steps) < 2:  # looked at once, at the end
                continue
            values = np.array([[curve[step] for step in steps] for curve in scores])
            middle, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
            notes = [
                f"{y:.2f}, seeds from {least:.2f} to {most:.2f}, n={len(scores)}, after {quantity(x, 'step')}"
                for x, y, least, most in zip(steps, middle, low, high, strict=True)
            ]
            series.append(Series(name, [*map(float, steps)], middle.tolist(), low.tolist(), high.tolist(), notes))
        if series:
            panels.append(Panel(column, "optimizer steps", "dev score (%)", column, series=series))
    if panels:
        note = "mean over seeds; band: from the lowest to the highest seed"
        yield Figure("curves", "Learning curves", "curves", "lines", panels, note)


def rates(material: Material) -> Iterator[Figure]:
    """Score of every rate that was tried before the runs, on the rows it was chosen on: the backbone's, the head's."""
    searched = tried(material.study, material.rows)
    for key, word, name in RATES:
        panels = []
        for column in material.columns:
            series = [_sensitivity(one) for one in searched if (one.key, one.column) == (key, column) and one.known]
            if series:
                label = "score on the rows of the search (%)"
                panels.append(Panel(column, name, label, column, True, series))
        if panels:
            yield Figure(word, "Learning rates", name, "lines", panels, "ringed: the rate that was chosen")


def _sensitivity(one: Tried) -> Series:
    """A line over the rates of one row in one column."""
    notes = [f"{y:.2f} at {x:g}" + (", chosen" if x == one.chosen else "") for x, y in one.known.items()]
    dots = [(x, y) for x, y in one.known.items() if x == one.chosen]
    return Series(one.name, list(one.known), list(one.known.values()), notes=notes, dots=dots)


def growth(material: Material) -> Iterator[Figure]:
    """Selections that change in training: entries over the steps, by task."""
    panels = []
    for column in material.columns:
        series = []
        for name, facts in _selections(material, column):
            if not facts[0].growth:
                continue
            points = facts[0].growth[:: max(1, len(facts[0].growth) // MOST_POINTS)]
            notes = [f"{quantity(count, 'entry')} after {quantity(step, 'step')}" for step, count in points]
            steps, counts = ([float(point[axis]) for point in points] for axis in (0, 1))
            series.append(Series(name, steps, counts, notes=notes))
        if series:
            panels.append(Panel(column, "optimizer steps", "entries chosen", column, series=series))
    if panels:
        yield Figure("growth", "Entries over training", "entries", "lines", panels, "of the first seed")


def chosen(material: Material) -> Iterator[Figure]:
    """Which layers and kinds a selection had chosen by when: one figure for every row and task, means over seeds."""
    for column in material.columns:
        for name, facts in _selections(material, column):
            panels = [*_maps_over_time(facts, column)] or [*_margins(facts, column)]
            if panels:
                word = "chosen_" + re.sub(r"[^a-z0-9.-]+", "_", f"{name} {column}".lower()).strip("_")[:LONGEST_WORD]
                note = "percent of the entries chosen by then, mean over seeds"
                yield Figure(word, "What was chosen over time", f"{name}, {column}", "map", panels, note, name)


def _maps_over_time(facts: Sequence[BudgetFacts], column: str) -> Iterator[Panel]:
    """Layers x kinds at up to five moments."""
    moments = min((one.over_time for one in facts), key=len)
    moments = [moment for moment in moments if moment.by_place]
    places = sorted({round(i * (len(moments) - 1) / (MOMENTS - 1)) for i in range(MOMENTS)}) if moments else []
    for at in places:
        same = [one.over_time[at] for one in facts if at < len(one.over_time)]
        kinds = list(dict.fromkeys(kind for moment in same for kind in moment.by_kind))
        layers = _layers(same)
        values = [
            [_share([(m.by_place.get(f"{layer} {kind}", 0), _all(m)) for m in same]) for kind in kinds]
            for layer in layers
        ]
        yield Panel(f"after {quantity(same[0].step, 'step')}", "kind", "layer", column, map=Map(layers, kinds, values))


def _margins(facts: Sequence[BudgetFacts], column: str) -> Iterator[Panel]:
    """Layers over time and kinds over time, of records that do not say which kind in which layer."""
    moments = list(zip(*(one.over_time for one in facts), strict=False))
    if not moments:
        return
    steps = [f"{same[0].step:,}" for same in moments]
    kinds = list(dict.fromkeys(kind for same in moments for moment in same for kind in moment.by_kind))
    layers = _layers([moment for same in moments for moment in same])
    by_layer = [[_share([(m.by_layer.get(one, 0), _all(m)) for m in same]) for same in moments] for one in layers]
    by_kind = [[_share([(m.by_kind.get(one, 0), _all(m)) for m in same]) for same in moments] for one in kinds]
    yield Panel("layers", "optimizer steps", "layer", column, map=Map(layers, steps, by_layer))
    yield Panel("kinds", "optimizer steps", "", column, map=Map(kinds, steps, by_kind))


def _all(moment: Moment) -> int:
    return sum(moment.by_kind.values())


def _share(counts: Sequence[tuple[int, int]]) -> float:
    """Mean share, in percent."""
    return round(100 * sum(part / max(1, whole) for part, whole in counts) / len(counts), 2)


def _layers(moments: Sequence[Moment]) -> list[str]:
    names = {layer for moment in moments for layer in moment.by_layer}
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def _selections(material: Material, column: str) -> Iterator[tuple[str, list[BudgetFacts]]]:
    """Rows whose records say what was chosen, and what they say."""
    for name, same in material.of(column):
        facts = [budget_facts(material.records[int(place)].budget) for place in same["record"]]
        told = [one for one in facts if one.over_time or one.growth]
        if told:
            yield name, told


def _curve(record: Record) -> dict[int, float]:
    name = record.headline.name
    scores = {item.step: item.metrics.get(name) for item in record.metrics.evaluations}
    return {step: 100 * score for step, score in scores.items() if score is not None}
