"""phi(x): rows to features of an encoder, without a head of its own, with or without adapters beside its layers."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.backbone.readout import Classifier
from peftbench.data.batches import Batch, evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.lifecycle.sequence.side_adapters import Adapters, SideAdapters
from peftbench.training.forward import Forward


@dataclass(frozen=True)
class Pooled(Classifier):
    """Reads features in the place of logits; the classifier that transformers builds is passed over.

    Attributes:
        how: mean (over a row's tokens) | cls (its first token).
    """

    how: Literal["mean", "cls"] = "mean"

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token ids, masks and types, each (batch, tokens), to features (batch, d)."""
        base = module.base_model
        assert isinstance(base, nn.Module)
        hidden: torch.Tensor = base(**inputs).last_hidden_state.float()
        if self.how == "cls":
            return hidden[:, 0]
        inside = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * inside).sum(1) / inside.sum(1)


class Encoder:
    """A model that gives features, as training and evaluation run it.

    Attributes:
        adapters: those beside its layers; None: the learner has none.
        size: d, features of a row.
        passes: how often the features of a split were computed.
    """

    def __init__(
        self, model: Model, forward: Forward, adapters: SideAdapters | None, eval_batch_size: int, frozen: bool
    ) -> None:
        """Args:
        model: read by `Pooled`.
        forward: the same as it runs.
        eval_batch_size: rows at a time where nothing is trained.
        frozen: whether the model itself stays as it is, so that the same adapters give the same features.
        """
        self.passes = 0
        self._frozen, self._known = frozen, dict[tuple[int, str], tuple[Tokens, torch.Tensor]]()
        self.model, self.adapters, self.size = model, adapters, int(model.module.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._forward, self._eval_batch_size = forward, eval_batch_size

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.model.module.parameters()).device

    def batch(self, tokens: Tokens, rows: np.ndarray) -> Batch:
        """Rows of a split as tensors on its device."""
        return self._forward.batch(tokens, rows)

    def __call__(self, batch: Batch, adapters: Adapters | None = None) -> torch.Tensor:
        """Features (rows, d) fp32 of a batch, with these adapters."""
        if self.adapters is None:
            return self._forward.logits(batch)
        with self.adapters.using(adapters):
            return self._forward.logits(batch)

    def features(self, tokens: Tokens, adapters: Adapters | None = None) -> torch.Tensor:
        """Features (rows, d) fp32 of a split on the CPU, without dropout.

        They are computed once for the same rows and adapters, where neither model nor adapters change in between: tasks
        are scored after every stage, and most adapters are those of stages before.
        """
        if not self._frozen or (self.adapters is not None and self.adapters.before_layer is not None):
            return self._pass(tokens, adapters)
        key = id(tokens), tensors_sha256((adapters or {}).values())
        if key not in self._known:
            self._known[key] = tokens, self._pass(tokens, adapters)  # with the rows, so that no others get their id
        return self._known[key][1].clone()

    @torch.no_grad()
    def _pass(self, tokens: Tokens, adapters: Adapters | None) -> torch.Tensor:
        self.passes += 1
        self.model.module.eval()
        out = torch.empty(len(tokens), self.size)
        for rows in evaluation_order(tokens.lengths, self._eval_batch_size):
            out[torch.from_numpy(rows)] = self(self.batch(tokens, rows), adapters).float().cpu()
        return out


def tensors_sha256(tensors: Iterable[torch.Tensor]) -> str:
    """Of the values of tensors, in their order."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
