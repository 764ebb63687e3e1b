"""Attention with this bench's dropout, under a name by which most architectures ask transformers for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftbench.backbone.dropout import Dropout, dropped

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
        dropout: the share that is dropped, as the architecture asks for it.
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
    query, key = (part.to(value.dtype).contiguous() for part in (query * scale, key))
    bias = None if position_bias is None else position_bias.to(value.dtype)
    with torch.autocast(query.device.type, enabled=False):  # its softmax would hand on fp32
        mixed = Attend.apply(query, key, value, bias, attention_mask, drop.noise.key(), dropout)
    return mixed.transpose(1, 2).contiguous(), None


class Attend(torch.autograd.Function):
    """dropout(softmax(query key^T + bias)) value. The weights, the one large matrix, are made again on the way back.

    This is the selective recomputation of Korthikanti et al. 2022 (arXiv 2205.05198, section 5).
    """

    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        mask: torch.Tensor | None,
        noise: int,
        p: float,
    ) -> torch.Tensor:
        """Queries (scaled), keys and values (batch, heads, tokens, size) -> the same shape."""
        context.save_for_backward(query, key, value, bias, mask)
        context.noise, context.p = noise, p
        return dropped(_weights(query, key, bias, mask), noise, p) @ value

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of queries, keys, values and biases."""
        query, key, value, bias, mask = context.saved_tensors
        wanted = context.needs_input_grad
        of_query = of_key = of_value = of_bias = None
        weights = _weights(query, key, bias, mask)
        if wanted[2]:
            of_value = dropped(weights, context.noise, context.p).transpose(-1, -2) @ gradients[0]
        if any(wanted[i] for i in (0, 1, 3)):
            of_weights = dropped(gradients[0] @ value.transpose(-1, -2), context.noise, context.p)
            of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_query = of_scores @ key if wanted[0] else None
            of_key = (query.transpose(-1, -2) @ of_scores).transpose(-1, -2) if wanted[1] else None
            of_bias = of_scores.sum_to_size(bias.shape) if wanted[3] else None
        return of_query, of_key, of_value, of_bias, None, None, None


def _weights(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """What every token takes from every other (batch, heads, tokens, tokens); summed in fp32."""
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores += bias
    if mask is not None:
        scores += _least_where_hidden(mask, scores.dtype)
    return scores.softmax(-1)


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
