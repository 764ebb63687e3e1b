"""Logits of whole splits, and their scores."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from accelerate.utils import gather_object

from peftbench.config.spec import TaskSpec
from peftbench.data.batches import evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.ground.machine import process_state
from peftbench.training.fit import Scores
from peftbench.training.forward import Forward
from peftbench.training.metrics import predict, score
from peftbench.training.objective import TaskLoss


class Evaluator:
    """A model with a task: it predicts and is scored."""

    def __init__(
        self, forward: Forward, task: TaskSpec, batch_size: int, check: Callable[[], None] = lambda: None
    ) -> None:
        """Args:
        forward: the model as it runs.
        task: gives the number of labels, the metrics and their names.
        batch_size: rows at a time.
        check: called between batches; may raise to leave.
        """
        self._forward, self._task, self._batch_size, self._check = forward, task, batch_size, check
        self._objective = TaskLoss(regression=task.labels is None)

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
        out = np.empty((len(tokens), self._task.num_labels), dtype=np.float32)
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
            choosing: the metric that selection looks at; nan where it is not scored.
        """
        metrics: dict[str, float] = {}
        collapsed, loss = False, math.nan
        for name, tokens in scored.items():
            if tokens.labels is None:
                continue
            scores = score(self._task.metrics, predict(logits[name]), tokens.labels)
            collapsed = collapsed or scores.collapsed
            names = {metric: key for key, (split, metric) in self._task.scored().items() if split == name}
            of_split = {names.get(metric, f"{metric}_{name}"): value for metric, value in scores.values.items()}
            if choosing in of_split:
                loss = self._loss(logits[name], tokens.labels)
            metrics |= of_split
        return Scores(step, epoch, metrics, collapsed, metrics.get(choosing, math.nan), loss)

    def _loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        rows = np.arange(len(labels))
        summed = self._objective.loss(torch.from_numpy(logits), torch.from_numpy(labels), rows)
        return float(summed) / len(rows)
