"""Dropout whose random numbers are cheap on a CPU, and attention that uses it.

torch draws one double per element from one thread: over a quarter of a training step of a small backbone on a CPU.
Here four elements share a 64-bit number of numpy's SFC64: an element is dropped if its 15 bits are below
round(p * 2^15), so that p is met to 1.6e-5, and what is kept is divided by exactly the probability of being kept.
On a GPU, where random numbers are cheap, and where nothing is dropped, torch's own functions are used.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "peftbench"  # the name under which transformers finds `attention`
ONE = 0x3F80  # bits of 1.0 in bf16


class Noise:
    """The stream of random numbers that all dropout of one model draws from; its state is what a resume needs."""

    def __init__(self, seed: int = 0) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start the stream anew."""
        self._bits = np.random.SFC64(seed)

    def kept(self, like: torch.Tensor, p: float) -> tuple[torch.Tensor, float]:
        """Ones (kept) and zeros (dropped) of a tensor's shape, in bf16, and what kept elements are multiplied by."""
        threshold = round(p * 2**15)
        words = torch.from_numpy(self._bits.random_raw(-(-like.numel() // 4)).view(np.int16))
        words = words[: like.numel()].view(like.shape)
        # 15 random bits less the threshold are negative for the dropped; the shift makes that -1, everything else 0
        words.bitwise_and_(0x7FFF).sub_(threshold).bitwise_right_shift_(15).bitwise_not_().bitwise_and_(ONE)
        return words.view(torch.bfloat16), 2**15 / (2**15 - threshold)

    def state_dict(self) -> dict[str, Any]:
        """JSON-like state of the stream."""
        state = self._bits.state
        return {**dict(state), "state": {"state": [int(word) for word in state["state"]["state"]]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        words = np.array(state["state"]["state"], dtype=np.uint64)
        self._bits.state = {**state, "state": {"state": words}}  # type: ignore[typeddict-item]


class Drop(torch.autograd.Function):
    """x * kept * scale, with a mask of two bytes per element kept for the way back."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        """(…) -> the same shape."""
        context.save_for_backward(kept)
        context.scale = scale
        return _times(x, kept, scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The same for the gradient."""
        (kept,) = context.saved_tensors
        return _times(gradients[0], kept, context.scale), None, None


def _times(x: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
    """x * kept * scale in one pass over memory, rounded once; the sum's other term is zero."""
    return torch.addcmul(torch.zeros((), dtype=x.dtype), x, kept, value=scale)


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
        dropped: torch.Tensor = Drop.apply(x, *self.noise.kept(x, self.p))
        return dropped


def replace_dropout(module: nn.Module) -> Noise:
    """Put this dropout in the place of every nn.Dropout of a module; returns the stream that all of them share."""
    noise = Noise()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p, noise))
    return noise


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention (batch, heads, tokens, size) -> (batch, tokens, heads, size), with this dropout on its weights.

    torch's fused kernels are used wherever nothing is dropped; on a CPU they cannot drop.
    """
    drop = getattr(module, "dropout", None)
    if dropout == 0 or query.device.type != "cpu" or not isinstance(drop, Dropout):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale).contiguous() @ key.contiguous().transpose(-1, -2)  # else matmul copies key transposed
    if attention_mask is not None:  # added: masking would be gone through again on the way back, where these are 0
        least = torch.finfo(scores.dtype).min  # not -inf: a token of padding may see no token at all
        scores += torch.zeros(attention_mask.shape, dtype=scores.dtype).masked_fill_(~attention_mask, least)
    # not autocast's softmax: it would hand on fp32; the kernel sums in fp32 in any case
    with torch.autocast(query.device.type, enabled=False):
        weights = drop(scores.softmax(-1))
    return (weights @ value).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
