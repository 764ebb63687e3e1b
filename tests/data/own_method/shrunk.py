"""A user's own method, written from docs/adding.md alone: low-rank terms beside linear maps, most entries of them zero.

V starts at zero, and in the last part of training each step takes a little from every entry of it: `shrink` times the
running mean of its map's gradient. What is smaller than that becomes zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, InnerShare, NotNegative
from peftbench.config.spec import Kind, Scope
from peftbench.methods.base import Training, narrowed
from peftbench.methods.maps import AdaptedLinear, MapsTuner, wrap


class ShrunkLinear(AdaptedLinear):
    """W x + b + V U x: U (rank, in) and V (out, rank)."""

    factors: ClassVar[tuple[str, ...]] = ("shrunk_U", "shrunk_V")

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base)
        device = base.weight.device
        self.shrunk_U = nn.Parameter(torch.empty(rank, base.in_features, device=device).normal_(std=0.1))
        self.shrunk_V = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.linear(functional.linear(x, self.shrunk_U), self.shrunk_V)
        return functional.linear(x, self.weight, self.bias) + low

    def update(self) -> torch.Tensor:
        return (self.shrunk_V @ self.shrunk_U).detach()

    def fold(self) -> None:
        self.weight.copy_(self.weight.float() + self.update())


class ShrunkTuner(MapsTuner[ShrunkLinear]):
    """U and V of every wrapped map, and the running mean of |gradient of V|, one number a map."""

    def __init__(self, model: Model, wrapped: Mapping[str, ShrunkLinear], method: "Shrunk") -> None:
        super().__init__(model, wrapped)
        self._method, self._first, self._running = method, 0, torch.zeros(len(wrapped))

    def prepare(self, training: Training) -> None:
        self._first = round(self._method.start * training.steps)

    def penalty(self) -> torch.Tensor:
        return self._method.weight * sum(layer.shrunk_U.square().sum() for layer in self.wrapped.values())

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        factors = [layer.shrunk_V for layer in self.wrapped.values()]
        now = torch.stack([v.new_zeros(()) if v.grad is None else v.grad.abs().mean() for v in factors])
        self._running = self._running.to(now.device).lerp(now, 0.1)
        if step >= self._first:
            for v, by in zip(factors, self._method.shrink * self._running, strict=True):
                v.sub_(v.clamp(-by, by))
        return False

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, layer in self.wrapped.items():
            yield f"{name}.weight", layer.update()

    def facts(self) -> dict[str, Any]:
        return {"zeros": sum(int((layer.shrunk_V == 0).sum()) for layer in self.wrapped.values())}

    def state_dict(self) -> dict[str, Any]:
        return {"running": self._running}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._running = state["running"]


@dataclass(frozen=True)
class Shrunk:
    """Low-rank terms, shrunk from the share `start` of all steps on; `weight` is that of U's square in the loss."""

    rank: Count = 4
    shrink: NotNegative = 0.1
    start: InnerShare = 0.5
    weight: NotNegative = 1e-4
    kinds: tuple[Kind, ...] | None = ("attention_output", "output")
    dial: ClassVar[str | None] = "rank"

    def attach(self, model: Model, scope: Scope) -> ShrunkTuner:
        wrapped = wrap(model, narrowed(scope, self.kinds), lambda base: ShrunkLinear(base, self.rank))
        return ShrunkTuner(model, wrapped, self)
