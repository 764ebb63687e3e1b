"""Gradual unfreezing: whole layers, from the top down (Howard and Ruder 2018, arXiv 1801.06146, section 3.3)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Count, Scope
from peftbench.errors import ConfigError
from peftbench.methods.base import ParameterTuner, require


@dataclass(frozen=True)
class GradualUnfreeze:
    """The top layer trains from the start; every so many steps the next one below joins, the embeddings last.

    What lies above the layers (pooler) trains with the top one.

    Attributes:
        every: optimizer steps between two layers; None: spread evenly over all of training.
    """

    every: Count | None = None

    def attach(self, model: Model, scope: Scope, budget: Budget) -> "GradualTuner":
        """See `Method`. A budget keeps as many whole groups, from the top, as it can hold."""
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
        if budget.entries is not None:
            ordered = _within_budget(ordered, budget.entries)
        return GradualTuner(ordered, self.every)


class GradualTuner(ParameterTuner):
    """Groups of parameters that join one after another; those to come have no gradient, so the optimizer skips them."""

    def __init__(self, groups: list[dict[str, nn.Parameter]], every: int | None) -> None:
        super().__init__({name: p for group in groups for name, p in group.items()})
        self._groups, self._every, self._open = groups, every, 0
        self._growth: list[tuple[int, int]] = []
        self._unfreeze(step=0, count=1)

    def prepare(self, steps: int, passes: Callable[[int], Iterator[None]]) -> None:
        """Spread the groups over training."""
        self._every = self._every or max(1, steps // len(self._groups))

    def after_step(self, step: int) -> None:
        """Let the next group join when it is due."""
        assert self._every is not None
        self._unfreeze(step + 1, min(len(self._groups), 1 + (step + 1) // self._every))

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


def _within_budget(groups: list[dict[str, nn.Parameter]], entries: int) -> list[dict[str, nn.Parameter]]:
    kept, used = [], 0
    for group in groups:
        used += sum(p.numel() for p in group.values())
        if used > entries:
            break
        kept.append(group)
    if not kept:
        smallest = sum(p.numel() for p in groups[0].values())
        raise ConfigError(f"budget: {entries:,} entries; the topmost group alone has {smallest:,}")
    return kept
