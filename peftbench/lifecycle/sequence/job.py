"""What a command line asks for: one learner on one sequence of tasks, and where its record lies."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftbench.config.fingerprint import digest
from peftbench.config.spec import Cell
from peftbench.data.rows import Rows
from peftbench.ground.files import expanded
from peftbench.lifecycle.sequence.classes import ordered
from peftbench.lifecycle.sequence.keys import LearnerKeys, TaskSequence
from peftbench.study import done
from peftbench.study.done import InputHashes

OF_PROTOCOL = ("max_length", "precision", "bucketing", "eval_batch_size")  # keys of conf/protocol that a sequence has


@dataclass(frozen=True)
class Job:
    """One learner on one sequence.

    Attributes:
        cell: its task is all tasks together; gives backbone, data, seed, length and precision, and where it is kept.
        learner: a word of conf/learner.
        words: the command line.
        config: the cell's, as a record has it.
    """

    cell: Cell
    tasks: TaskSequence
    learner: str
    keys: LearnerKeys
    words: tuple[str, ...]
    config: Mapping[str, Any]

    @property
    def order(self) -> tuple[str, ...]:
        """The tasks in the order in which they are learned."""
        return ordered(self.tasks.tasks, self.tasks.order)

    @property
    def row(self) -> str:
        """Its row of the table."""
        return f"{self.learner}, order {self.tasks.order}"

    @property
    def rows(self) -> Rows:
        """What it reads: train and dev of every task."""
        return Rows(self.cell.data, self.cell.task, None, tested=False)

    @property
    def settings(self) -> dict[str, Any]:
        """What of it no cell has."""
        return {"learner": self.learner, **asdict(self.keys), "tasks": [*self.order], "cap": self.tasks.cap}

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever decides the scores, the seed apart."""
        cell = self.cell
        decides = {
            "by": "sequence",
            "settings": self.settings,
            "task": cell.task.meaning,
            "data": cell.data.meaning,
            "model": {**cell.model.meaning, "stream": cell.model.stream},
            "protocol": {key: getattr(cell.protocol, key) for key in OF_PROTOCOL},
        }
        return digest(decides)[:16]

    @property
    def folder(self) -> Path:
        """Its own, which follows from it alone."""
        cell = self.cell
        words = [cell.task.name, self.learner, f"order{self.tasks.order}", cell.model.name, self.fingerprint[:8]]
        return expanded(cell.outputs) / cell.study / "-".join(words) / f"seed{cell.seed}"

    def inputs(self) -> InputHashes:
        """Hashes of what it would be made of now."""
        return done.hash_inputs(done.Reads(self.rows, self.cell.model.weights, None, None, self.cell.cache))
