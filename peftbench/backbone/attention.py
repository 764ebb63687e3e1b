"""Attention with this bench's dropout, under a name by which most architectures ask transformers for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftbench.backbone.dropout import DropAndMix, Dropout

ATTENTION = "peftbench"  # the name under which transformers finds `attention`


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention (batch, heads, tokens, size) -> (batch, tokens, heads, size), with this dropout on its weights.

    torch's fused kernels are used wherever nothing is dropped; on a CPU they cannot drop.

    Args:
        attention_mask: of a shape that broadcasts to (batch, heads, tokens, tokens), bool: what a token may see.
        position_bias: of such a shape, added to the scores.
    """
    drop = _drop(module)
    if dropout == 0 or query.device.type != "cpu" or drop is None:
        if position_bias is not None:
            attention_mask = _added(position_bias, attention_mask, query.dtype)
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return attended
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scale).contiguous() @ key.contiguous().transpose(-1, -2)  # else matmul copies key transposed
    if position_bias is not None:
        scores += position_bias.to(scores.dtype)
    if attention_mask is not None:  # added: masking would be gone through again on the way back, where these are 0
        scores += _least_where_hidden(attention_mask, scores.dtype)
    # not autocast's softmax: it would hand on fp32; the kernel sums in fp32 in any case
    with torch.autocast(query.device.type, enabled=False):
        mixed = DropAndMix.apply(scores.softmax(-1), value, drop.noise.key(), drop.p)
    return mixed.transpose(1, 2).contiguous(), None


def _drop(module: nn.Module) -> Dropout | None:
    """The dropout of a module's attention weights; ModernBERT has one of the same rate for them and what comes out."""
    dropouts = (getattr(module, name, None) for name in ("dropout", "out_drop"))
    return next((drop for drop in dropouts if isinstance(drop, Dropout)), None)


def _added(bias: torch.Tensor, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    bias = bias.to(dtype)
    return bias if mask is None else bias + _least_where_hidden(mask, dtype)


def _least_where_hidden(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    least = torch.finfo(dtype).min  # not -inf: a token of padding may see no token at all
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, least)


def users(forward: Callable[[], object]) -> set[nn.Module]:
    """The modules that ask for this attention in a forward pass, and whose dropout is this one or none."""
    modules = set()

    def noting(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        if _drop(module) is not None or getattr(module, "attention_dropout", None) == 0:
            modules.add(module)
        return attention(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, noting)
    try:
        forward()
    finally:
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
    return modules


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
