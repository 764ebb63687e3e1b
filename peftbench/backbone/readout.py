"""How hidden states become logits: the head that a backbone gets, and which of its outputs are the logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from peftbench.config.spec import Layout


class Readout(Protocol):
    """A head. Training, methods and records see its logits and its parameters, never which one it is."""

    @property
    def architecture(self) -> Any:
        """The class of transformers that puts it on a backbone."""
        ...

    @property
    def pretrained(self) -> bool:
        """Whether its parameters are those of the weights; else they are drawn from the seed."""
        ...

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """Dotted names of its modules."""
        ...

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token ids, masks and types, each (batch, tokens), to logits (batch, labels), or (batch, 1) for a score."""
        ...


@dataclass(frozen=True)
class Classifier:
    """A classifier or regressor over the whole row, drawn from the seed."""

    architecture: Any = AutoModelForSequenceClassification
    pretrained: bool = False

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """See `Readout`."""
        return layout.head

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`."""
        logits: torch.Tensor = module(**inputs).logits
        return logits
