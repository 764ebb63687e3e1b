"""What training makes small: the task's loss, or another one in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from peftbench.config.spec import Task
from peftbench.data.tokens import Mix


class Objective(Protocol):
    """A loss of some training rows. One that derives from this need not have parts."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """The loss, summed over rows: a scalar that autograd can go back from; else the step changes nothing.

        Args:
            logits: (rows, labels) fp32, or (rows, 1) for a regression.
            labels: class ids (rows,) int64 or scores (rows,) fp32; None where the rows have none.
            rows: their numbers in train (rows,), for what an objective has kept by row.
        """
        ...

    def parts(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> Mapping[str, torch.Tensor]:
        """What a log line says of these rows beside the loss, summed over them: scalars by name, as of `loss`."""
        return {}


@dataclass(frozen=True)
class TaskLoss(Objective):
    """The task's own loss: cross entropy, or squared error for a regression."""

    regression: bool

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """See `Objective`."""
        assert labels is not None, "the task's loss needs labels"
        if self.regression:
            return functional.mse_loss(logits[:, 0], labels, reduction="sum")
        return functional.cross_entropy(logits, labels, reduction="sum")


@dataclass(frozen=True)
class LossByTask(Objective):
    """Of several tasks that are learned together the batch's own: its rows are of one.

    Attributes:
        tasks: the number of every training row's task (rows,).
        losses: every task's own, by number.
    """

    tasks: np.ndarray
    losses: tuple[TaskLoss, ...]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """See `Objective`; class ids may have come as fp32, where another task has scores."""
        own = self.losses[self.tasks[rows[0]]]
        return own.loss(logits, labels if labels is None or own.regression else labels.long(), rows)


def own_loss(task: Task, mix: Mix | None) -> Objective:
    """A task's loss, or that of several by their rows."""
    if mix is None:
        return TaskLoss(task.labels is None)
    return LossByTask(mix.tasks, tuple(TaskLoss(one.labels is None) for one in task.parts))


@dataclass(frozen=True)
class ScoreShare(Objective):
    """The loss of a score between two words (LM-BFF's for STS-B): cross entropy of its share of the way between bounds.

    It is the KL divergence from the label's share, less the label's own entropy.
    """

    bounds: tuple[float, float]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """See `Objective`; logits are scores between the bounds."""
        assert labels is not None, "the task's loss needs labels"
        low, high = self.bounds
        share, wanted = ((values - low) / (high - low) for values in (logits[:, 0], labels))
        return functional.binary_cross_entropy(share.clamp(1e-6, 1 - 1e-6), wanted, reduction="sum")
