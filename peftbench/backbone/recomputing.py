"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of every layer only its input is kept for the way back.

On the way back a layer runs forward once more, with the same random numbers; so every value stays what it was.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, EncoderDecoderCache

from peftbench.backbone.dropout import Noise
from peftbench.backbone.model import Model


@contextmanager
def recomputed(model: Model) -> Iterator[None]:
    """A forward pass within keeps what goes into each layer; one that something stands in for is left alone."""
    layers = model.module.get_submodule(model.layout.layers)
    assert isinstance(layers, nn.ModuleList)
    running = [layer for layer in layers if "forward" not in vars(layer)]
    twice = functools.partial(_both_times, model.noise)
    for layer in running:
        once = functools.partial(_with_own_cache, layer.forward)
        layer.forward = functools.partial(checkpoint, once, use_reentrant=False, context_fn=twice)
    try:
        yield
    finally:
        for layer in running:
            del layer.forward


def _with_own_cache(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """One run of a layer. To keys and values from outside it adds its own: its second run must not find these there."""
    return forward(*map(_own, inputs), **{name: _own(value) for name, value in named.items()})


def _own(given: Any) -> Any:
    """The same, but a cache of keys and values as a copy that holds the same tensors."""
    if not isinstance(given, Cache):
        return given
    own = copy.copy(given)
    if isinstance(given, EncoderDecoderCache):
        own.self_attention_cache = _own(given.self_attention_cache)
    else:
        own.layers = [copy.copy(layer) for layer in given.layers]
    return own


def _both_times(noise: Noise) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds a layer's first run, which has just begun, and its second."""
    return nullcontext(), _from(noise, noise.state_dict())


@contextmanager
def _from(noise: Noise, state: dict[str, object]) -> Iterator[None]:
    now = noise.state_dict()
    noise.load_state_dict(state)
    try:
        yield
    finally:
        noise.load_state_dict(now)
