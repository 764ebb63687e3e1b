"""Papers as data: published figures with their source, split, selection rule, average and certainty."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from peftbench.config.validate import parse
from peftbench.config.words import conf_dir
from peftbench.ground.errors import ConfigError, near
from peftbench.record import Record

Scores = dict[str, dict[str, float]]

# A paper's name of a metric -> ours, in one dev set or in several of which the mean counts.
METRICS = {
    "matthews": ("matthews_correlation",),
    "accuracy": ("accuracy",),
    "f1": ("f1",),
    "pearson": ("pearson",),
    "spearman": ("spearman",),
    "pearson_spearman_mean": ("pearson", "spearman"),
    "accuracy_matched": ("accuracy_matched",),
    "accuracy_mismatched": ("accuracy_mismatched",),
    "accuracy_overall": ("accuracy_matched", "accuracy_mismatched"),
}
MNLI_ROWS = {"accuracy_matched": 9815, "accuracy_mismatched": 9832}  # accuracy_overall weighs by rows


@dataclass(frozen=True)
class Average:
    """How a paper averages.

    Attributes:
        tasks: task -> the metrics whose mean is its column; None: not known, or not to be recomputed.
        combine: how the columns make the average, in words.
        checked: what recomputing the published averages showed.
    """

    tasks: dict[str, tuple[str, ...]] | None
    combine: str | None
    checked: str


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        name: as the paper calls it.
        backbone: as published.
        model: our word for the backbone; None: this bench does not have it.
        run: overrides that run it; None: this bench cannot.
        trainable: the count as printed.
        count: exact entries, where a closed form reproduces the printed count.
        counts_head: whether the head is counted.
        average: as printed.
        scores: task -> metric -> percent, exactly as published; "unspecified" is never compared.
        spread: standard deviations, likewise.
        certainty: R read in the named source, S a secondary source, derived by arithmetic.
    """

    name: str
    backbone: str
    model: str | None
    run: tuple[str, ...] | None
    trainable: str | None
    count: int | None
    average: float | None
    scores: Scores
    certainty: Literal["R", "S", "derived"]
    counts_head: bool = False
    count_note: str | None = None
    spread: Scores = field(default_factory=dict)
    source: str | None = None
    selection: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Paper:
    """A published table.

    Attributes:
        source: where the figures were read.
        split: the split that they are scored on.
        selection: seeds and checkpoint rule, as published.
        protocol: overrides that every cell of the table shares.
        switch: where paper and released scripts disagree: name of the side -> "<method or task>: overrides".
        tasks: protocol keys per task, for the methods in `of`; keys of other groups in full (method.alpha).
        starts_from_mnli: tasks whose runs start from the MNLI run of the same row and seed, for the methods in `of`.
        unscored: tasks that the table's sweep runs though their figures are not public.
    """

    name: str
    title: str
    work: str
    arxiv: str | None
    source: tuple[str, ...]
    split: Literal["dev", "test"]
    selection: str
    average: Average
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    protocol: tuple[str, ...] = ()
    switch: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    of: tuple[str, ...] = ()
    starts_from_mnli: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()

    @property
    def statistic(self) -> Literal["mean", "median"]:
        """What the paper shows of its seeds."""
        return "median" if self.selection.startswith("median") else "mean"

    def scored_tasks(self) -> list[str]:
        """Tasks with a published figure in any row."""
        return sorted({task for row in self.rows for task in row.scores})


def names() -> list[str]:
    """Every paper there is."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


@cache
def load(name: str) -> Paper:
    """A paper by its word.

    Raises:
        ConfigError: there is none, or its file is not valid.
    """
    if name not in names():
        raise ConfigError(f"paper {name}: there is none; {near(name, names())}")
    text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    raw = {"name": name, "title": text.splitlines()[0].lstrip("# "), **yaml.safe_load(text)}
    return parse(Paper, raw, f"paper.{name}")


def score(metrics: Mapping[str, Any], metric: str) -> float | None:
    """A paper's metric in percent, from the metrics of an evaluation of ours; None where it cannot be had."""
    names = METRICS.get(metric, ())
    if not names or any(metrics.get(name) is None for name in names):
        return None
    weights = [MNLI_ROWS.get(name, 1) if metric == "accuracy_overall" else 1 for name in names]
    return 100 * sum(float(metrics[name]) * weight for name, weight in zip(names, weights, strict=True)) / sum(weights)


def row_of(paper: Paper, record: Record) -> Row | None:
    """The published row that a record's method and backbone are those of."""
    fits = [row for row in paper.rows if row.model == record.cell.model and row.run and _fits(row.run, record)]
    return fits[0] if fits else None


def _fits(run: Sequence[str], record: Record) -> bool:
    given = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in run)}
    label = record.config.get("label")
    if given.pop("method") != (record.cell.method.removesuffix(f"_{label}") if label else record.cell.method):
        return False
    config = record.config
    if config["budget"].get("entries") != _entries(given.pop("budget", "none")):
        return False
    return all(config["method"].get(key.removeprefix("method.")) == value for key, value in given.items())


@cache
def _entries(budget: str) -> int | None:
    """How many entries a word of conf/budget means."""
    raw = yaml.safe_load((conf_dir() / "budget" / f"{budget}.yaml").read_text(encoding="utf-8"))
    return None if raw["entries"] is None else int(raw["entries"])


def _folder() -> Path:
    return conf_dir() / "paper"
