"""MPNet's attention, which adds a bias for every relative position, with this bench's own."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder, MPNetSelfAttention

from peftbench.backbone.attention import ATTENTION


class Attention(MPNetSelfAttention):
    """The same function as the library's."""

    is_causal = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """(rows, tokens, hidden) -> the same shape; biases (1, heads, tokens, tokens). Weights are not given out."""
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q, self.k, self.v))
        rate = self.dropout.p if self.training else 0.0
        mixed, _ = ALL_ATTENTION_FUNCTIONS[ATTENTION](
            self, query, key, value, attention_mask, dropout=rate, position_bias=position_bias
        )
        attended = self.o(mixed.flatten(2))
        return (attended, None) if output_attentions else (attended,)


class Encoder(MPNetEncoder):
    """The same function as the library's; biases are not copied for every row."""

    def compute_position_bias(
        self, x: torch.Tensor, position_ids: torch.Tensor | None = None, num_buckets: int = 32
    ) -> torch.Tensor:
        """(rows, tokens, hidden) -> (1, heads, tokens, tokens)."""
        bias: torch.Tensor = super().compute_position_bias(x[:1], position_ids, num_buckets)
        return bias


CLASSES: Mapping[type, type] = {MPNetSelfAttention: Attention, MPNetEncoder: Encoder}
