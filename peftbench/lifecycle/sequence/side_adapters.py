"""Bottleneck adapters beside the feed-forward networks of an encoder whose own weights stay as they are."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.spec import Kind, Scope
from peftbench.methods.base import require

Adapters = Mapping[str, torch.Tensor]


class SideAdapters:
    """Puts y + s U relu(D x) in the place of y = FFN(x) of every layer, as MOS's code does (Sun et al. 2025, arXiv
    2412.09441): x is what the FFN reads, and what follows it (dropout, residual, norm) gets the sum.

    D (width, d) and U (d, width) have biases, and dropout lies between them. Which ones are in use is said from
    outside, so that those of several tasks can be kept: none are at first.

    Attributes:
        in_use: parameters by name ("3.down.weight"); None: the encoder is as it was.
        before_layer: called before each layer's adapter is used.
    """

    def __init__(self, model: Model, scale: float, dropout: float) -> None:
        """Args:
        model: gets hooks, and keeps them.
        scale: s; dropout: share of the bottleneck that is dropped in training.

        Raises:
            ConfigError: its layout names no feed-forward networks.
        """
        self._model, self._scale, self._dropout = model, scale, dropout
        self.in_use: Adapters | None = None
        self.before_layer: Callable[[], None] | None = None
        first, last = _by_layer(model, "intermediate"), _by_layer(model, "output")
        self._sizes = {layer: (first[layer][0].in_features, last[layer][-1].out_features) for layer in first}
        self._read: torch.Tensor | None = None
        for layer in first:
            first[layer][0].register_forward_pre_hook(self._reads)
            last[layer][-1].register_forward_hook(self._adds(layer))

    def fresh(self, width: int) -> dict[str, torch.Tensor]:
        """New adapters on the model's device, which change nothing: U and the biases are 0, D is Kaiming's."""
        device = next(self._model.module.parameters()).device
        made = {}
        for layer, (size, out) in self._sizes.items():
            down = torch.empty(width, size)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            made[f"{layer}.down.weight"] = down
            made[f"{layer}.down.bias"] = torch.zeros(width)
            made[f"{layer}.up.weight"] = torch.zeros(out, width)
            made[f"{layer}.up.bias"] = torch.zeros(out)
        return {name: tensor.to(device) for name, tensor in made.items()}

    @contextmanager
    def using(self, adapters: Adapters | None) -> Iterator[None]:
        """Within, these are in use."""
        before, self.in_use = self.in_use, adapters
        try:
            yield
        finally:
            self.in_use = before

    def _reads(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.in_use is not None and self.before_layer is not None:
            self.before_layer()
        self._read = inputs[0]

    def _adds(self, layer: int) -> Callable[..., torch.Tensor]:
        def add(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
            if self.in_use is None:
                return output
            assert self._read is not None
            down, up = (
                (self.in_use[f"{layer}.{part}.weight"], self.in_use[f"{layer}.{part}.bias"]) for part in ("down", "up")
            )
            inner = functional.relu(functional.linear(self._read, *down))
            inner = functional.dropout(inner, self._dropout, self._model.module.training)
            return output + self._scale * functional.linear(inner, *up)

        return add


def _by_layer(model: Model, kind: Kind) -> dict[int, list[nn.Linear]]:
    """The linear maps of a kind by their layer, in forward order."""
    scope = Scope(kinds=(kind,))
    found: dict[int, list[nn.Linear]] = {}
    for name, linear in model.linears(scope):
        if (layer := model.place(name).layer) is not None:
            found.setdefault(layer, []).append(linear)
    require(list(found), "no feed-forward network", scope)
    return found
