"""peft's prompts: tokens of its own before those of a row, or keys and values of its own before those of every layer.

peft's wrapper runs the backbone then, so the head reads through it. As in peft the head of a backbone that reads the
first position reads the first of these tokens.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftbench.backbone.model import Model, Place
from peftbench.backbone.readout import Classifier, Readout
from peftbench.config.spec import Layout, Scope
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import ParameterTuner, require
from peftbench.methods.peft_tuners import ADAPTER, version, wrapped
from peftbench.methods.peft_types import KEYS_AND_VALUES, PeftType, make

HOME = "prompt_encoder"  # the module inside the embeddings that holds what trains


@dataclass(frozen=True)
class Through:
    """A head that sees what peft's wrapper makes of a row; otherwise the head that was there.

    Attributes:
        inner: that head.
        wrapper: peft's model, around the module.
    """

    inner: Readout
    wrapper: Any

    @property
    def architecture(self) -> Any:
        """See `Readout`."""
        return self.inner.architecture

    @property
    def pretrained(self) -> bool:
        """See `Readout`."""
        return self.inner.pretrained

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """See `Readout`."""
        return self.inner.modules(layout)

    def attach(self, module: nn.Module) -> None:
        """See `Readout`."""
        self.inner.attach(module)

    def trains(self, name: str) -> bool:
        """See `Readout`."""
        return self.inner.trains(name)

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`."""
        return self.inner.logits(self.wrapper, inputs)


class PromptTuner(ParameterTuner):
    """What makes the prompt: it is stored whole, so that training can go on; peft itself stores the prompt alone."""

    def __init__(self, wrapper: Any, trainables: Mapping[str, nn.Parameter]) -> None:
        super().__init__(trainables)
        self._wrapper = wrapper

    @property
    def config(self) -> Any:
        """peft's configuration of what is attached."""
        return self._wrapper.peft_config[ADAPTER]

    def exported(self) -> Mapping[str, torch.Tensor]:
        """The prompt, under peft's name."""
        return {"prompt_embeddings": self._wrapper.get_prompt_embedding_to_save(ADAPTER)}

    def exported_whole(self, name: str) -> str:
        """The name under which peft finds a parameter of the module that is stored whole."""
        return f"base_model.{name}"

    def merge(self) -> None:
        """Never possible.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"peft's {self.config.peft_type.value.lower()} cannot be merged into the backbone")

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Never possible: a prompt is no change of weights.

        Raises:
            ConfigError: always.
        """
        self.merge()
        yield from ()

    def facts(self) -> dict[str, Any]:
        """The version of peft."""
        return version()


def attach(model: Model, kind: str, config: Mapping[str, Any], facts: PeftType, inside: Scope) -> PromptTuner:
    """Put peft's wrapper between head and backbone.

    Raises:
        ConfigError: the scope leaves out where the prompt acts, or head or backbone cannot have one.
    """
    _check(model, kind, facts, inside)
    module: Any = model.module
    words = module.get_input_embeddings()
    of_layers = facts.on == KEYS_AND_VALUES
    sizes = {
        "token_dim": module.config.hidden_size if of_layers else words.embedding_dim,
        "num_layers": model.depth,
        "num_attention_heads": module.config.num_attention_heads,
        "num_transformer_submodules": 1,
    }
    wrapper = wrapped(module, make(kind, {**config, **sizes, "task_type": "SEQ_CLS"}))
    _take_out_copies(module)
    wrapper.word_embeddings = words  # peft looks for a tensor of the vocabulary's size
    home = _home(model)
    module.get_submodule(home).add_module(HOME, wrapper.prompt_encoder)
    model.readout = Through(model.readout, wrapper)
    return PromptTuner(wrapper, {f"{home}.{HOME}.{name}": p for name, p in wrapper.prompt_encoder.named_parameters()})


def _check(model: Model, kind: str, facts: PeftType, inside: Scope) -> None:
    if not isinstance(model.readout, Classifier):
        raise ConfigError(f"method.type={kind}: its tokens shift the row's, and this head reads at places of the row")
    if facts.on == KEYS_AND_VALUES:
        backbone: Any = model.module.base_model
        if "past_key_values" not in inspect.signature(backbone.forward).parameters:
            raise ConfigError(f"method.type={kind}: a {backbone.config.model_type} takes no {facts.on} from outside")
        places = [Place(layer, frozenset({one})) for layer in range(model.depth) for one in ("key", "value")]
        everywhere = all(place.within(inside) for place in places)
        require([kind] * everywhere, f"peft's {kind} acts on the {facts.on} of every layer, not", inside)
    else:
        require([kind] * model.place(_home(model)).within(inside), f"no {facts.on} for peft's {kind}", inside)


def _home(model: Model) -> str:
    """The dotted name of the embeddings."""
    modules = dict(model.module.named_modules())
    return next(path for path in model.layout.kinds["embeddings"] if path in modules)


def _take_out_copies(module: nn.Module) -> None:
    """Put the head back in the place of peft's copy of it: it trains in any case."""
    from peft.utils import ModulesToSaveWrapper

    for name, child in list(module.named_modules()):
        if isinstance(child, ModulesToSaveWrapper):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, child.original_module)
