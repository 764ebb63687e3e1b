"""The frozen layers at the bottom of a backbone, run once per row: what they give is kept and the rest starts from it.

Nothing in them is random, so dropout begins above them. Without dropout the rest sees what it would see anyway.
"""

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

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden


class Prefix:
    """The embeddings and the layers below the lowest one that a method may change.

    Attributes:
        depth: how many layers that is.
    """

    def __init__(self, model: Model, touched: Iterable[str], reads: Iterable[str] = ()) -> None:
        """Args:
        model: with the method attached.
        touched: names of what the method may change in it.
        reads: names of modules whose output the method looks at; of the layers, the lowest such one is the last
            that may be kept.

        Raises:
            ConfigError: no layer is left below, or the architecture is not one that can start in the middle.
        """
        self._model, self._kept = model, dict[str, torch.Tensor]()
        layers = model.module.get_submodule(model.layout.layers)
        assert isinstance(layers, nn.ModuleList)
        self.depth = min(_depth(model, touched, 0), _depth(model, reads, 1))
        if not model.layout.starts_in_the_middle:
            raise ConfigError(f"protocol.keep_prefix: {model.name} passes more than hidden states from layer to layer")
        if self.depth == 0:
            raise ConfigError("protocol.keep_prefix: the method may change the first layer, so nothing can be kept")
        self._layers = list(layers[: self.depth])
        self._embeddings = [model.module.get_submodule(path) for path in model.layout.kinds["embeddings"]]

    def run(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the prefix gives for a batch: (rows, width, hidden)."""

        def stop(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            raise Reached(output)

        hook = self._layers[-1].register_forward_hook(stop)
        try:
            self._model.forward(batch)
        except Reached as reached:
            return reached.hidden
        finally:
            hook.remove()
        raise AssertionError("the forward pass did not come by the last layer of the prefix")

    def keep(self, batches: Iterable[Batch]) -> None:
        """Run the prefix on all rows of a split, in these batches, and keep what it gives, without padding."""
        self._model.module.eval()
        for batch in batches:
            inside = batch.inputs["attention_mask"].bool()
            with torch.no_grad():
                hidden = self.run(batch.inputs)[inside]
            name = batch.split.name
            if name not in self._kept:
                self._kept[name] = hidden.new_empty(len(batch.split.ids), hidden.shape[-1])
            self._kept[name][_places(batch.split, batch.rows, inside)] = hidden

    @contextmanager
    def standing_in(self, batch: Batch) -> Iterator[None]:
        """Within, the model starts from what was kept for these rows; a split of which nothing was, from its tokens."""
        if batch.split.name not in self._kept:
            yield
            return
        kept, inside = self._kept[batch.split.name], batch.inputs["attention_mask"].bool()
        hidden = kept.new_zeros(*inside.shape, kept.shape[-1])
        hidden[inside] = kept[_places(batch.split, batch.rows, inside)]
        replaced: list[Any] = [*self._embeddings, *self._layers]
        try:
            for module in replaced:  # an attribute of the instance goes before the method of its class
                module.forward = lambda *_, **__: hidden
            yield
        finally:
            for module in replaced:
                del module.forward


def _places(tokens: Tokens, rows: np.ndarray, inside: torch.Tensor) -> torch.Tensor:
    """Where the tokens of rows lie among all tokens of their split, in the order of `inside`'s ones."""
    starts = torch.from_numpy(tokens.starts[rows]).to(inside.device)
    return (starts[:, None] + torch.arange(inside.shape[1], device=inside.device))[inside]


def _depth(model: Model, names: Iterable[str], more: int) -> int:
    """How many layers may be kept below the lowest that is named, `more` of its own included; none below embeddings.

    Raises:
        ConfigError: a name has no place in the model.
    """
    layers = model.layout.layers + "."
    lowest = model.depth
    for name in names:
        if name.startswith(layers):
            lowest = min(lowest, int(name.removeprefix(layers).partition(".")[0]) + more)
        elif "embeddings" in model.place(name).kinds:
            lowest = 0
    return lowest
