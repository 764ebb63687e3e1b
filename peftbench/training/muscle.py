"""Training that keeps an update compatible with an older run (MUSCLE, Echterhoff et al. 2024, arXiv 2407.09435)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from peftbench.config.objective import Teacher
from peftbench.training.objective import Objective


@dataclass(frozen=True)
class Muscle(Objective):
    """Distillation from an older run and a newer one, row by row (section 4 of the paper).

    With z the student's logits of a row, z1 and z2 the older and the newer run's, T the temperature, and m = 1 where
    the older run teaches (by the paper's rule: where the student's answer is wrong), a row's loss is

        mix * [m KL(softmax(z1/T) || softmax(z/T)) + (1 - m) KL(softmax(z2/T) || softmax(z/T))] + (1 - mix) CE(z)

    without a factor T^2; m has no gradient. Of teacher="none" it is the cross entropy, whatever the mix.

    Attributes:
        teacher: which rows the older run teaches.
        temperature: T.
        mix: weight of the distillation.
        old, new: the runs' logits of every training row (rows, classes) fp32; of one that is not asked, no row.
    """

    teacher: Teacher
    temperature: float
    mix: float
    old: torch.Tensor
    new: torch.Tensor

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """See `Objective`."""
        assert labels is not None, "whether an answer is wrong is asked of the labels"
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        if self.teacher == "none":
            return entropy
        by_old, by_new, _ = self._taught(logits, labels, rows)
        return self.mix * (by_old + by_new) + (1 - self.mix) * entropy

    def parts(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> Mapping[str, torch.Tensor]:
        """See `Objective`: both divergences, the cross entropy, and how many rows the older run teaches."""
        assert labels is not None
        if self.teacher == "none":
            return {}
        by_old, by_new, masked = self._taught(logits, labels, rows)
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        return {"kl_old": by_old, "kl_new": by_new, "cross_entropy": entropy, "masked": masked.sum()}

    def _taught(
        self, logits: torch.Tensor, labels: torch.Tensor, rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The divergences from the older and the newer run, each summed over its rows, and which the older's are."""
        numbers = torch.from_numpy(rows)
        if self.teacher == "student_wrong":
            masked = logits.detach().argmax(dim=1) != labels
        elif self.teacher == "old_right":
            masked = self.old[numbers].to(logits.device).argmax(dim=1) == labels
        else:
            masked = torch.ones_like(labels, dtype=torch.bool)
        by_old = self._divergence(logits[masked], self.old[numbers[masked.cpu()]])
        return by_old, self._divergence(logits[~masked], self.new[numbers[~masked.cpu()]]), masked

    def _divergence(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """KL(teacher || student) at the temperature, summed over rows: a scalar."""
        ours, theirs = ((z / self.temperature).log_softmax(dim=1) for z in (logits, taught.to(logits.device)))
        return functional.kl_div(ours, theirs, reduction="sum", log_target=True)
