"""What the optimizer steps, in groups of one learning rate and one weight decay, and the schedule that it follows."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Protocol
from peftbench.methods.base import Tuner, decays_by_name


class Optimization:
    """The optimizer of one training, over the tuner's trainables and the head.

    Attributes:
        steps: as many as training takes at most.
        parameters: what is stepped, by name.
        optimizer: the tuner's own.
    """

    def __init__(self, model: Model, tuner: Tuner, protocol: Protocol, steps: int) -> None:
        self._model, self._tuner, self._protocol, self.steps = model, tuner, protocol, steps
        self._head = dict(model.head())
        self.parameters = self._wanted()
        groups = self._groups()
        self._peaks = [group["lr"] for group in groups]
        how = {"betas": protocol.betas, "eps": protocol.eps, "weight_decay": protocol.weight_decay}
        self.optimizer = tuner.optimizer(groups, **how, fused=True)

    def _wanted(self) -> dict[str, nn.Parameter]:
        return dict(self._tuner.trainables()) | self._head

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by learning rate and weight decay; no group is empty."""
        protocol, groups = self._protocol, []
        for in_head, lr in ((False, protocol.lr), (True, protocol.head_lr or protocol.lr)):
            decays = decays_by_name if in_head else self._tuner.decays
            named = [(name, p) for name, p in self.parameters.items() if (name in self._head) == in_head]
            for decaying, weight_decay in ((True, protocol.weight_decay), (False, 0.0)):
                chosen = [p for name, p in named if decays(name) == decaying]
                groups += [{"params": chosen, "weight_decay": weight_decay, "lr": lr}] if chosen else []
        return groups

    def share(self, step: int) -> float:
        """The learning rate of optimizer step `step` (from 0) as a share of the peak."""
        return lr_factor(step, self.steps, self._protocol.warmup, self._protocol.schedule)

    def step(self, step: int) -> None:
        """Take step `step` along the gradients that are there."""
        share = self.share(step)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * share
        self.optimizer.step()

    def reshaped(self) -> "Optimization":
        """The same of what trains now; parameters that stay keep their moments."""
        other = Optimization(self._model, self._tuner, self._protocol, self.steps)
        moments = self.optimizer.state
        for parameter in other.parameters.values():
            if parameter in moments:
                other.optimizer.state[parameter] = moments[parameter]
        return other

    def check(self) -> None:
        """See that what is stepped is what the tuner calls trainable, and the head, or a run would train something else
        and say nothing.

        Raises:
            RuntimeError: it is not.
        """
        wanted = self._wanted()
        stepped = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        different = stepped ^ {id(p) for p in wanted.values()}
        for name, parameter in (*self.parameters.items(), *wanted.items()):
            if id(parameter) in different:
                what = "dropped" if name not in wanted else "added" if name not in self.parameters else "replaced"
                raise RuntimeError(f"{name} was {what} during training: after_step must return True then")

    def state_dict(self) -> dict[str, Any]:
        """The parameters' values, and the optimizer's state."""
        values = {name: p.detach() for name, p in self.parameters.items()}
        return {"parameters": values, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])


def lr_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    It rises over the first `warmup` share of the steps; then it stays (constant) or falls to 0 at `total`.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - rising)
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
