"""The frozen layers at the bottom of a backbone, run once per row: what they give is kept and the rest starts from it.

Nothing in them is random, so dropout begins above them. Without dropout the rest sees what it would see anyway.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.data.batches import Batch
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError


class Reached(Exception):
    """The prefix is done; the forward pass goes no further."""


class Prefix:
    """The embeddings and the layers below the lowest one that a method may change.

    Attributes:
        depth: how many layers that is.
    """

    def __init__(self, model: Model, touched: Iterable[str], reads: Iterable[str] = ()) -> None:
        """Args:
        model: with the method attached.
        touched: names of what the method may change in it.
        reads: names of modules whose output the method looks at: what layers (and embeddings) of these give is kept,
            too; a layer is run where the module lies inside it.

        Raises:
            ConfigError: no layer is left below, or the architecture is not one that can start in the middle.
        """
        self._model, self._kept = model, dict[str, torch.Tensor]()
        self._rest: tuple[Any, ...] | None = None  # what a layer gives beside hidden states; None: these alone
        layers = model.module.get_submodule(model.layout.layers)
        assert isinstance(layers, nn.ModuleList)
        self.depth = _depth(model, touched)
        read = {_layer(model, name) for name in reads}
        self.depth = min([self.depth, *(layer for layer, inside in read if inside)])
        if not model.layout.starts_in_the_middle:
            raise ConfigError(f"protocol.keep_prefix: {model.name} passes more than hidden states from layer to layer")
        if self.depth == 0:
            raise ConfigError("protocol.keep_prefix: the method may change the first layer, so nothing can be kept")
        self._layers = list(layers[: self.depth])
        # a bare table or norm beside the layers may serve those above the prefix, too (relative positions): it is run
        self._embeddings = [
            module for module in model.embeddings() if not isinstance(module, (nn.Embedding, nn.LayerNorm))
        ]
        # of which layers the output is kept; -1: what goes into the first
        self._points = sorted({self.depth - 1, *(layer for layer, _ in read if layer < self.depth)})

    def run(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the prefix gives for a batch, at every point that is kept: (points, rows, width, hidden)."""
        hidden: list[torch.Tensor] = []

        def entered(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            hidden.append(inputs[0])

        def left(module: nn.Module, _: Any, output: Any) -> None:
            self._rest = output[1:] if isinstance(output, tuple) else None
            hidden.append(output if self._rest is None else output[0])
            if module is self._layers[-1]:
                raise Reached

        inner = [self._layers[point] for point in self._points if point >= 0]
        hooks = [layer.register_forward_hook(left, prepend=True) for layer in inner]  # before the method's own
        if self._points[0] < 0:
            hooks.append(self._layers[0].register_forward_pre_hook(entered))
        try:
            self._model.forward(batch)
        except Reached:
            return torch.stack(hidden)
        finally:
            for hook in hooks:
                hook.remove()
        raise AssertionError("the forward pass did not come by the last layer of the prefix")

    def keep(self, batches: Iterable[Batch]) -> None:
        """Run the prefix on all rows of a split, in these batches, and keep what it gives, without padding."""
        self._model.module.eval()
        for batch in batches:
            inside = batch.inputs["attention_mask"].bool()
            with torch.no_grad():
                hidden = self.run(batch.inputs)[:, inside]
            name = batch.split.name
            if name not in self._kept:
                self._kept[name] = hidden.new_empty(len(self._points), len(batch.split.ids), hidden.shape[-1])
            self._kept[name][:, _places(batch.split, batch.rows, inside)[inside]] = hidden

    @contextmanager
    def standing_in(self, batch: Batch) -> Iterator[None]:
        """Within, the model starts from what was kept for these rows; a split of which nothing was, from its tokens."""
        if batch.split.name not in self._kept:
            yield
            return
        kept, inside = self._kept[batch.split.name], batch.inputs["attention_mask"].bool()
        # no choice by a mask: a GPU would have to be waited for to know how many those are
        hidden = kept[:, _places(batch.split, batch.rows, inside)].masked_fill_(~inside[..., None], 0)
        replaced: list[Any] = [*self._embeddings, *self._layers]
        try:
            for module in self._embeddings:
                _stand_in(module, hidden[0])
            for number, layer in enumerate(self._layers):  # a layer that is not kept gives what nobody looks at
                given = hidden[bisect_left(self._points, number)]
                _stand_in(layer, given if self._rest is None else (given, *self._rest))
            yield
        finally:
            for module in replaced:
                del module.forward


def _stand_in(module: Any, output: Any) -> None:
    """Let a module give this, whatever it is given: an attribute of the instance goes before a method of its class."""
    module.forward = lambda *_, **__: output


def _places(tokens: Tokens, rows: np.ndarray, inside: torch.Tensor) -> torch.Tensor:
    """Where the tokens of rows lie among all tokens of their split (rows, width); of padding, a place of another."""
    starts = torch.from_numpy(tokens.starts[rows]).to(inside.device)
    places = starts[:, None] + torch.arange(inside.shape[1], device=inside.device)
    return places.clamp(max=len(tokens.ids) - 1)


def _depth(model: Model, touched: Iterable[str]) -> int:
    """How many layers lie below the lowest that is named; none below embeddings.

    Raises:
        ConfigError: a name has no place in the model.
    """
    return min([model.depth, *(max(0, layer) for layer, _ in (_layer(model, name) for name in touched))])


def _layer(model: Model, name: str) -> tuple[int, bool]:
    """The layer in which a module or parameter lies, and whether it lies inside; -1 embeddings, depth what is above.

    Raises:
        ConfigError: the name has no place in the model.
    """
    layers = model.layout.layers + "."
    if name.startswith(layers):
        number, _, inside = name.removeprefix(layers).partition(".")
        return int(number), inside != ""
    return (-1 if "embeddings" in model.place(name).kinds else model.depth), False
