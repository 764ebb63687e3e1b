"""Training on rows that a teacher labelled, weighed by what they do for labelled rows (LiST, Wang et al. 2021)."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from peftbench.backbone.model import Model
from peftbench.data.batches import Batch
from peftbench.methods.base import Tuner
from peftbench.training.objective import Objective

Parameters = dict[str, torch.Tensor]
Weigh = Callable[[np.ndarray], torch.Tensor | None]  # of rows: weights, summing to 1 or all 0; None: equal


class SelfTraining(Objective):
    """The loss of a session: cross entropy of labelled rows, w_i KL(teacher || student) of the others (an `Objective`).

    Train's first rows are the labelled ones. Where all weights of a step are 0 its loss has no gradient.

    Attributes:
        taught: the teacher's probabilities of every other row (rows, classes) fp32.
    """

    def __init__(self, labelled: int, taught: np.ndarray, weigh: Weigh) -> None:
        self._labelled, self.taught, self._weigh = labelled, torch.from_numpy(taught), weigh

    def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
        """See `Objective`."""
        assert labels is not None, "train's labels are those of its first rows"
        if rows.max() < self._labelled:
            return functional.cross_entropy(logits, labels, reduction="sum")
        if rows.min() < self._labelled:  # of a look at train as a whole, in which nothing is weighed
            known = torch.from_numpy(rows < self._labelled).to(logits.device)
            other = divergence(logits[~known], self.of(rows[rows >= self._labelled]).to(logits.device))
            return functional.cross_entropy(logits[known], labels[known], reduction="sum") + other.sum()
        each = divergence(logits, self.of(rows).to(logits.device))
        weights = self._weigh(rows)
        if weights is None:
            return each.sum()
        return (each * weights).sum() * len(rows) if bool(weights.any()) else torch.zeros((), device=logits.device)

    def of(self, rows: np.ndarray) -> torch.Tensor:
        """The teacher's probabilities of rows without labels."""
        return self.taught[torch.from_numpy(rows - self._labelled)]


def divergence(logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """KL(taught || softmax(logits)) of every row (rows,); both are (rows, classes)."""
    return functional.kl_div(logits.log_softmax(dim=1), taught, reduction="none").sum(dim=1)


class MetaWeights:
    """What rows without labels are worth to labelled ones, by the model as it is, without dropout.

    With L the loss of labelled rows and eps_i the weights of the others' losses, at eps = 0, one step of gradient
    descent on sum_i eps_i KL_i has -dL/deps_i proportional to <grad L, grad KL_i>. w_i is its positive part, scaled.
    """

    def __init__(self, model: Model, tuner: Tuner, autocast: Callable[[], Any]) -> None:
        """Args:
        autocast: gives the context of the run's precision.
        """
        self._reads, self._tuner, self._autocast = Reads(model), tuner, autocast

    def __call__(self, labelled: Batch, others: Batch, taught: torch.Tensor) -> torch.Tensor:
        """Weights of the others (rows,), which sum to 1 or are all 0.

        Args:
            taught: the teacher's probabilities of the others (rows, classes).
        """
        module = self._reads.model.module
        training = module.training
        module.eval()
        labels = labelled.labels
        assert labels is not None

        def known(parameters: Parameters) -> torch.Tensor:
            return functional.cross_entropy(self._logits(parameters, labelled), labels)

        def each(parameters: Parameters) -> torch.Tensor:
            return divergence(self._logits(parameters, others), taught.to(labels.device))

        with sdpa_kernel(SDPBackend.MATH):  # of attention's kernels the one that has a forward mode
            worth = alignments(each, known, self._parameters())
        module.train(training)
        positive = worth.clamp(min=0)
        total = positive.sum()
        return positive / total if bool(total > 0) else torch.zeros_like(positive)

    def _parameters(self) -> Parameters:
        return trained(self._reads, self._tuner)

    def _logits(self, parameters: Parameters, batch: Batch) -> torch.Tensor:
        with self._autocast():
            logits = cast(torch.Tensor, functional_call(self._reads, parameters, (batch.inputs,)))
        return logits if logits.dtype == torch.float64 else logits.float()


class Reads(nn.Module):
    """A model as one module: token ids, masks and types to logits."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.module = model, model.module

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout.logits`."""
        return self.model.readout.logits(self.module, inputs)


def trained(reads: Reads, tuner: Tuner) -> Parameters:
    """What trains, by its name in the module; fewer than there are where a tuner trains what is not in it."""
    ids = {id(p) for p in (*tuner.trainables().values(), *dict(reads.model.head()).values())}
    return {name: p.detach() for name, p in reads.named_parameters() if id(p) in ids}


def alignments(
    each: Callable[[Parameters], torch.Tensor], known: Callable[[Parameters], torch.Tensor], parameters: Parameters
) -> torch.Tensor:
    """<grad known, grad each_i> at these parameters (rows,): one way back, and one forward-mode product along it."""
    leaves = {name: p.clone().requires_grad_(True) for name, p in parameters.items()}
    direction = dict(zip(leaves, torch.autograd.grad(known(leaves), list(leaves.values())), strict=True))
    return jvp(each, (parameters,), (direction,))[1].detach()
