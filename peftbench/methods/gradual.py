"""Gradual unfreezing: whole layers, from the top down (Howard and Ruder 2018, arXiv 1801.06146, section 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.methods.base import ParameterTuner, Training, require


@dataclass(frozen=True)
class GradualUnfreeze:
    """The top layer trains from the start; every so many steps the next one below joins, the embeddings last.

    What lies above the layers (pooler) trains with the top one.

    Attributes:
        every: optimizer steps between two layers; None: spread evenly over all of training.
        at_most: entries that may train; None: all.
    """

    every: Count | None = None
    at_most: Count | None = None
    dial: ClassVar[str | None] = None  # whole groups are kept or left out

    def attach(self, model: Model, scope: Scope) -> "GradualTuner":
        """See `Method`. Under a budget as many whole groups join, from the top, as it can hold."""
        groups: dict[int, dict[str, nn.Parameter]] = {}
        for name, parameter in model.within(scope):
            place = model.place(name)
            if place.layer is not None:
                rank = model.depth - 1 - place.layer
            else:
                rank = 0 if "pooler" in place.kinds else model.depth
            groups.setdefault(rank, {})[name] = parameter
        require(groups, "no parameter", scope)
        ordered = [groups[rank] for rank in sorted(groups)]
        if self.at_most is not None:
            ordered = _those_that_fit(ordered, self.at_most)
        return GradualTuner(ordered, self.every)

    def within(self, model: Model, scope: Scope, entries: int) -> "GradualUnfreeze":
        """See `Method`."""
        return replace(self, at_most=entries)


class GradualTuner(ParameterTuner):
    """Groups of parameters that join one after another; those to come have no gradient, so the optimizer skips them."""

    def __init__(self, groups: list[dict[str, nn.Parameter]], every: int | None) -> None:
        super().__init__({name: p for group in groups for name, p in group.items()})
        self._groups, self._every, self._open = groups, every, 0
        self._growth: list[tuple[int, int]] = []
        self._unfreeze(step=0, count=1)

    def prepare(self, training: Training) -> None:
        """Spread the groups over training."""
        self._every = self._every or max(1, training.steps // len(self._groups))

    def after_step(self, step: int) -> bool:
        """Let the next group join when it is due."""
        assert self._every is not None
        self._unfreeze(step + 1, min(len(self._groups), 1 + (step + 1) // self._every))
        return False  # those to come are with the optimizer from the start, without a gradient

    def facts(self) -> dict[str, Any]:
        """The growth over steps."""
        return {"growth": list(self._growth)}

    def state_dict(self) -> dict[str, Any]:
        """How many groups train, and since when."""
        return {"open": self._open, "growth": list(self._growth)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self._unfreeze(0, int(state["open"]))
        self._growth = [(int(step), int(count)) for step, count in state["growth"]]

    def _unfreeze(self, step: int, count: int) -> None:
        if count == self._open:
            return
        self._open = count
        for i, group in enumerate(self._groups):
            for parameter in group.values():
                parameter.requires_grad_(i < count)
        total = sum(p.numel() for group in self._groups[:count] for p in group.values())
        self._growth.append((step, total))


def _those_that_fit(groups: list[dict[str, nn.Parameter]], entries: int) -> list[dict[str, nn.Parameter]]:
    kept, used = [], 0
    for group in groups:
        used += sum(p.numel() for p in group.values())
        if used > entries:
            break
        kept.append(group)
    if not kept:
        smallest = sum(p.numel() for p in groups[0].values())
        raise ConfigError(f"budget: {quantity(entries, 'entry')}; the topmost group alone has {smallest:,}")
    return kept
