"""Which evaluation counts: the last one, or the best one, whose weights are kept and put back."""

from collections.abc import Mapping

import numpy as np
import torch

from peftbench.backbone.model import Model
from peftbench.methods.base import Tuner
from peftbench.training.fit import Fit, Scores

HEAD = "head."


class Selection:
    """The selection rule of one run.

    Attributes:
        best: what was learned at the selected evaluation, by name; None where the last one counts, and before
            the method has settled.
    """

    def __init__(self, rule: str, patience: int | None, model: Model, tuner: Tuner) -> None:
        """Args:
        rule: last, best_dev or held_out.
        patience: evaluations without a better one after which training ends; None: never.
        """
        self._keeps_best, self._patience = rule != "last", patience
        self._model, self._tuner = model, tuner
        self.best: dict[str, torch.Tensor] | None = None

    def see(self, fit: Fit, evaluation: Scores, logits: Mapping[str, np.ndarray]) -> None:
        """Add an evaluation, and keep it if the rule prefers it to the one kept so far."""
        fit.evaluations.append(evaluation)
        index = len(fit.evaluations) - 1
        if self.best is not None:
            if not evaluation.chosen_by > fit.evaluations[fit.selected].chosen_by:
                return
        fit.selected, fit.logits = index, dict(logits)
        if self._keeps_best and evaluation.step >= self._tuner.settles():
            learned = dict(self._tuner.delta()) | {HEAD + name: p for name, p in self._model.head()}
            self.best = {name: tensor.detach().clone() for name, tensor in learned.items()}

    def out_of_patience(self, fit: Fit) -> bool:
        """Whether too many evaluations went by without a better one."""
        settled = self._tuner.settles()
        values = [evaluation.chosen_by for evaluation in fit.evaluations if evaluation.step >= settled]
        if self._patience is None or not values:
            return False
        return len(values) - 1 - int(np.argmax(values)) >= self._patience

    def restore(self, fit: Fit) -> None:
        """Put the selected weights back where they are not the present ones."""
        if self.best is None or fit.selected == len(fit.evaluations) - 1:
            return
        self._tuner.load_delta({k: v for k, v in self.best.items() if not k.startswith(HEAD)})
        with torch.no_grad():
            for name, parameter in self._model.head():
                parameter.copy_(self.best[HEAD + name])
