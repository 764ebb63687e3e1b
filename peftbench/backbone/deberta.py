"""DeBERTa's disentangled attention (He et al. 2021, arXiv 2006.03654) with this bench's own.

Equation 4 of the paper adds two products with embeddings of relative positions to the scores. The library takes both
with every relative position there is, once more for every row, and picks what it needs by an index for each score.
Here they are taken with the positions that occur between so many tokens, of all rows at once, and found by place.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position

from peftbench.backbone.attention import ATTENTION


class Attention(DisentangledSelfAttention):
    """The same function as the library's; on a CPU only embeddings of positions that occur are looked at."""

    is_causal = False

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        output_attentions: bool = False,
        query_states: torch.Tensor | None = None,
        relative_pos: torch.Tensor | None = None,
        rel_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """(rows, tokens, hidden) -> the same shape. Weights are not given out, whether asked for or not.

        Args:
            attention_mask: (rows, 1, tokens, tokens), not 0: what a token may see.
            relative_pos: (1, tokens, tokens), the bucket of query's place - key's place.
            rel_embeddings: one for every bucket (2 * buckets, hidden).
        """
        asking = hidden_states if query_states is None else query_states
        query, key, value = (
            self._by_head(part(states))
            for part, states in (
                (self.query_proj, asking), (self.key_proj, hidden_states), (self.value_proj, hidden_states)
            )
        )  # fmt: skip
        terms = [term for term in ("c2p", "p2c") if term in self.pos_att_type]
        scale = (self.attention_head_size * (1 + len(terms))) ** -0.5
        bias = None
        if self.relative_attention and terms:
            assert rel_embeddings is not None
            if relative_pos is None:
                relative_pos = build_relative_position(query, key, self.position_buckets, self.max_relative_positions)
            bias = self._position_bias(query, key, relative_pos, rel_embeddings, scale)
        rate = self.dropout.p if self.training else 0.0
        mixed, _ = ALL_ATTENTION_FUNCTIONS[ATTENTION](
            self, query, key, value, attention_mask.bool(), dropout=rate, scaling=scale, position_bias=bias
        )
        return mixed.flatten(2), None

    def _by_head(self, states: torch.Tensor) -> torch.Tensor:
        """(..., tokens, heads * size) -> (..., heads, tokens, size)."""
        return states.unflatten(-1, (-1, self.attention_head_size)).transpose(-2, -3)

    def _position_bias(
        self, query: torch.Tensor, key: torch.Tensor, buckets: torch.Tensor, embeddings: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """What both products add to the scores (rows, heads, tokens, tokens)."""
        # buckets of query's place - key's place, from tokens - 1 down to 1 - tokens; the last twice, for `_diagonals`
        falling = torch.cat([buckets[0, :, 0].flip(0), buckets[0, 0, 1:], buckets[0, 0, -1:]])
        numbers = (falling + self.pos_ebd_size).clamp(0, 2 * self.pos_ebd_size - 1)
        # on a GPU, which would have to be waited for, all of them
        first, last = (int(numbers[-1]), int(numbers[0])) if numbers.device.type == "cpu" else (0, len(embeddings) - 1)
        occurring = self.pos_dropout(embeddings[first : last + 1])
        bias: Any = 0
        if "c2p" in self.pos_att_type:
            to_keys = self.key_proj if self.share_att_key else self.pos_key_proj
            table = self._by_head(to_keys(occurring) * scale)
            bias = bias + _diagonals(query, table[:, numbers - first])
        if "p2c" in self.pos_att_type:
            to_queries = self.query_proj if self.share_att_key else self.pos_query_proj
            table = self._by_head(to_queries(occurring) * scale)
            rising = torch.cat([numbers[:-1].flip(0), numbers[:1]])
            bias = bias + _diagonals(key, table[:, rising - first]).transpose(-1, -2)
        return bias


def _diagonals(states: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The products of token i's state and the table's entry tokens - 1 + j - i, for all i and j; nothing is copied.

    Args:
        states: (rows, heads, tokens, size).
        table: (heads, 2 * tokens, size); the last entry counts for nothing.
    """
    rows, heads, tokens, _ = states.shape
    together = states.transpose(0, 1).reshape(heads, rows * tokens, -1) @ table.transpose(-1, -2)
    flat = together.view(heads, rows, 2 * tokens * tokens)  # one entry less a token: the next one's begin one earlier
    return flat[..., tokens - 1 : -1].view(heads, rows, tokens, 2 * tokens - 1)[..., :tokens].transpose(0, 1)


CLASSES: Mapping[type, type] = {DisentangledSelfAttention: Attention}
