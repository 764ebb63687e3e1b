"""What a figure is made of. It says what is shown; `plots` draws it to files, the page's script in a browser."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import pandas as pd

from peftbench.record import Record
from peftbench.report.aggregates import Comparable, comparable
from peftbench.report.records import Study, limits_of_column, repeated
from peftbench.report.statistics import of_mean
from peftbench.report.styles import Style, style
from peftbench.report.table import apart

Kind = Literal["points", "lines", "rows", "map"]
Pair = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One row of the study's table in one panel, or several in one line; all lists have one value per point.

    Attributes:
        name: the row, or what the line of several rows is called.
        x, y: where the points are.
        low, high: the interval of y; empty: none is known.
        notes: what a point says when it is looked at.
        dots: (x, y) of what lies behind: single seeds; of a search, the rate that was chosen.
        rows: the rows that a line joins; empty: the one of its name.
        method: whose colour and marker it has; empty: that of its rows.
    """

    name: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dots: list[Pair] = field(default_factory=list)
    rows: tuple[str, ...] = ()
    method: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """Every row of the study's table that it is of."""
        return self.rows or (self.name,)


@dataclass(frozen=True)
class Front:
    """A Pareto front as steps: from x on, the best mean that so much buys, with the interval of its method."""

    x: list[float]
    y: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Map:
    """Numbers by row and column, in percent of `whole`."""

    rows: list[str]
    columns: list[str]
    values: list[list[float]]


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Attributes:
        column: the table's column that it belongs to; None: it is over all tasks.
        limits: of the scores' axis, where a few far below would press the others together; below: what lies there.
        ticks: places on the x axis and their words; empty: those that the scale gives.
    """

    title: str
    x_label: str
    y_label: str
    column: str | None = None
    log: bool = False
    series: list[Series] = field(default_factory=list)
    front: Front | None = None
    map: Map | None = None
    limits: Pair | None = None
    below: str = ""
    ticks: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        word: the name of its file.
        group, choice: figures of one group share a place on the page, where one is chosen.
        kind: points with intervals; lines with bands; rows of one series each, x being the value; maps.
        note: what the marks mean.
        row: the row of the table that a map is of.
        dot: what one of the small dots is, as it says when it is looked at.
    """

    word: str
    group: str
    choice: str
    kind: Kind
    panels: list[Panel]
    note: str
    row: str | None = None
    dot: str = "one seed"


@dataclass(frozen=True)
class Summary:
    """One row of the table in one column: the mean over seeds (or splits), its 95% t-interval and these.

    The interval is None where there is one seed, or all are equal.
    """

    mean: float
    low: float | None
    high: float | None
    scores: list[float]

    def words(self) -> str:
        """The figures, as they are read beside a point."""
        interval = "" if self.low is None else f", 95% interval {self.low:.2f} to {self.high:.2f}"
        return f"{self.mean:.2f}{interval}, n={len(self.scores)}"


def summary(scores: Iterable[float], limits: Pair = (-math.inf, math.inf)) -> Summary:
    """Mean and t-interval over seeds, of at least one score; `limits` are what a score can be."""
    values = [float(score) for score in scores]
    low, high = of_mean(values, limits) or (None, None)
    mean = sum(values) / len(values)
    return Summary(mean, low, high, values)


def bounds(summaries: Sequence[Summary]) -> tuple[list[float], list[float]]:
    """The interval of every point, low and high; the mean itself where none is known, nothing where none has one."""
    if all(one.low is None for one in summaries):
        return [], []
    low = [one.mean if one.low is None else one.low for one in summaries]
    return low, [one.mean if one.high is None else one.high for one in summaries]


class Material:
    """A study as figures need it.

    Attributes:
        study: its records.
        rows: its scored runs, as `apart` gives them.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.rows: pd.DataFrame = apart(study)[0]
        if not self.rows.empty:
            self.rows = self.rows.dropna(subset=["score"])

    @cached_property
    def records(self) -> list[Record]:
        """Finished runs; `rows["record"]` is their place."""
        return self.study.done()

    @cached_property
    def columns(self) -> list[str]:
        """The table's columns, in its order."""
        return sorted(self.rows["column"].unique())

    @cached_property
    def methods(self) -> dict[str, str]:
        """The method of every row of the table."""
        return dict(zip(self.rows["name"], self.rows["method"], strict=True))

    @cached_property
    def groups(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Runs by row and column of the table."""
        grouped = self.rows.groupby(["name", "column"], sort=False)
        return {(str(name), str(column)): same for (name, column), same in grouped}

    @cached_property
    def summaries(self) -> dict[tuple[str, str], Summary]:
        """The same, summed up; splits of few labels count once each."""
        scores = {key: repeated(same.set_index("split")[["score"]])["score"] for key, same in self.groups.items()}
        return {key: summary(own, limits_of_column(key[1])) for key, own in scores.items()}

    @cached_property
    def together(self) -> Comparable:
        """The scores of all columns on one scale."""
        return comparable(self.rows)

    def of(self, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """Every row of the table that has runs in a column, and these runs; the rows in one order for all columns."""
        yield from ((name, self.groups[name, column]) for name in self.methods if (name, column) in self.groups)


def style_of(series: Series, methods: Mapping[str, str]) -> Style:
    """The style of a series, given the method of every row: what else its name says makes another dash."""
    method = series.method or methods.get(series.shown[0], series.name)
    return style(method, series.name.removeprefix(method).strip())
