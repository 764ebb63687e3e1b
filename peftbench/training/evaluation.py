"""Logits of whole splits, and their scores."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from accelerate.utils import gather_object

from peftbench.config.spec import Task
from peftbench.data.batches import evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.ground.machine import process_state
from peftbench.training.fit import Scores
from peftbench.training.forward import Forward
from peftbench.training.metrics import predict, score
from peftbench.training.objective import TaskLoss


class Evaluator:
    """A model with a task: it predicts and is scored."""

    def __init__(self, forward: Forward, task: Task, batch_size: int, check: Callable[[], None] = lambda: None) -> None:
        """Args:
        forward: the model as it runs.
        task: gives the number of labels, the metrics and their names; of several, each split's own.
        batch_size: rows at a time.
        check: called between batches; may raise to leave.
        """
        self._forward, self._task, self._batch_size, self._check = forward, task, batch_size, check

    def predict(self, tokens: Tokens) -> np.ndarray:
        """Logits (rows, labels) fp32 of a split, in the order of its rows."""
        state = process_state()
        self._forward.model.module.eval()
        batches = evaluation_order(tokens.lengths, self._batch_size)
        pieces = []
        with torch.inference_mode():
            for rows in batches[state.process_index :: state.num_processes]:
                self._check()
                pieces.append((rows, self._forward.logits(self._forward.batch(tokens, rows))))
        arrays = [(rows, logits.cpu().numpy()) for rows, logits in pieces]
        if state.num_processes > 1:
            arrays = gather_object(arrays)
        out = np.empty((len(tokens), self._task.task_of(tokens.name).num_labels), dtype=np.float32)
        for rows, logits in arrays:
            out[rows] = logits
        return out

    def score(
        self, scored: Mapping[str, Tokens], logits: Mapping[str, np.ndarray], step: int, epoch: float, choosing: str
    ) -> Scores:
        """Every metric of every split that has labels.

        Args:
            scored: splits by name.
            logits: of the same splits, (rows, labels).
            step, epoch: when this is.
            choosing: the metric that selection looks at, perhaps a mean of others; nan where it is not scored.
        """
        metrics: dict[str, float] = {}
        means = self._task.means()
        collapsed, losses = False, []
        for name, tokens in scored.items():
            if tokens.labels is None:
                continue
            task = self._task.task_of(name)
            scores = score(task.metrics, predict(logits[name]), tokens.labels)
            collapsed = collapsed or scores.collapsed
            of_split = {self._task.metric_name(name, metric): value for metric, value in scores.values.items()}
            if not of_split.keys().isdisjoint(means.get(choosing, (choosing,))):
                losses.append(_loss(TaskLoss(task.labels is None), logits[name], tokens.labels))
            metrics |= of_split
        for name, others in means.items():
            if all(other in metrics for other in others):
                metrics[name] = float(np.mean([metrics[other] for other in others]))
        loss = float(np.mean(losses)) if losses else math.nan
        return Scores(step, epoch, metrics, collapsed, metrics.get(choosing, math.nan), loss)


def _loss(objective: TaskLoss, logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over rows."""
    summed = objective.loss(torch.from_numpy(logits), torch.from_numpy(labels), np.arange(len(labels)))
    return float(summed) / len(labels)
