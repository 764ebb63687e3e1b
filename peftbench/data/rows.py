"""The rows that one cell reads: its splits, and the part of train that a selection holds out. No torch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from peftbench.config.few_labels import ALL_LABELS, Shots
from peftbench.config.spec import Cell, DataSpec, Task, TaskSpec
from peftbench.data import sources
from peftbench.data.shots import draw
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.quantity import quantity
from peftbench.ground.seeds import stream

POOL = "unlabelled"  # the split of the rows of train without labels


@dataclass(frozen=True)
class Rows:
    """Which rows a cell reads.

    Attributes:
        held_out: the share of train that is scored instead of trained on; None: all of it trains.
        tested: whether the test rows are read, too.
        shots: how many rows of train have their labels.
        pool: whether the rows of train without labels are read, too.
    """

    data: DataSpec
    task: Task
    held_out: float | None
    tested: bool
    shots: Shots = ALL_LABELS
    pool: bool = False

    def stamps(self) -> list[Any]:
        """What changes when a file of theirs does."""
        return [one for task in self.task.parts for one in sources.stamps(self.data, task, self._splits(task))]

    def absent(self) -> list[str]:
        """A line for every task of theirs that the source does not have."""
        lines = [sources.absent(self.data, task) for task in self.task.parts]
        return [line for line in lines if line is not None]

    def read(self) -> dict[str, Split]:
        """Every split, the held-out part of train, and its part without labels; those of several tasks by both names.

        Raises:
            ConfigError: train has too few rows for the shots.
            DataError: as `sources.load`, or nothing would be left to train on.
        """
        if len(self.task.parts) == 1:
            return self._read(self.task.parts[0])
        every = [(task, self._read(task)) for task in self.task.parts]
        named = {f"{name}_{task.name}": split for task, rows in every for name, split in rows.items()}
        return {name: replace(split, name=name) for name, split in named.items()}

    def _splits(self, task: TaskSpec) -> list[str]:
        return [*task.trained, *task.dev, *(task.test if self.tested else ())]

    def _read(self, task: TaskSpec) -> dict[str, Split]:
        rows = sources.load(self.data, task, self._splits(task))
        if task.train and self.shots.few:
            drawn = draw(rows[task.train], task.labels, self.shots)
            if self.pool and not len(drawn[POOL]):
                raise ConfigError(f"selftrain=list: all {len(drawn['train'])} rows of train have labels, none is left")
            return {**rows, **{name: split for name, split in drawn.items() if name != POOL or self.pool}}
        if task.train and self.held_out is not None:
            # One cut for all seeds, so that learning rates are compared on the same rows.
            train = rows[task.train]
            order = np.random.default_rng(stream(0, "held_out")).permutation(len(train))
            kept = max(1, round(len(train) * self.held_out))
            if kept >= len(train):
                raise DataError(
                    f"protocol.held_out={self.held_out}: leaves none of {quantity(len(train), 'row')} to train on"
                )
            rows["held_out"] = train.rows(np.sort(order[:kept]), "held_out")
            rows[task.train] = train.rows(np.sort(order[kept:]), "train")
        return rows


def rows_of(cell: Cell) -> Rows:
    """The rows that a cell reads."""
    held_out = cell.protocol.held_out if cell.protocol.selection == "held_out" and not cell.shots.few else None
    tested = cell.predict_test or cell.task.train is None
    return Rows(cell.data, cell.task, held_out, tested, cell.shots, cell.selftrain.kind != "none")
