"""What an update does to single rows: right answers that become wrong (negative flips) and their kin, from predictions.

Measures as in MUSCLE (arXiv 2407.09435, section 3): over N rows with an old model's answer, a new one's and the truth,

- `change` of the accuracy = PFR - NFR; NFR: share of rows right before and wrong after; PFR: the reverse;
- NFR_mc: share of rows wrong after, and not with the answer of before (of two classes it equals NFR);
- NFI: NFR as a share of the new model's errors; `trust`, backward: 1 - NFR / old accuracy;
- for a regression the rows' score is -|prediction - label|: NFR and PFR are the shares of rows that lose and gain,
  `loss` and `gain` what these rows lose and gain on average, in the units of the label.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from csv import writer as csv_writer
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from peftbench.ground import escape
from peftbench.ground.errors import DataError, shown
from peftbench.ground.predictions import path_of, read
from peftbench.ground.quantity import quantity
from peftbench.record import Record
from peftbench.report import bootstrap, predictions
from peftbench.report.versions import Version

EXCESS = "NFR above seed to seed"
MEAN = "mean of "  # begins the column of a mean over tasks
RESAMPLES = 1000
CHUNK = 50  # resamples at a time: QQP's 40,430 rows take 8 MB each 50
MEASURES = ("accuracy", "change", "NFR", "PFR", "NFR_mc", "NFI", "trust", "loss", "gain")
UNITS = ("loss", "gain")  # the measures that are no shares
REGRESSION = ("pearson", "spearman")


@dataclass(frozen=True)
class Figure:
    """One measure, a share or, for `gain` and `loss`, in the label's units.

    Attributes:
        value: mean over pairs of seeds.
        low, high: its 95% interval, of rows and pairs drawn together.
        old_floor, new_floor: the same between different seeds of the old row, and of the new one: what flips when
            nothing but the seed changes. None where there is one seed.
        excess: of NFR, value minus the larger of the two floors, with its 95% interval, rows drawn for all alike.
    """

    value: float
    low: float
    high: float
    old_floor: float | None = None
    new_floor: float | None = None
    excess: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Flipped:
    """A row of the scored split (from 0) and in how many of the pairs it flipped, and which way."""

    row: int
    label: str
    negative: int
    positive: int
    pairs: int


@dataclass(frozen=True)
class Flips:
    """An old and a new version on one task.

    Attributes:
        column: task and metric; "mean of N" for the mean over tasks with classes.
        old, new: names of the versions.
        pairs: of seeds.
        scores: old and new headline in percent, mean over these seeds.
        figures: by measure; those that the task's kind has.
        flipped: rows that flipped in any pair, most negative flips first.
    """

    column: str
    old: str
    new: str
    pairs: int
    scores: tuple[float | None, float | None]
    figures: dict[str, Figure]
    flipped: list[Flipped]


@dataclass(frozen=True)
class Answers:
    """What a run says of every row of its scored split.

    Attributes:
        said: labels, or numbers, (rows,).
        truth: likewise.
    """

    said: np.ndarray
    truth: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether each row is right, (rows,)."""
        return np.asarray(self.said == self.truth)

    @property
    def error(self) -> np.ndarray:
        """Distance of each number from the label, (rows,)."""
        return np.asarray(np.abs(self.said - self.truth))


def grid(compared: Sequence[Flips]) -> list[list[str]]:
    """The head and up to three rows for every task and two versions, as a person reads them, in percent.

    The first row has the figures with their intervals, the others what they are between seeds of one version.
    Measures that no task has are left out.
    """
    names = [name for name in MEASURES if any(name in one.figures for one in compared)]
    rows = [["task", "versions", "pairs", "score", *names]]
    for one in compared:
        scores = " → ".join("–" if score is None else f"{score:.1f}" for score in one.scores)
        figures = [_shown(name, one.figures.get(name)) for name in names]
        rows.append([one.column, f"{one.old} → {one.new}", str(one.pairs), scores, *figures])
        if (nfr := one.figures["NFR"].excess) is not None:
            texts = [_interval("NFR", *nfr) if name == "NFR" else "" for name in names]
            rows.append(["", "above seed to seed", "", "", *texts])
        for version, side in ((one.old, "old_floor"), (one.new, "new_floor")):
            floors = {
                name: value for name, figure in one.figures.items() if (value := getattr(figure, side)) is not None
            }
            if floors:
                texts = [_number(name, floors[name]) if name in floors else "–" for name in names]
                rows.append(["", f"seed to seed of {version}", "", "", *texts])
    return rows


