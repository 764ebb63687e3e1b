"""What a study says beside its scores: measures of every row of its table, task by task, mean and spread over runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import Record
from peftbench.report import predictions
from peftbench.report.predictions import Scored
from peftbench.report.records import Study, is_mean
from peftbench.report.sheet import Sheet
from peftbench.report.table import apart

Run = tuple[Path, Record]
ENDS = ("", ", low", ", high")  # of an interval's three numbers, where each is a line of its own


@dataclass(frozen=True)
class Place:
    """One cell of the study's table: a row, a column and its runs."""

    column: str
    row: str
    runs: list[Run]

    @property
    def classes(self) -> bool:
        """Whether its task has classes."""
        return self.runs[0][1].config["task"]["labels"] is not None


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        decimals: in how many it is shown.
        times: what it is multiplied by to be shown, 100 for percent.
        counted: it is the same in all runs of a cell and shown without a spread.
    """

    name: str
    decimals: int = 1
    times: float = 1.0
    counted: bool = False

    def text(self, values: Sequence[float]) -> str:
        """Mean ± standard deviation over runs; a dash where there is none."""
        if not values:
            return "–"
        shown = f"{self.times * mean(values):,.{self.decimals}f}"
        return (
            shown if len(values) < 2 or self.counted else f"{shown} ± {self.times * stdev(values):,.{self.decimals}f}"
        )


@dataclass(frozen=True)
class Measured:
    """A cell's measures.

    Attributes:
        values: of each the value of every run that has one, or a single value of all runs together.
        runs: how many runs they are of.
        spans: of measures that are a value of all runs with an interval, these three.
    """

    place: Place
    values: Mapping[str, Sequence[float]]
    runs: int
    spans: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def has(self, measure: Measure) -> bool:
        """Whether there is a value."""
        return bool(self.values.get(measure.name) or self.spans.get(measure.name))

    def text(self, measure: Measure) -> str:
        """As a person reads it."""
        if (span := self.spans.get(measure.name)) is None:
            return measure.text(self.values.get(measure.name, ()))
        value, low, high = (f"{measure.times * one:+.{measure.decimals}f}" for one in span)
        return f"{value} [{low}, {high}]"


def places(study: Study) -> list[Place]:
    """Every cell of the study's table that has scored runs on one task, column by column.

    Raises:
        ConfigError: there is none.
    """
    rows = apart(study)[0]
    if not rows.empty:
        rows = rows[~rows["column"].map(is_mean)].dropna(subset=["score"])
    if rows.empty:
        raise ConfigError(f"study {study.name}: no finished run that was scored on one task")
    done = [run for run in zip(study.folders, study.records, strict=True) if run[1].status == "done"]
    order = list(dict.fromkeys(rows["name"]))
    cells = [
        Place(str(column), str(name), [done[int(place)] for place in same["record"]])
        for (column, name), same in rows.groupby(["column", "name"], sort=True)
    ]
    return sorted(cells, key=lambda place: (place.column, order.index(place.row)))


def stored(place: Place, unusable: list[str]) -> Iterator[tuple[Run, Scored]]:
    """The runs of a cell whose predictions are stored, give the recorded score and are of the same rows; why others
    cannot be used is added to `unusable`."""
    labels: np.ndarray | None = None
    for run in place.runs:
        try:
            scored = predictions.headline(*run)
        except DataError as error:
            unusable.append(error.every[0])
            continue
        if scored is None:
            continue
        labels = scored.labels if labels is None else labels
        if np.array_equal(labels, scored.labels):
            yield run, scored
        else:
            unusable.append(f"{run[0]}: predictions with other labels than those of the runs before it")


def sheet(title: str, measures: Sequence[Measure], cells: Sequence[Measured], notes: Sequence[str]) -> Sheet:
    """The view of some measures, those that no cell has left out: a line for every cell of the study's table."""
    measures = [measure for measure in measures if any(one.has(measure) for one in cells)]
    texts: list[list[str]] = []
    numbers: list[list[Any]] = [["task", "method", "measure", "mean", "sd", "runs"]]
    for one in cells:
        column, row, runs = one.place.column, one.place.row, one.runs
        texts.append([column, row, *(one.text(measure) for measure in measures), str(runs)])
        given = {measure.name: values for measure in measures if (values := one.values.get(measure.name, ()))}
        numbers += [[column, row, name, *_numbers(values), runs] for name, values in given.items()]
        ends = [
            (f"{name}{end}", value) for name, span in one.spans.items() for end, value in zip(ENDS, span, strict=True)
        ]
        numbers += [[column, row, name, value, None, runs] for name, value in ends]
    head = ["task", "method", *(measure.name for measure in measures), "runs"]
    return Sheet(title, head, texts, list(notes), numbers, words=2)


def _numbers(values: Sequence[float]) -> list[Any]:
    return [mean(values), stdev(values) if len(values) > 1 else None]


def of_classes(study: Study, measured: Callable[[Place, list[str]], Measured]) -> tuple[list[Measured], list[str]]:
    """Measures of every cell whose task has classes, and the footnotes that say what is left out.

    Args:
        measured: of a cell; why runs cannot be used goes into the list.
    """
    unusable: list[str] = []
    every = places(study)
    cells = [measured(place, unusable) for place in every if place.classes]
    predictions.name_unusable(unusable)
    without = dict.fromkeys(place.column for place in every if not place.classes)
    notes = [f"left out, a task without classes: {', '.join(without)}"] if without else []
    return cells, [*notes, *not_stored(cells)]


def not_stored(cells: Sequence[Measured]) -> list[str]:
    """The footnote that names the cells without a run whose predictions are stored; none where all have some."""
    without = [f"{one.place.row} on {one.place.column}" for one in cells if not one.runs]
    return [f"no predictions are stored of: {', '.join(without)}"] if without else []
