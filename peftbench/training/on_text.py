"""What trainings of a backbone on text share, distillation and masked tokens: the optimizer and the order of rows."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from peftbench.config.spec import Protocol
from peftbench.data.batches import epoch_order
from peftbench.data.tokens import Tokens
from peftbench.methods.base import decays_by_name


def adamw(trained: Mapping[str, torch.Tensor], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over parameters by name; weight decay leaves biases and norms alone."""
    decayed = [p for name, p in trained.items() if decays_by_name(name)]
    others = [p for name, p in trained.items() if not decays_by_name(name)]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}], lr=lr
    )


def endless(tokens: Tokens, protocol: Protocol, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of batches (rows,), pass after pass, in the order of the seed's stream."""
    epoch = 0
    while True:
        yield from epoch_order(tokens.lengths, protocol.batch_size, protocol.bucketing, seed, epoch)
        epoch += 1
