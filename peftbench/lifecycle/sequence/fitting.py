"""Training of one stage: the head of its classes, and adapters or a whole backbone."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from peftbench.data.batches import epoch_order
from peftbench.ground.errors import ConfigError
from peftbench.ground.seeds import drawn_from, stream
from peftbench.lifecycle.sequence.classes import Classes, Stage
from peftbench.lifecycle.sequence.encoder import Encoder
from peftbench.lifecycle.sequence.keys import TrainedKeys
from peftbench.lifecycle.sequence.prototypes import UNSEEN
from peftbench.lifecycle.sequence.side_adapters import Adapters
from peftbench.training import randomness

MOMENTUM = 0.9  # of SGD, everywhere in MOS's code
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=MOMENTUM),
    "adamw": torch.optim.AdamW,
}


def cosine_share(epoch: int, epochs: int) -> float:
    """The learning rate of an epoch (from 0) as a share of the peak: half a cosine, to 0 after the last."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


class LinearHead:
    """One linear map over all classes of a sequence. A stage trains a copy of its own rows, so nothing that it does,
    weight decay included, can move the others.

    Attributes:
        weight: (classes, d) fp32, bias: (classes,), both on the CPU.
        seen: whether a class was learned (classes,).
    """

    def __init__(self, classes: int, size: int, seed: int) -> None:
        with drawn_from(seed, "head"):
            linear = torch.nn.Linear(size, classes)
        self.weight, self.bias = linear.weight.detach(), linear.bias.detach()
        self.seen = torch.zeros(classes, dtype=torch.bool)

    def rows(self, classes: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of some classes' weights (chosen, d) and biases (chosen,) that can be trained."""
        chosen = torch.from_numpy(classes)
        weight, bias = self.weight[chosen].to(device, copy=True), self.bias[chosen].to(device, copy=True)
        return weight.requires_grad_(), bias.requires_grad_()

    def put(self, classes: np.ndarray, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Put them back."""
        chosen = torch.from_numpy(classes)
        self.weight[chosen], self.bias[chosen] = (part.detach().cpu() for part in rows)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """(rows, d) to (rows, classes), -inf for classes that were not seen."""
        return functional.linear(features, self.weight, self.bias).masked_fill(~self.seen, UNSEEN)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All of it."""
        return {"weight": self.weight, "bias": self.bias, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up such a state."""
        self.weight, self.bias, self.seen = (state[name].clone() for name in ("weight", "bias", "seen"))


@dataclass(frozen=True)
class Fitting:
    """How a stage trains, and with what.

    Attributes:
        bucketing: see conf/protocol/default.yaml.
        seed: of the order of rows and dropout, which begin anew in every stage.
    """

    encoder: Encoder
    classes: Classes
    keys: TrainedKeys
    bucketing: bool
    seed: int

    def seed_of(self, name: str) -> int:
        """Where a stream of the seed begins."""
        return stream(self.seed, name)

    def fit(
        self,
        stage: Stage,
        head: LinearHead,
        trained: Mapping[str, torch.Tensor],
        adapters: Adapters | None,
        penalty: Callable[[torch.Tensor], torch.Tensor] | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        """Train on a stage's rows: cross-entropy over the stage's own classes, as if there were no others.

        Args:
            head: its rows of these classes train.
            trained: what trains beside it, in place.
            adapters: what the encoder runs with.
            penalty: features (rows, d) of a batch to what is added to its loss.
            after_step: called after each optimizer step.

        Raises:
            ConfigError: the loss is no longer finite.
        """
        encoder, keys = self.encoder, self.keys
        own = self.classes.of(stage.tasks)
        weight, bias = head.rows(own, encoder.device)
        targets = torch.from_numpy(np.searchsorted(own, stage.labels))
        for parameter in trained.values():
            parameter.requires_grad_()
        peaks = [keys.lr, keys.lr * keys.head_lr_factor]
        groups = [{"params": [*trained.values()], "lr": peaks[0]}, {"params": [weight, bias], "lr": peaks[1]}]
        optimizer = _OPTIMIZERS[keys.optimizer](groups, weight_decay=keys.weight_decay)
        randomness.begin(encoder.model, self.seed)
        encoder.model.module.train()
        for epoch in range(keys.epochs):
            for group, lr in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = lr * cosine_share(epoch, keys.epochs)
            for rows in epoch_order(stage.tokens.lengths, keys.batch_size, self.bucketing, self.seed, epoch):
                features = encoder(encoder.batch(stage.tokens, rows), adapters)
                loss = functional.cross_entropy(
                    functional.linear(features, weight, bias), targets[torch.from_numpy(rows)].to(encoder.device)
                )
                if penalty is not None:
                    loss = loss + penalty(features)
                if not torch.isfinite(loss):
                    raise ConfigError(f"learner.lr={keys.lr:g}: training diverged in stage {stage.number + 1}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if after_step is not None:
                    after_step()
        for parameter in trained.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        head.put(own, (weight, bias))
        head.seen[torch.from_numpy(np.unique(stage.labels))] = True