def notes(compared: Sequence[Flips]) -> list[str]:
    """What the grid's columns mean, of those that it has."""
    names = {name for one in compared for name in one.figures}
    regression = names.intersection(UNITS)
    return [
        "in percent of the dev rows [95% interval, rows and pairs of seeds drawn together]",
        "seed to seed: what flips where nothing but the seed of one version changes",
        "NFR, PFR: rows that went from right to wrong, and from wrong to right; change: of the accuracy, PFR - NFR",
        "NFR_mc: wrong after, and not with the answer of before; NFI: NFR as a share of the new errors",
        "trust: 1 - NFR / old accuracy",
        *(["of numbers, NFR, PFR: rows whose error grew, shrank; loss, gain: by how much"] if regression else []),
    ]


def _shown(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    return _interval(name, figure.value, figure.low, figure.high)


def _interval(name: str, value: float, low: float, high: float) -> str:
    return f"{_number(name, value)} [{_number(name, low)}, {_number(name, high)}]"


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name in UNITS else f"{100 * value:.1f}"


def csv(compared: Sequence[Flips]) -> str:
    """One line per task, two versions and measure; shares, not percent."""
    out = io.StringIO()
    writer = csv_writer(out, lineterminator="\n")
    writer.writerow(["column", "old", "new", "pairs", "measure", "value", "low", "high", "old_floor", "new_floor"])
    for one in compared:
        for name, figure in one.figures.items():
            words = [escape.csv(word) for word in (one.column, one.old, one.new)]
            floors = [figure.old_floor, figure.new_floor]
            writer.writerow([*words, one.pairs, name, figure.value, figure.low, figure.high, *floors])
    return out.getvalue()


def between(pairs: Sequence[tuple[Version, Version]]) -> list[Flips]:
    """Flips of every pair of versions, task by task, and their mean over tasks where the same two have several.

    Raises:
        DataError: predictions cannot be read, or are of other rows.
    """
    compared, draws = [], []
    for old, new in pairs:
        one, drawn = of_task(old, new)
        compared.append(one)
        draws.append(drawn)
    return [*compared, *_overall(compared, draws)]


def of_task(old: Version, new: Version) -> tuple[Flips, dict[str, np.ndarray]]:
    """Flips on one task, and the draws of each measure that its intervals are of, (RESAMPLES,).

    The draws are the same rows and pairs for whatever has as many of both.

    Raises:
        DataError: predictions cannot be read, or are of other rows.
    """
    before = {seed: answers(*run) for seed, run in old.runs.items()}
    after = {seed: answers(*run) for seed, run in new.runs.items()}
    _check_same_rows([*old.runs.values(), *new.runs.values()], [*before.values(), *after.values()])
    seeds = list(zip(old.seeds, new.seeds, strict=True))
    parts = np.stack([per_row(before[i], after[j]) for i, j in seeds])
    drawn = _draws(parts)
    floors = [_floor(version) for version in (before, after)]
    means = {name: float(np.mean(values)) for name, values in measures(parts.mean(axis=2, dtype=np.float64)).items()}
    sides = {name: [floor[name][0] if floor else None for floor in floors] for name in means}
    figures = {
        name: Figure(mean, *bootstrap.interval(drawn[name]), sides[name][0], sides[name][1])
        for name, mean in means.items()
    }
    if known := [floor["NFR"] for floor in floors if floor]:
        mean, of_mean = max(known, key=lambda floor: floor[0])
        drawn[EXCESS] = drawn["NFR"] - of_mean
        excess = (means["NFR"] - mean, *bootstrap.interval(drawn[EXCESS]))
        figures["NFR"] = replace(figures["NFR"], excess=excess)
    flipped = _flipped(parts, before[seeds[0][0]].truth)
    return Flips(old.column, old.name, new.name, len(seeds), _scores(old, new), figures, flipped), drawn


def constant(pairs: Sequence[tuple[Version, Version]]) -> list[str]:
    """A line for every version with runs that give all rows one answer: its flips, and its floor, are of a constant.

    Raises:
        DataError: predictions cannot be read.
    """
    lines = []
    for version in {id(one.runs): one for pair in pairs for one in pair}.values():
        same = sum(len(set(answers(*run).said.tolist())) == 1 for run in version.runs.values())
        if same:
            runs = quantity(len(version.runs), "run")
            lines.append(f"{version.column}, {version.name}: {same} of {runs} give every row one answer")
    return lines


def answers(folder: Path, record: Record) -> Answers:
    """A run's answers on the split of its headline.

    Raises:
        DataError: they cannot be read, there are none, or some have no label.
    """
    split = predictions.scored_split(record)
    rows = read(folder, split)
    path = path_of(folder, split)
    if not rows or not all(label for _, label in rows):
        raise DataError(f"{path}: {'a row has no label' if rows else 'no row'}")
    said, truth = zip(*rows, strict=True)
    if record.headline.name not in REGRESSION:
        return Answers(np.array(said), np.array(truth))
    try:
        numbers = Answers(*(np.array([float(text) for text in column]) for column in (said, truth)))
    except ValueError as error:
        raise DataError(f"{path}: not of a regression ({shown(error)})") from None
    if not np.isfinite(numbers.error).all():
        raise DataError(f"{path}: not of a regression (a number is not finite)")
    return numbers


def _check_same_rows(runs: Sequence[tuple[Path, Record]], every: Sequence[Answers]) -> None:
    """Refuse runs whose scored rows, labels or label names are not the first one's."""
    (first, record), known = runs[0], every[0]
    split = predictions.scored_split(record)
    for (folder, other), answered in zip(runs[1:], every[1:], strict=True):
        both = f"{first} and {folder}"
        if other.config["task"]["labels"] != record.config["task"]["labels"]:
            raise DataError(f"{both}: the labels have other names")
        if other.hashes.data.get(split) != record.hashes.data.get(split):
            raise DataError(f"{both}: other rows of {split}; flips are counted row by row")
        if len(answered.truth) != len(known.truth):
            raise DataError(f"{both}: {len(known.truth)} and {len(answered.truth)} predictions of {split}")
        if not np.array_equal(answered.truth, known.truth):
            row = int(np.flatnonzero(answered.truth != known.truth)[0])
            raise DataError(f"{both}: row {row} of {split} has two labels")


def per_row(old: Answers, new: Answers) -> np.ndarray:
    """What the measures are means of, row by row, (parts, rows): see `measures`."""
    if old.said.dtype.kind == "f":
        change = old.error - new.error
        columns = [change < 0, change > 0, np.maximum(-change, 0), np.maximum(change, 0)]
    else:
        columns = [
            old.right & ~new.right,
            ~old.right & new.right,
            ~new.right & (new.said != old.said),
            old.right,
            new.right,
        ]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns])


