"""HUT: the weight between two trained factors, elementwise (arXiv 2409.13501), as secondary sources print it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import narrowed
from peftbench.methods.maps import AdaptedLinear, MapsTuner, wrap

Reading = Literal["blocks", "sum"]


class HUTLinear(AdaptedLinear):
    """A linear map under a Hadamard update: gamma * ((S_A * W * S_B) x) + b + beta, of which W and b stay frozen.

    What trains are differences from the identity, zero at the start: `hut_A` (out, rank), `hut_B` (rank, in),
    `hut_scale` (out,) and, where the map has a bias, `hut_shift` (out,). Weight decay so pulls towards the backbone.

    Reading "blocks": S_A[i, j] = 1 + hut_A[i, block of j], the `in` columns cut into `rank` blocks, and S_B[i, j] =
    1 + hut_B[block of i, j], the `out` rows likewise. Reading "sum": S_A[i, j] = 1 + sum over hut_A[i], S_B[i, j] = 1 +
    sum over hut_B[:, j], the product with matrices of ones. At rank 1 both are diag(a) W diag(b).
    """

    factors: ClassVar[tuple[str, ...]] = ("hut_A", "hut_B", "hut_scale", "hut_shift")

    def __init__(self, base: nn.Linear, rank: int, reading: Reading) -> None:
        super().__init__(base)
        self._by_side = rank == 1 or reading == "sum"  # each factor is constant along the other side
        device, out = base.weight.device, base.out_features
        self.hut_A = nn.Parameter(torch.zeros(out, rank, device=device))
        self.hut_B = nn.Parameter(torch.zeros(rank, base.in_features, device=device))
        self.hut_scale = nn.Parameter(torch.zeros(out, device=device))
        self.hut_shift = None if base.bias is None else nn.Parameter(torch.zeros(out, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if not self._by_side:
            return functional.linear(x, self.updated(self.weight), self._shifted())
        # no temporary of the weight's size: b on the input, gamma a on the output, of which the bias has no part
        y = functional.linear(x * (1 + self.hut_B.sum(0)), self.weight, self.bias)
        change = (1 + self.hut_scale) * (1 + self.hut_A.sum(1)) - 1
        if self.bias is None or self.hut_shift is None:
            return (y + y * change).to(y.dtype)
        return (y + y * change + (self.hut_shift - self.bias * change)).to(y.dtype)

    def updated(self, weight: torch.Tensor) -> torch.Tensor:
        """diag(gamma) (S_A * W * S_B) for a weight (out, in), in fp32."""
        if self._by_side:
            left, right = self.hut_A.sum(1, keepdim=True), self.hut_B.sum(0, keepdim=True)
        else:
            left = self.hut_A[:, _block(self.in_features, self.hut_A)]
            right = self.hut_B[_block(self.out_features, self.hut_A)]
        return (1 + self.hut_scale).unsqueeze(1) * ((1 + left) * weight.float() * (1 + right))

    def fold(self) -> None:
        """The update goes into weight and bias."""
        self.weight.copy_(self.updated(self.weight))
        if self.hut_shift is not None:
            self.bias.add_(self.hut_shift)

    def _shifted(self) -> torch.Tensor | None:
        return None if self.hut_shift is None else self.bias + self.hut_shift


def _block(length: int, factor: torch.Tensor) -> torch.Tensor:
    """The block of every place of a side, of as many blocks as there are ranks; their lengths differ by one at most."""
    rank = factor.shape[1]
    return torch.arange(length, device=factor.device) * rank // length


class HUTTuner(MapsTuner[HUTLinear]):
    """The factors, scales and shifts of every wrapped map."""

    def decays(self, name: str) -> bool:
        """All but the shifts, which are biases."""
        return not name.endswith("hut_shift")

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The updated weight less the plain one, and beta."""
        for name, layer in self.wrapped.items():
            plain = before[f"{name}.weight"].to(layer.hut_A.device).float()
            yield f"{name}.weight", (layer.updated(plain) - plain).detach()
            if layer.hut_shift is not None:
                yield f"{name}.bias", layer.hut_shift.detach()


@dataclass(frozen=True)
class HUT:
    """Frozen maps under a multiplicative update from both sides, with a scale and a shift of the output.

    Attributes:
        rank: of either factor.
        reading: what rank means above 1: see `HUTLinear`.
    """

    rank: Count = 1
    reading: Reading = "blocks"
    kinds: tuple[Kind, ...] | None = ("query", "value")
    dial: ClassVar[str | None] = "rank"

    def attach(self, model: Model, scope: Scope) -> HUTTuner:
        """See `Method`.

        Raises:
            ConfigError: the rank is above a side of a map: a block would be empty.
        """
        inside = narrowed(scope, self.kinds)
        shortest = min((side for _, base in model.linears(inside) for side in base.weight.shape), default=self.rank)
        if self.rank > shortest:
            raise ConfigError(f"method.rank={self.rank}: above the shortest side of a map here, which is {shortest}")
        return HUTTuner(model, wrap(model, inside, lambda base: HUTLinear(base, self.rank, self.reading)))
