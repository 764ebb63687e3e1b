"""A tuner made of other tuners: everything that the training loop asks is asked of each part."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from peftbench.ground.errors import ConfigError, DataError
from peftbench.methods.base import ParameterTuner, Training, Tuner


class WrapperTuner:
    """Several tuners on one model, side by side. It forwards every member of `Tuner`; others build on it."""

    def __init__(self, parts: Sequence[Tuner]) -> None:
        """Raises:
        ConfigError: two parts train the same parameter, or one wants an optimizer of its own beside others.
        """
        self.parts = list(parts)
        names = Counter(name for part in self.parts for name in part.trainables())
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(f"method.strata: two methods train {twice[0]}")
        if len(self.parts) > 1 and any(_has_own_optimizer(part) for part in self.parts):
            raise ConfigError("method.strata: a method with an optimizer of its own trains alone")

    def trainables(self) -> Mapping[str, nn.Parameter]:
        """Those of every part."""
        return {name: p for part in self.parts for name, p in part.trainables().items()}

    def touched(self) -> Iterable[str]:
        """What any part may change."""
        return [name for part in self.parts for name in part.touched()]

    def reads(self) -> Iterable[str]:
        """What any part looks at."""
        return [name for part in self.parts for name in part.reads()]

    def decays(self, name: str) -> bool:
        """What the part that trains it says."""
        return next(part.decays(name) for part in self.parts if name in part.trainables())

    def optimizer(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """A single part's, or AdamW."""
        if len(self.parts) == 1:
            return self.parts[0].optimizer(groups, **settings)
        return torch.optim.AdamW(groups, **settings)

    def check_steps(self, steps: int) -> None:
        """Every part is asked."""
        for part in self.parts:
            part.check_steps(steps)

    def prepare(self, training: Training) -> None:
        """Every part prepares."""
        for part in self.parts:
            part.prepare(training)

    def penalty(self) -> torch.Tensor | None:
        """The sum of the parts'."""
        penalties = [penalty for part in self.parts if (penalty := part.penalty()) is not None]
        return torch.stack(penalties).sum() if penalties else None

    def before_backward(self, step: int, last: bool) -> None:
        """Every part is told."""
        for part in self.parts:
            part.before_backward(step, last)

    def after_backward(self, step: int) -> None:
        """Every part is told."""
        for part in self.parts:
            part.after_backward(step)

    def after_step(self, step: int) -> bool:
        """Every part is told; whether any of them trains other parameters now."""
        return True in [part.after_step(step) for part in self.parts]  # all of them are told

    def delta(self) -> Mapping[str, torch.Tensor]:
        """The deltas of all parts."""
        return {name: tensor for part in self.parts for name, tensor in part.delta().items()}

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Each part takes what is its own.

        Raises:
            DataError: a name is no part's, or does not fit.
        """
        owners = [set(part.delta()) for part in self.parts]
        if unknown := sorted(set(tensors) - set().union(*owners)):
            raise DataError(f"the delta does not fit: no part here has {unknown[0]}")
        for part, own in zip(self.parts, owners, strict=True):
            part.load_delta({name: tensors[name] for name in own if name in tensors})

    def untrained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What every part's own would be."""
        return {name: tensor for part in self.parts for name, tensor in part.untrained(tensors).items()}

    def settles(self) -> int:
        """When every part's evaluations count."""
        return max((part.settles() for part in self.parts), default=0)

    def merge(self) -> str | None:
        """Merge every part."""
        lines = [part.merge() for part in self.parts]
        return "; ".join(line for line in lines if line) or None

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The changes that every part made."""
        for part in self.parts:
            yield from part.update(before)

    def kept(self) -> int:
        """What all parts kept."""
        return sum(part.kept() for part in self.parts)

    def kept_bounds(self) -> tuple[int, int]:
        """The sums of the parts' least and most."""
        bounds = [part.kept_bounds() for part in self.parts]
        return sum(least for least, _ in bounds), sum(most for _, most in bounds)

    def facts(self) -> dict[str, Any]:
        """The facts of every part that has any."""
        facts = [part.facts() for part in self.parts]
        return {"parts": facts} if any(facts) else {}

    def state_dict(self) -> dict[str, Any]:
        """The state of every part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        for part, inside in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(inside)


def _has_own_optimizer(part: Tuner) -> bool:
    return isinstance(part, WrapperTuner) or getattr(type(part), "optimizer", None) is not ParameterTuner.optimizer
