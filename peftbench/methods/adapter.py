"""Bottleneck adapters: Houlsby et al. 2019 (arXiv 1902.00751) and Pfeiffer et al. 2021 (arXiv 2005.00247)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import ParameterTuner, narrowed, require


class AdapterLinear(nn.Module):
    """A sub-layer's projection followed by a bottleneck: y + up(gelu(down(y))), y = W x + b.

    `weight` (out, in) and `bias` (out,) are the frozen projection's own under their own names. The bottleneck starts
    near the identity: weights from N(0, 0.01) cut at two standard deviations, biases zero (Houlsby, section 3.6).
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        out, device = base.out_features, base.weight.device
        self.adapter_down = nn.Linear(out, width, device=device)
        self.adapter_up = nn.Linear(width, out, device=device)
        for layer in (self.adapter_down, self.adapter_up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        y = functional.linear(x, self.weight, self.bias)
        update: torch.Tensor = self.adapter_up(functional.gelu(self.adapter_down(y)))
        return y + update


class AdapterTuner(ParameterTuner):
    """The bottlenecks of every wrapped projection."""

    def merge(self) -> None:
        """Refused: a bottleneck is not linear, so no weight can stand for it."""
        raise ConfigError("adapters cannot be merged into the backbone's weights: they are not linear")

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Refused for the same reason."""
        raise ConfigError("adapters are no change of the backbone's weights: they are not linear")


@dataclass(frozen=True)
class Adapter:
    """Bottlenecks after the projections of the named kinds: attention_output and output (Houlsby), output (Pfeiffer).

    `layer_norm` trains the layers' norms as well, as Houlsby does (counted with the method).
    """

    width: Count = 64
    kinds: tuple[Kind, ...] = ("attention_output", "output")
    layer_norm: bool = False
    dial: ClassVar[str | None] = "width"

    def attach(self, model: Model, scope: Scope) -> AdapterTuner:
        """See `Method`."""
        inside = narrowed(scope, self.kinds)
        linears = model.projections(inside)
        require(linears, "no projection", inside)
        norms = narrowed(scope, ("layer_norm",))
        trained = {n: p for n, p in model.within(norms) if model.place(n).layer is not None} if self.layer_norm else {}
        for name, base in linears:
            wrapped = AdapterLinear(base, self.width)
            model.module.set_submodule(name, wrapped)
            for part in ("adapter_down", "adapter_up"):
                trained |= {f"{name}.{part}.{key}": p for key, p in wrapped.get_submodule(part).named_parameters()}
        return AdapterTuner(trained)
