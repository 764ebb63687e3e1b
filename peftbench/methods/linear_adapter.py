"""LiST's adapters: a bottleneck without a non-linearity (Wang et al. 2021, arXiv 2110.06274)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, Positive
from peftbench.config.spec import Kind, Scope
from peftbench.methods.base import narrowed
from peftbench.methods.maps import AdaptedLinear, MapsTuner, wrap_these


class LinearAdapterLinear(AdaptedLinear):
    """A sub-layer's projection followed by a linear bottleneck: y + U D y, y = W x + b.

    `weight` (out, in) and `bias` (out,) are the frozen projection's own under their own names. `adapter_down`, D
    (width, out), and `adapter_up`, U (out, width), have no bias and start at N(0, std^2): near the identity, not at it.
    """

    factors: ClassVar[tuple[str, ...]] = ("adapter_down", "adapter_up")

    def __init__(self, base: nn.Linear, width: int, std: float) -> None:
        super().__init__(base)
        out, device = base.out_features, base.weight.device
        self.adapter_down = nn.Parameter(torch.empty(width, out, device=device).normal_(std=std))
        self.adapter_up = nn.Parameter(torch.empty(out, width, device=device).normal_(std=std))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return self.adapted(functional.linear(x, self.weight, self.bias))

    def adapted(self, y: torch.Tensor) -> torch.Tensor:
        """The bottleneck alone: (..., out) to (..., out)."""
        return y + functional.linear(functional.linear(y, self.adapter_down), self.adapter_up)

    def fold(self) -> None:
        """The bottleneck goes into weight and bias: (1 + U D) W, (1 + U D) b."""
        for parameter in (self.weight, self.bias):
            if parameter is not None:  # the columns of a matrix are adapted as outputs are
                parameter.copy_(self.adapted(parameter.float().t()).t())


class LinearAdapterTuner(MapsTuner[LinearAdapterLinear]):
    """The bottlenecks of every wrapped projection."""

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """U D W and U D b of every wrapped projection."""
        for name, layer in self.wrapped.items():
            for part in ("weight", "bias"):
                if getattr(layer, part) is not None:
                    plain = before[f"{name}.{part}"].to(layer.adapter_up.device).float().t()
                    yield f"{name}.{part}", (layer.adapted(plain) - plain).t().detach()


@dataclass(frozen=True)
class LinearAdapter:
    """Linear bottlenecks after the projections of the named kinds; they can be merged, as other adapters cannot."""

    width: Count = 128
    std: Positive = 2e-4
    kinds: tuple[Kind, ...] | None = ("attention_output", "output")
    dial: ClassVar[str | None] = "width"

    def attach(self, model: Model, scope: Scope) -> LinearAdapterTuner:
        """See `Method`.

        Bottlenecks are named "<linear map>.adapter_down" and "<linear map>.adapter_up".
        """
        inside = narrowed(scope, self.kinds)
        make = partial(LinearAdapterLinear, width=self.width, std=self.std)
        return LinearAdapterTuner(model, wrap_these(model, model.projections(inside), inside, make))
