"""The columns of a study's table as numbers: scores by method and seed, and those scores on other dev rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from peftbench.ground.errors import DataError
from peftbench.report import bootstrap, predictions
from peftbench.report.predictions import Scored
from peftbench.report.records import Study, task_of, tasks_alone
from peftbench.report.statistics import Paired

KEYS = ("name", "seed", "split", "score", "record")  # of a run, in the frame of a table
Run = tuple[int, int]  # seed, and split of few labels (0 where there is one)


@dataclass(frozen=True)
class Column:
    """One column: a task and its metric.

    Attributes:
        name: as the table's head has it.
        scores: row of the table -> run -> percent.
        resampled: row -> run -> percent with the dev rows drawn anew (resamples,), the same draws for all; without
            the runs whose predictions are not stored.
        rows: how many dev rows there are; None: no predictions are stored.
    """

    name: str
    scores: dict[str, dict[Run, float]]
    resampled: dict[str, dict[Run, np.ndarray]]
    rows: int | None

    def repeated(self, name: str) -> np.ndarray:
        """The scores of a row of the table, one for each seed; with several splits of few labels one for each split,
        the mean over its seeds."""
        runs = self.scores[name]
        return _means(list(runs), len({split for _, split in runs}) > 1) @ np.array(list(runs.values()))

    def paired(self, first: str, second: str) -> Paired | None:
        """The differences of two rows of the table over the runs that both have; None where there is none.

        One difference for each seed; with several splits of few labels one for each split, the mean over its seeds. The
        rows are drawn anew in those of which both have predictions, at least two.
        """
        one, other = self.scores.get(first, {}), self.scores.get(second, {})
        runs = sorted(one.keys() & other.keys())
        if not runs:
            return None
        drawn_one, drawn_other = self.resampled.get(first, {}), self.resampled.get(second, {})
        of_splits = len({split for _, split in runs}) > 1
        differences = _means(runs, of_splits) @ np.array([one[run] - other[run] for run in runs])
        resampled = None
        if stored := [run for run in runs if run in drawn_one and run in drawn_other]:
            drawn = np.stack([drawn_one[run] - drawn_other[run] for run in stored])
            means = _means(stored, of_splits)
            resampled = means @ drawn if len(means) > 1 or len(differences) == 1 else None
        sides = {first: drawn_one, second: drawn_other}
        lacking = [_in_words(name, run) for run in runs for name, drawn in sides.items() if run not in drawn]
        without = () if self.rows is None else tuple(lacking)
        return Paired(differences, resampled, "splits" if of_splits else "seeds", without)


def _in_words(name: str, run: Run) -> str:
    seed, split = run
    return f"{name} split {split} seed {seed}" if split else f"{name} seed {seed}"


def _means(runs: Sequence[Run], of_splits: bool) -> np.ndarray:
    """(repetitions, runs): what averages over the seeds of each split, or leaves every seed as it is."""
    splits = np.array([split for _, split in runs])
    if not of_splits:
        return np.eye(len(runs))
    return np.stack([(splits == split) / (splits == split).sum() for split in dict.fromkeys(splits)])


def by_task(columns: Sequence[Column]) -> list[Column]:
    """The columns over which a mean is taken, one for each task.

    Several of one task become their mean, on the runs that all of them have: these learn the same rows of train with
    the same seeds, so they are no tasks of their own.
    """
    names = tasks_alone(column.name for column in columns)
    of_task: dict[str, list[Column]] = defaultdict(list)
    for column in columns:
        if column.name in names:
            of_task[task_of(column.name)].append(column)
    return [same[0] if len(same) == 1 else _mean_of(same) for same in of_task.values()]


def _mean_of(same: Sequence[Column]) -> Column:
    def mean(parts: Sequence[Mapping[str, Mapping[Run, Any]]]) -> dict[str, dict[Run, Any]]:
        rows = [row for row in parts[0] if all(row in part for part in parts)]
        runs = {row: [run for run in parts[0][row] if all(run in part[row] for part in parts)] for row in rows}
        return {row: {run: sum(part[row][run] for part in parts) / len(parts) for run in runs[row]} for row in rows}

    scores, resampled = mean([one.scores for one in same]), mean([one.resampled for one in same])
    known = [one.rows for one in same if one.rows is not None]
    rows = max(known) if len(known) == len(same) else None
    return Column(" and ".join(one.name for one in same), scores, resampled, rows)


def read(study: Study, rows: pd.DataFrame, resamples: int = bootstrap.RESAMPLES) -> list[Column]:
    """Every column of a study's table, in the table's order.

    Args:
        study: gives the folders of predictions; those that cannot be used are named on the terminal.
        rows: as `table.apart` gives them.
        resamples: how often the dev rows are drawn.
    """
    if rows.empty:
        return []
    every = zip(study.folders, study.records, strict=True)
    done = [(path, record) for path, record in every if record.status == "done"]
    columns, unusable = [], []
    for name, same in rows.dropna(subset=["score"]).groupby("column", sort=True):
        scores: dict[str, dict[Run, float]] = defaultdict(dict)
        stored: dict[tuple[str, Run], Scored] = {}
        for row, seed, split, score, place in zip(*(same[key] for key in KEYS), strict=True):
            where = str(row), (int(seed), int(split))
            scores[where[0]][where[1]] = float(score)
            try:
                scored = predictions.headline(*done[int(place)])
            except DataError as error:
                unusable.append(error.every[0])
                continue
            if scored is not None:
                stored[where] = scored
        columns.append(_column(str(name), dict(scores), stored, resamples))
    predictions.name_unusable(unusable)
    return columns


def _column(
    name: str, scores: dict[str, dict[Run, float]], stored: dict[tuple[str, Run], Scored], resamples: int
) -> Column:
    """Runs on other rows than most have no part in the resampling."""
    by_labels: dict[bytes, list[tuple[str, Run]]] = defaultdict(list)
    for place, scored in stored.items():
        by_labels[scored.labels.tobytes()].append(place)
    runs = max(by_labels.values(), key=len, default=[])
    if not runs:
        return Column(name, scores, {}, None)
    first = stored[runs[0]]
    drawn = bootstrap.of_rows(
        first.metric, np.stack([stored[place].predictions for place in runs]), first.labels, resamples
    )
    resampled: dict[str, dict[Run, np.ndarray]] = defaultdict(dict)
    for (row, run), values in zip(runs, 100 * drawn.astype(np.float32), strict=True):
        resampled[row][run] = values
    return Column(name, scores, dict(resampled), len(first.labels))
