"""The classes of a sequence of tasks, (task, label) pairs, and the rows that each stage learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftbench.config.spec import TaskSpec
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground.seeds import stream


@dataclass(frozen=True)
class Classes:
    """Every label of every task as a class of its own, numbered by the tasks' names whatever the order of learning, so
    that ties and sums do not depend on it.

    Attributes:
        names: "rte:entailment", by class.
        tasks: the number of each class's task (classes,), in the order of the tasks' names.
    """

    names: tuple[str, ...]
    tasks: np.ndarray

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.names)

    def of(self, tasks: Sequence[int]) -> np.ndarray:
        """The classes of these tasks, rising."""
        return np.flatnonzero(np.isin(self.tasks, tasks))


def classes_of(tasks: Sequence[TaskSpec]) -> Classes:
    """The classes of tasks that have labels; `tasks` in the order of their names."""
    names = [f"{task.name}:{label}" for task in tasks for label in task.labels or ()]
    return Classes(tuple(names), np.repeat(np.arange(len(tasks)), [task.num_labels for task in tasks]))


@dataclass(frozen=True)
class Stage:
    """What is learned at once.

    Attributes:
        number: from 0.
        tasks: numbers of its tasks; one, but for joint training.
        tokens: its training rows.
        labels: their classes (rows,) int64.
    """

    number: int
    tasks: tuple[int, ...]
    tokens: Tokens
    labels: np.ndarray


def ordered(tasks: Sequence[str], order: int) -> tuple[str, ...]:
    """Tasks in the order of this number: as they are listed (0), or shuffled by a draw of that number alone."""
    if order == 0:
        return tuple(tasks)
    random = np.random.default_rng([stream(0, "sequence"), order])
    return tuple(tasks[i] for i in random.permutation(len(tasks)))


def capped(rows: Mapping[str, Split], cap: int | None) -> Mapping[str, Split]:
    """The same with so many rows of each training split ("train_rte") at most, the same for every seed."""
    return {name: split.some(cap) if name.startswith("train_") else split for name, split in rows.items()}


def stages_of(
    order: Sequence[int], train: Sequence[Tokens], classes: Classes, together: bool = False
) -> tuple[Stage, ...]:
    """The stages of a sequence.

    Args:
        order: numbers of the tasks in the order of learning.
        train: training rows by task, their labels the task's own class ids.
        together: all tasks in one stage, in the order of their numbers.
    """
    own = [np.asarray(tokens.labels) + classes.of([task])[0] for task, tokens in enumerate(train)]
    if not together:
        return tuple(Stage(number, (task,), train[task], own[task]) for number, task in enumerate(order))
    every = train[0]
    for tokens in train[1:]:
        every = every.followed_by(tokens)
    return (Stage(0, tuple(range(len(train))), every, np.concatenate(own)),)