def measures(means: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure, of the means over rows of what `per_row` gives, (..., parts); each (...)."""
    parts = np.moveaxis(np.asarray(means, dtype=np.float64), -1, 0)
    nfr, pfr = parts[:2]
    if len(parts) == 4:
        return {"NFR": nfr, "PFR": pfr, "loss": _ratio(parts[2], nfr), "gain": _ratio(parts[3], pfr)}
    different, old, new = parts[2:]
    return {
        "accuracy": new,
        "change": new - old,
        "NFR": nfr,
        "PFR": pfr,
        "NFR_mc": different,
        "NFI": _ratio(nfr, 1 - new),
        "trust": 1 - _ratio(nfr, old),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Nothing where there is nothing to be a part of."""
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


def _draws(parts: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure of RESAMPLES draws of pairs and rows with replacement, both at once, (RESAMPLES,).

    The draws of rows are the same for any number of pairs.

    Args:
        parts: (pairs, parts, rows).
    """
    random, random_pairs = np.random.default_rng(0), np.random.default_rng(1)
    pairs, _, rows = parts.shape
    flat = parts.reshape(-1, rows)
    drawn: dict[str, list[np.ndarray]] = {}
    for _ in range(RESAMPLES // CHUNK):
        weights = np.stack([np.bincount(random.integers(rows, size=rows), minlength=rows) for _ in range(CHUNK)])
        means = (flat @ weights.T.astype(np.float32)).astype(np.float64).reshape(pairs, -1, CHUNK) / rows
        chosen = random_pairs.integers(pairs, size=(CHUNK, pairs))
        for name, values in measures(means.transpose(2, 0, 1)).items():
            drawn.setdefault(name, []).append(np.take_along_axis(values, chosen, axis=1).mean(axis=1))
    return {name: np.concatenate(values) for name, values in drawn.items()}


Floor = tuple[float, np.ndarray]  # a mean, and its draws (RESAMPLES,)


def _floor(version: Mapping[int, Answers]) -> dict[str, Floor]:
    """Every measure from one seed to another of the same version; empty where there is one seed."""
    parts = [per_row(one, other) for one, other in permutations(version.values(), 2)]
    if not parts:
        return {}
    means = measures(np.stack(parts).mean(axis=2, dtype=np.float64))
    drawn = _draws(np.stack(parts))
    return {name: (float(np.mean(values)), drawn[name]) for name, values in means.items()}


def _flipped(parts: np.ndarray, truth: np.ndarray) -> list[Flipped]:
    negative, positive = parts[:, :2].sum(axis=0).astype(int)
    rows = sorted(np.flatnonzero(negative + positive), key=lambda row: (-negative[row], -positive[row], row))
    return [Flipped(int(i), str(truth[i]), int(negative[i]), int(positive[i]), len(parts)) for i in rows]


def _overall(compared: Sequence[Flips], draws: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Flips]:
    """The mean over tasks of the same two versions. Regressions stay apart: nearly every row's number changes."""
    for old, new in dict.fromkeys((one.old, one.new) for one in compared):
        places = [i for i, one in enumerate(compared) if (one.old, one.new) == (old, new) and "trust" in one.figures]
        if len(places) < 2:
            continue
        figures = {}
        for name in compared[places[0]].figures:
            every = [compared[i].figures[name] for i in places]
            interval = bootstrap.interval(np.mean([draws[i][name] for i in places], axis=0))
            floors = [_mean([getattr(one, side) for one in every]) for side in ("old_floor", "new_floor")]
            figures[name] = Figure(float(np.mean([one.value for one in every])), *interval, floors[0], floors[1])
        if all(EXCESS in draws[i] for i in places):
            mean = float(np.mean([one.excess[0] for i in places if (one := compared[i].figures["NFR"]).excess]))
            excess = (mean, *bootstrap.interval(np.mean([draws[i][EXCESS] for i in places], axis=0)))
            figures["NFR"] = replace(figures["NFR"], excess=excess)
        before, after = (_mean([compared[i].scores[side] for i in places]) for side in (0, 1))
        pairs = sum(compared[i].pairs for i in places)
        yield Flips(f"{MEAN}{len(places)}", old, new, pairs, (before, after), figures, [])


def _scores(old: Version, new: Version) -> tuple[float | None, float | None]:
    before, after = (_mean([version.runs[seed][1].headline.value for seed in version.seeds]) for version in (old, new))
    return None if before is None else 100 * before, None if after is None else 100 * after


def _mean(values: Sequence[float | None]) -> float | None:
    """Of all; None where one is missing."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None
