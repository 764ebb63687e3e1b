"""How hidden states become logits: the head that a backbone gets, and which of its outputs are the logits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

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

    def attach(self, module: nn.Module) -> None:
        """Make a model of that architecture one that this readout reads."""
        ...

    def trains(self, name: str) -> bool:
        """Whether a parameter of its modules trains, by its dotted name."""
        ...

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Token ids, masks and types, each (batch, tokens), to logits (batch, labels), or (batch, 1) for a score."""
        ...


class _AsBuilt:
    """What readouts share that are a part of transformers' own model: nothing is put in its place, all of it trains."""

    def attach(self, module: nn.Module) -> None:
        """See `Readout`: nothing is to be done."""

    def trains(self, name: str) -> bool:
        """See `Readout`: all of it."""
        return True

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`; a masked-LM head's are of every token, (batch, tokens, vocabulary)."""
        logits: torch.Tensor = module(**inputs).logits
        return logits


@dataclass(frozen=True)
class Classifier(_AsBuilt):
    """A classifier or regressor over the whole row, drawn from the seed."""

    architecture: Any = AutoModelForSequenceClassification
    pretrained: bool = False

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """See `Readout`."""
        return layout.head


class WordDecoder(nn.Module):
    """A masked-LM head's last map, at some words of the vocabulary alone: (..., hidden) to (..., words).

    `weight` (vocabulary, hidden) and `bias` (vocabulary,) are the head's own parameters; where the weight is tied to
    the embeddings it stays so. `rows` (words, hidden) is a change of the words' rows, zero at first, and `row_bias`
    (words,) one of their biases.
    """

    words: torch.Tensor

    def __init__(self, whole: nn.Module, words: Sequence[int], head: str) -> None:
        super().__init__()
        assert isinstance(whole.weight, nn.Parameter)
        self.weight, self.bias = whole.weight, whole.bias
        device = whole.weight.device
        self.register_buffer("words", torch.tensor(words, device=device), persistent=False)
        of_rows, of_bias = head in ("rows", "all"), head == "rows"
        self.rows = nn.Parameter(torch.zeros(len(words), whole.weight.shape[1], device=device)) if of_rows else None
        self.row_bias = nn.Parameter(torch.zeros(len(words), device=device)) if of_bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of the words."""
        assert isinstance(self.bias, torch.Tensor)
        weight, bias = self.weight[self.words], self.bias[self.words]
        weight = weight if self.rows is None else weight + self.rows
        return functional.linear(hidden, weight, bias if self.row_bias is None else bias + self.row_bias)


@dataclass(frozen=True)
class WholeHead(_AsBuilt):
    """The masked-LM head over the whole vocabulary, as text trains it: of the weights, or drawn from the seed."""

    pretrained: bool
    architecture: Any = AutoModelForMaskedLM

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """See `Readout`."""
        return layout.masked_head


@dataclass(frozen=True)
class Prompt:
    """The masked-LM head of the weights, read at each row's masked token, at the label words.

    Attributes:
        words: token ids of the label words, in the order of the labels.
        mask: token id that every row has once.
        head: which of its parameters train: see conf/readout/prompt.yaml.
        bounds: lowest and highest score of a regression: its logit is the score between them, by the softmax of the
            two words. None: classes.
    """

    words: tuple[int, ...]
    mask: int
    head: str = "trains"
    bounds: tuple[float, float] | None = None
    architecture: Any = AutoModelForMaskedLM
    pretrained: bool = True

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """See `Readout`."""
        return layout.masked_head

    def attach(self, module: nn.Module) -> None:
        """See `Readout`: the last map computes the label words alone."""
        module.tie_weights()  # type: ignore[operator]  # not done yet where no weights were drawn
        whole = module.get_output_embeddings()  # type: ignore[operator]
        name = next(name for name, part in module.named_modules() if part is whole)
        module.set_submodule(name, WordDecoder(whole, self.words, self.head))

    def trains(self, name: str) -> bool:
        """See `Readout`."""
        own = not name.endswith((".rows", ".row_bias"))
        return {"frozen": False, "rows": not own, "trains": own, "all": True}[self.head]

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`."""
        place = (inputs["input_ids"] == self.mask).int().argmax(dim=1)
        every: torch.Tensor = module(**inputs).logits
        logits = every[torch.arange(len(place), device=place.device), place]
        if self.bounds is None:
            return logits
        low, high = self.bounds
        return low + (high - low) * logits.float().softmax(dim=1)[:, 1:]
