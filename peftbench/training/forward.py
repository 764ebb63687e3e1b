"""Rows of a split to logits: batches on the device, the run's precision, kept hidden states for frozen layers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from peftbench.backbone.activations import recomputed_activations
from peftbench.backbone.heads import TASK
from peftbench.backbone.model import Model
from peftbench.backbone.prefix import Prefix
from peftbench.backbone.recomputing import recomputed
from peftbench.data.batches import Batch, collate, evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.kernels.products import widen_products


class Forward:
    """A model as training and evaluation run it.

    Attributes:
        model: what runs.
        prefix: the frozen first layers, run once per row; None: all layers run every time.
    """

    def __init__(
        self,
        model: Model,
        precision: str,
        device: torch.device,
        prefix: Prefix | None = None,
        checkpointing: bool = False,
    ) -> None:
        model.module.to(device)
        self.model, self.prefix = model, prefix
        self._low, self._device = precision == "bf16", device
        if self._low and device.type == "cpu":
            widen_products()
        self._checkpointing = checkpointing
        self._type_ids = getattr(model.module.config, "type_vocab_size", 0) > 1

    def batch(self, tokens: Tokens, rows: np.ndarray) -> Batch:
        """Rows of a split as tensors on the model's device."""
        return collate(tokens, rows, self._type_ids).to(self._device)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits (rows, labels) fp32."""
        standing_in = nullcontext() if self.prefix is None else self.prefix.standing_in(batch)
        checkpointing = self._checkpointing and self.model.module.training
        inputs = batch.inputs if (task := batch.task) is None else {**batch.inputs, TASK: task}
        with self.autocast(), standing_in, recomputed(self.model) if checkpointing else recomputed_activations():
            return self.model.forward(inputs)

    @contextmanager
    def from_tokens(self) -> Iterator[None]:
        """Within, all layers run: what lies in the prefix may be asked for its gradients."""
        prefix, self.prefix = self.prefix, None
        try:
            yield
        finally:
            self.prefix = prefix

    def run_prefix(self, splits: Iterable[Tokens], batch_size: int) -> None:
        """Run the frozen first layers on every row of these splits, where they are to be kept."""
        if self.prefix is None:
            return
        with self.autocast():
            for tokens in splits:
                self.prefix.keep(self.batch(tokens, rows) for rows in evaluation_order(tokens.lengths, batch_size))

    def autocast(self) -> torch.autocast:
        """The context of the run's precision."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._low)
