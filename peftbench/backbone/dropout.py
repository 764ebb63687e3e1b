"""Dropout whose random numbers are cheap on a CPU.

torch draws one double per element from one thread: over a quarter of a training step of a small backbone on a CPU.
Here each call draws one key, from which a kernel derives every element's number (`kernels.dropout`).
On a GPU, where random numbers are cheap, and where nothing is dropped, torch's own functions are used.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.activations import remember


class Noise:
    """The stream of random numbers that all dropout of one model draws from; its state is what a resume needs."""

    def __init__(self, seed: int = 0) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the stream anew."""
        self._bits = np.random.SFC64(seed)

    def key(self) -> int:
        """The next 64 bits."""
        return int(self._bits.random_raw())

    def state_dict(self) -> dict[str, Any]:
        """JSON-like state of the stream."""
        state = self._bits.state
        return {**dict(state), "state": {"state": [int(word) for word in state["state"]["state"]]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        words = np.array(state["state"]["state"], dtype=np.uint64)
        self._bits.state = {**state, "state": {"state": words}}  # type: ignore[typeddict-item]


def dropped(x: torch.Tensor, key: int, p: float) -> torch.Tensor:
    """See `kernels.dropout`: importing it loads its kernel, which takes half a second."""
    from peftbench.kernels import dropout

    return dropout.dropped(x, key, p)


class Drop(torch.autograd.Function):
    """Dropout by a key: the way back drops by the same one, so no mask is kept."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, key: int, p: float) -> torch.Tensor:
        """(…) -> the same shape."""
        context.key, context.p = key, p
        return dropped(x, key, p)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The same for the gradient."""
        return dropped(gradients[0], context.key, context.p), None, None


class Dropout(nn.Module):
    """In the place of nn.Dropout."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self.noise = p, noise

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…) -> the same shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        key = self.noise.key()
        return remember(Drop.apply(x, key, self.p), functools.partial(dropped, key=key, p=self.p), x)


def replace_dropout(module: nn.Module, noise: Noise) -> None:
    """Put this dropout in the place of every nn.Dropout of a module; all of them share one stream."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, noise))
