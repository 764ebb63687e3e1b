"""A narrow encoder of a backbone's own architecture."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.initialization import no_init_weights

from peftbench.backbone.adopt import adopt
from peftbench.backbone.model import Model
from peftbench.ground.errors import ConfigError, first_line


class Start(nn.Module):
    """In the place of the embeddings: gives what it was handed, whatever it is asked."""

    hidden: torch.Tensor | None = None

    def forward(self, *_: Any, **__: Any) -> torch.Tensor | None:
        """(rows, tokens, width)."""
        return self.hidden


class Narrow(nn.Module):
    """Some layers of an encoder like the backbone's, 1 / reduction as wide, with as many heads.

    Tables of relative positions and norms outside the layers are its own; embeddings and pooler it has none.

    Attributes:
        encoder: the library's own model without a head.
        layers: one for each of the backbone's that were asked for.
        width, inner: its hidden size and that of its feed-forward sub-layers.
    """

    def __init__(self, model: Model, numbers: Sequence[int], reduction: int) -> None:
        """Raises:
        ConfigError: no such encoder can be made of this reduction.
        """
        super().__init__()
        config: Any = model.module.config
        weight = next(model.module.parameters())
        self.width, self.inner = narrow_width(config, reduction), kept_rows(_wide_inner(config), reduction)
        smaller = _smaller(config, self.width, self.inner)
        try:
            with torch.device(weight.device):
                self.encoder = _encoder(smaller, config, weight.is_meta)
            self._strip(model, numbers)
            _run_through(copy.deepcopy(self))
        except Exception as error:  # whatever the library raises: the architecture is one that we may not know
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(
                f"method.reduction={reduction}: {model.name} cannot be made so narrow ({reason})"
            ) from None
        adopt(self.encoder, model.noise)

    @property
    def layers(self) -> nn.ModuleList:
        """Those of the encoder."""
        layers = self.encoder.get_submodule(self._path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _strip(self, model: Model, numbers: Sequence[int]) -> None:
        prefix = f"{model.module.base_model_prefix}."
        self._path = model.layout.layers.removeprefix(prefix)
        layers = self.layers
        self.encoder.set_submodule(self._path, nn.ModuleList(layers[number] for number in numbers))
        words = _name_of(self.encoder, self.encoder.get_input_embeddings())
        paths = [path.removeprefix(prefix) for path in model.layout.kinds["embeddings"]]
        self._start = next(path for path in paths if words == path or words.startswith(path + "."))
        self.encoder.set_submodule(self._start, Start())
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embedded tokens (rows, tokens, width) to the same shape; mask (rows, tokens), 1 is a token."""
        start: Any = self.encoder.get_submodule(self._start)
        start.hidden = hidden
        try:
            left: torch.Tensor = self.encoder(inputs_embeds=hidden, attention_mask=mask)[0]
        finally:
            start.hidden = None
        return left


def _run_through(narrow: Narrow) -> None:
    """Two tokens, whatever the values: some wrong shapes show only so."""
    narrow.eval().to_empty(device="cpu")
    for buffer in narrow.buffers():
        buffer.zero_()  # numbers of rows may be among them
    with torch.no_grad():
        narrow(torch.zeros(1, 2, narrow.width), torch.ones(1, 2, dtype=torch.long))


def _encoder(smaller: Any, config: Any, empty: bool) -> Any:
    attention = getattr(config, "_attn_implementation", None)
    if not empty:
        return AutoModel.from_config(smaller, attn_implementation=attention)
    with no_init_weights():
        return AutoModel.from_config(smaller, attn_implementation=attention)


def _smaller(config: Any, width: int, inner: int) -> Any:
    """The configuration with other widths, and of next to no words."""
    smaller = copy.deepcopy(config)
    sizes = {"hidden_size": width, "embedding_size": width, "intermediate_size": inner, "hidden_dim": inner}
    sizes |= dict.fromkeys(("head_dim", "attention_head_size"), width // config.num_attention_heads)
    for key, value in {**sizes, "vocab_size": 2, "pad_token_id": 0, "use_cache": False}.items():
        if getattr(smaller, key, None) is not None:
            setattr(smaller, key, value)
    return smaller


def _wide_inner(config: Any) -> int:
    """The hidden size of a backbone's feed-forward sub-layers."""
    return int(getattr(config, "intermediate_size", None) or config.hidden_dim)


def kept_rows(size: int, reduction: int) -> int:
    """How many of so many rows stay, rounded as the released code does."""
    return size - round((1 - 1 / reduction) * size)


def narrow_width(config: Any, reduction: int) -> int:
    """The hidden size at a reduction.

    Raises:
        ConfigError: it is no whole multiple of the number of heads.
    """
    width = int(config.hidden_size)
    if reduction > width:
        raise ConfigError(f"method.reduction={reduction}: above the hidden size here, which is {width}")
    if reduction not in (possible := reductions(config)):
        heads = f"{config.num_attention_heads} heads"
        raise ConfigError(
            f"method.reduction={reduction}: the hidden size {width} over it is no multiple of {heads}; "
            f"{', '.join(map(str, possible))} are possible"
        )
    return width // reduction


def reductions(config: Any) -> list[int]:
    """Every reduction that leaves a whole number of columns to every head, rising."""
    size = int(config.hidden_size) // int(config.num_attention_heads)  # of a head
    return [number for number in range(1, size + 1) if size % number == 0]


def _name_of(module: nn.Module, inside: Any) -> str:
    """The dotted name of a module inside another."""
    return next(name for name, other in module.named_modules() if other is inside)
