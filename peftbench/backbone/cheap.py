"""What costs little beside a product of matrices: its output is made again on the way back, not kept for it."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers.activations import GELUActivation

from peftbench.backbone.activations import made


class LayerNorm(nn.LayerNorm):
    """The same function as torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., hidden) -> the same shape."""
        return made(super().forward, x)


class GELU(GELUActivation):
    """The same function as the library's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(...) -> the same shape."""
        return made(super().forward, x)


CLASSES: Mapping[type, type] = {nn.LayerNorm: LayerNorm, GELUActivation: GELU}
