"""What training leaves behind, and those who follow it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Scores:
    """Scores at one moment of training.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the training rows done.
        metrics: every metric of every scored split, in [-1, 1].
        collapsed: the predictions of a scored split are all the same.
        chosen_by: the number that selection looks at.
        loss: the task's own loss on the rows of that number, mean over rows.
    """

    step: int
    epoch: float
    metrics: dict[str, float]
    collapsed: bool
    chosen_by: float
    loss: float


@dataclass
class Fit:
    """What training left behind: every evaluation, the selected one, its logits, and where the time went.

    `earlier_s`: seconds that were trained and evaluated before the checkpoint that this process took up.
    """

    evaluations: list[Scores] = field(default_factory=list)
    selected: int = -1
    logits: dict[str, np.ndarray] = field(default_factory=dict)
    steps: int = 0
    train_s: float = 0.0
    eval_s: float = 0.0
    tokens: int = 0
    padded: int = 0
    earlier_s: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All of it, as nested plain data and arrays."""
        return {**vars(self), "evaluations": [asdict(evaluation) for evaluation in self.evaluations]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        vars(self).update(state)
        self.evaluations = [Scores(**raw) for raw in state["evaluations"]]
        self.earlier_s = self.train_s + self.eval_s


class Watcher(Protocol):
    """Someone who follows a run: a progress bar, W&B, a log file."""

    def begin(self, steps: int, done: int) -> None:
        """Training begins, or goes on after `done` optimizer steps; it has at most `steps`."""
        ...

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """Facts about training since the last call: loss, lr, grad_norm, tokens_per_s."""
        ...

    def evaluation(self, evaluation: Scores) -> None:
        """The model was scored."""
        ...

    def end(self, summary: Mapping[str, Any]) -> None:
        """Training ended well; final numbers by name."""
        ...
