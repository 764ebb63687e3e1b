"""Backbone and head: built from config alone or loaded from safetensors, with every parameter's place known."""

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from peftbench.backbone import low_rank
from peftbench.backbone.adopt import adopt
from peftbench.backbone.attention import ATTENTION, users
from peftbench.backbone.dropout import Noise
from peftbench.backbone.readout import Classifier, Readout
from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256, weights_folder
from peftbench.config.spec import Layout, ModelSpec, Scope
from peftbench.config.validate import show
from peftbench.ground.errors import ConfigError, DataError, first_line, near, shown
from peftbench.ground.quantity import quantity
from peftbench.ground.seeds import drawn_from
from peftbench.record import Attention

NORMS = ("LayerNorm", "RMSNorm")
CLASSIFIER = Classifier()


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: its layer (None outside the layers) and its standard kinds.

    Several kinds are one only where an architecture fuses them (ModernBERT's Wqkv).
    """

    layer: int | None
    kinds: frozenset[str]

    def within(self, scope: Scope) -> bool:
        """Whether the scope covers this place."""
        if scope.layers is not None and self.layer not in scope.layers:
            return False
        return scope.kinds is None or not self.kinds.isdisjoint(scope.kinds)


@dataclass
class Model:
    """An encoder with a head, split into backbone and head.

    Attributes:
        module: the transformers model, input ids (batch, tokens) to logits (batch, labels).
        layout: where the standard kinds lie in it.
        depth: number of encoder layers.
        weights_sha256: hash of the file that the backbone came from; None for random weights.
        noise: the random numbers of its dropout.
        readout: what its head is.
        drawn: what the weights lacked of the backbone, by parameter, as drawn from the seed (fp32, before training).
        ranks: of the linear maps that are low-rank, by name.
    """

    module: nn.Module
    layout: Layout
    depth: int
    name: str
    weights_sha256: str | None = None
    readout: Readout = CLASSIFIER
    drawn: dict[str, torch.Tensor] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, Place] = field(init=False)
    noise: Noise = field(init=False)

    def __post_init__(self) -> None:
        self.noise = Noise()
        self.readout.attach(self.module)
        for name, parameter in self.module.named_parameters():
            if self.is_head(name) and not self.readout.trains(name):
                parameter.requires_grad_(False)
        adopt(self.module, self.noise)
        self.places = {name: self.place(name) for name, _ in self.backbone()}

    def is_head(self, name: str) -> bool:
        """Whether a parameter (or module) of this dotted name belongs to the head."""
        return any(name == part or name.startswith(part + ".") for part in self.readout.modules(self.layout))

    def head(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters of the head, as far as they train."""
        named = self.module.named_parameters()
        return ((name, p) for name, p in named if self.is_head(name) and self.readout.trains(name))

    def backbone(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters of the backbone."""
        return ((name, p) for name, p in self.module.named_parameters() if not self.is_head(name))

    def embeddings(self) -> list[nn.Module]:
        """The modules of the embeddings, as far as this size of the architecture has them."""
        modules = dict(self.module.named_modules())
        return [modules[path] for path in self.layout.kinds["embeddings"] if path in modules]

    def place(self, name: str) -> Place:
        """The place of a backbone parameter or module by its dotted name.

        Raises:
            ConfigError: the model's yaml does not say which kind it is.
        """
        prefix = self.layout.layers + "."
        layer, inside = None, name
        if name.startswith(prefix):
            number, _, inside = name.removeprefix(prefix).partition(".")
            layer = int(number)
        kinds = {
            kind
            for kind, paths in self.layout.kinds.items()
            for path in paths
            if inside == path or inside.startswith(path + ".")
        }
        if not kinds:
            raise ConfigError(f"model={self.name}: layout.kinds names no kind for {name}")
        return Place(layer, frozenset(kinds))

    def within(self, scope: Scope) -> Iterator[tuple[str, nn.Parameter]]:
        """Named parameters of the backbone that a scope covers."""
        return ((name, p) for name, p in self.backbone() if self.place(name).within(scope))

    def linears(self, scope: Scope) -> list[tuple[str, nn.Linear]]:
        """Linear maps of the backbone that a scope covers, by dotted name, in forward order."""
        return [
            (name, module)
            for name, module in self.module.named_modules()
            if isinstance(module, nn.Linear) and not self.is_head(name) and self.place(name).within(scope)
        ]

    def projections(self, scope: Scope) -> list[tuple[str, nn.Linear]]:
        """Those of them whose output a sub-layer sees: of a low-rank map the second factor alone."""
        first = {f"{name}.down" for name in self.ranks}
        return [(name, linear) for name, linear in self.linears(scope) if name not in first]

    def attention(self, device: torch.device) -> Attention:
        """How many attention modules this bench's own function computes on a device: on a GPU, where torch's does, 0.

        Raises:
            ConfigError: see `load_model`, which counts them before anything is attached.
        """
        return self._attention if device.type == "cpu" else Attention(self._attention.modules, 0)

    @functools.cached_property
    @torch.no_grad()
    def _attention(self) -> Attention:
        """Found by two tokens that go through the model."""
        inside = tuple("." + path for path in self.layout.kinds["query"])
        queries = [name for name, _ in self.module.named_modules() if not self.is_head(name) and name.endswith(inside)]
        modules = {self.module.get_submodule(name.rpartition(".")[0]) for name in queries}
        training = self.module.training
        self.module.eval()
        tokens = torch.zeros(1, 2, dtype=torch.long)
        ours = modules & users(lambda: self.forward({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}))
        self.module.train(training)
        if self.layout.attention == "bench" and not modules:
            raise ConfigError(f"model.layout.kinds.query: {self.name} has no such module; its attention is not found")
        if self.layout.attention == "bench" and len(ours) < len(modules):
            share = f"{len(ours)} of {len(modules)} attention modules of {self.name} are this bench's own"
            raise ConfigError(f"model.layout.attention=bench: {share}; give eager or sdpa")
        return Attention(len(modules), len(ours))

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits (batch, labels) in fp32, or (batch, 1) for a regression."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return self.readout.logits(self.module, inputs).float()


def build(spec: ModelSpec, num_labels: int, device: str = "cpu", readout: Readout = CLASSIFIER) -> Model:
    """A model with random weights from the numbers in the yaml; on "meta" it costs no memory, and nothing is drawn.

    Raises:
        ConfigError: transformers makes no model of these numbers.
        DataError: the folder of its weights holds facts of low-rank maps that are not this model's.
    """
    ranks = low_rank.ranks_of(spec)
    drawn = no_init_weights() if device == "meta" else drawn_from(0, "backbone")
    try:
        if spec.model_type not in CONFIG_MAPPING_NAMES:
            raise ConfigError(
                f"model.model_type={shown(spec.model_type)}: {near(spec.model_type, CONFIG_MAPPING_NAMES)}"
            )
        _check_keys(spec)
        config = AutoConfig.for_model(spec.model_type, **spec.config, num_labels=num_labels)
        with torch.device(device), drawn:
            module = readout.architecture.from_config(config, attn_implementation=_attention(spec))
    except (MemoryError, ConfigError):
        raise
    except Exception as error:  # whatever the libraries raise: the numbers are a person's
        reason = f"{type(error).__name__}: {first_line(error)}"
        word = error.args[0] if isinstance(error, KeyError) and error.args else None
        wrong = [key for key, value in spec.config.items() if value == word or f"'{key}'" in str(error)]
        place = f".{wrong[0]}={shown(show(spec.config[wrong[0]]))}" if wrong else ""
        raise ConfigError(f"model.config{place}: no {spec.model_type} can be made of it ({reason})") from None
    if misfit := _misfit(module):
        raise ConfigError(f"model.config.{misfit}")
    if not any(name == spec.layout.layers for name, _ in module.named_modules()):
        raise ConfigError(f"model.layout.layers={shown(spec.layout.layers)}: {spec.model_type} has no such module")
    low_rank.put_in(module, ranks)
    return Model(module, spec.layout, spec.depth, spec.name, readout=readout, ranks=ranks)


def empty_copy(model: Model) -> Model:
    """The same architecture on the meta device, with nothing attached: it costs no memory."""
    config = model.module.config
    with torch.device("meta"), no_init_weights():
        module = model.readout.architecture.from_config(
            config, attn_implementation=getattr(config, "_attn_implementation", None)
        )
    low_rank.put_in(module, model.ranks)
    return Model(module, model.layout, model.depth, model.name, readout=model.readout, ranks=model.ranks)


def load_model(spec: ModelSpec, num_labels: int, seed: int, readout: Readout = CLASSIFIER) -> tuple[Model, Path | None]:
    """A model with the weights that the spec asks for; the head, and what they lack, is drawn from the seed's streams.

    Returns:
        The model, and the folder its weights came from (None for random weights).

    Raises:
        ConfigError: the layout says that all attention is this bench's own, and some is not.
        DataError: the weights cannot be had, are not safetensors, or are not the ones that the spec pins.
    """
    folder = weights_folder(spec)
    if folder is None:
        model = build(spec, num_labels, readout=readout)
    else:
        model = _from_folder(spec, folder, num_labels, readout)
    if not readout.pretrained:
        with drawn_from(seed, "head"):
            _draw(model, dict(model.head()))
    with drawn_from(seed, "fresh"):
        parameters = dict(model.backbone())
        lacking = {name: parameters[name] for name in sorted(model.drawn)}
        _draw(model, lacking)
    model.drawn = {name: parameter.detach().clone() for name, parameter in lacking.items()}
    model.attention(torch.device("cpu"))  # found and checked once, while the model is in fp32 and nothing is attached
    return model, folder


@torch.no_grad()
def _draw(model: Model, parameters: Mapping[str, nn.Parameter]) -> None:
    """Matrices from a normal distribution of the model's own width, biases zero, the scales of norms one."""
    std = float(getattr(model.module.config, "initializer_range", 0.02))
    for name, parameter in parameters.items():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)


def compute_precision(model: Model, precision: str, trained: Iterable[nn.Parameter]) -> None:
    """Keep frozen weights resident in bf16; whatever is trained, every norm and the buffers stay in fp32.

    autocast rounds matrices and biases anyway. Frozen embeddings it would not: by them, what layers pass on is bf16.
    """
    if precision == "fp32":
        return
    kept = {id(parameter) for parameter in trained}
    for module in model.module.modules():
        if any(norm in type(module).__name__ for norm in NORMS):
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in kept:
                parameter.data = parameter.data.to(torch.bfloat16)


def _misfit(module: Any) -> str | None:
    """What a model of these numbers would compute wrongly, or not at all, without a word; None: nothing."""
    config, words = module.config, module.get_input_embeddings()
    padding = getattr(words, "padding_idx", None)
    if padding is not None and config.pad_token_id != padding:
        return f"pad_token_id={config.pad_token_id}: {config.model_type} pads with {padding}, whatever it is told"
    for name, embedding in module.named_modules():
        if isinstance(embedding, nn.Embedding) and embedding.num_embeddings == 0:
            return f"type_vocab_size=0: {name} would have no row"
    return None


def _attention(spec: ModelSpec) -> str:
    return ATTENTION if spec.layout.attention == "bench" else spec.layout.attention


def _from_folder(spec: ModelSpec, folder: Path, num_labels: int, readout: Readout) -> Model:
    try:
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels, trust_remote_code=False)
    except Exception as error:  # whatever its validation raises: the file is a stranger's
        raise DataError(f"model={spec.name}: {folder}/config.json: {first_line(error)}") from None
    _take_over(spec, config, folder)
    ranks, architecture = low_rank.ranks_of(spec), readout.architecture
    if ranks:
        with torch.device("meta"), no_init_weights():
            architecture = low_rank.lowered(type(architecture.from_config(config)), ranks)
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        module, report = architecture.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation=_attention(spec),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # of the head; any other is refused below
        )
    finally:
        transformers_logging.set_verbosity(level)
    sha256 = file_sha256(folder / WEIGHTS_FILE)
    model = Model(module, spec.layout, spec.depth, spec.name, sha256, readout, ranks=ranks)
    for name, stored, expected in report["mismatched_keys"]:
        if readout.pretrained or not model.is_head(name):
            raise DataError(
                f"model={spec.name}: {folder / WEIGHTS_FILE}: {name} is {tuple(stored)}, config.json makes it "
                f"{tuple(expected)}"
            )
    head = {name for name in report["missing_keys"] if model.is_head(name)}
    backbone = [name for name in report["missing_keys"] if name not in head]
    absent = [name for name in backbone if "pooler" not in model.place(name).kinds]
    lacks = f"model={spec.name}: {folder / WEIGHTS_FILE} lacks"
    if absent:
        raise DataError(f"{lacks} {quantity(len(absent), 'tensor')} of the backbone, {absent[0]} among them")
    if readout.pretrained and head:
        name = min(head)
        raise ConfigError(
            f"{lacks} {quantity(len(head), 'tensor')} of the head that the readout reads, {name} among them; "
            "peftbench backbone make=mlm trains one for masked tokens"
        )
    model.drawn = {name: torch.empty(0) for name in backbone}
    return model


def _check_keys(spec: ModelSpec) -> None:
    """See that the architecture has every key of model.config: transformers takes any word, and may never look at it.

    Raises:
        ConfigError: it does not have one.
    """
    known = AutoConfig.for_model(spec.model_type)
    for key in (key for key in spec.config if not hasattr(known, key)):
        code = sys.modules[MODEL_MAPPING[type(known)].__module__]
        if key not in inspect.getsource(code):  # DeBERTa-v2 reads some that it does not declare
            others = near(key, known.to_dict())
            raise ConfigError(f"model.config.{shown(key)}: {spec.model_type} has no such key; {others}")


def _take_over(spec: ModelSpec, config: Any, folder: Path) -> None:
    """Set the dropout that the cell asks for. Everything else belongs to the weights and must be as it is there.

    Raises:
        ConfigError: the architecture has no such key.
        DataError: the folder's configuration is another one.
    """
    _check_keys(spec)
    ours = AutoConfig.for_model(spec.model_type, **spec.config)
    for key in spec.config:
        expected, actual = getattr(ours, key, spec.config[key]), getattr(config, key, None)
        if "dropout" in key:
            setattr(config, key, expected)
        elif actual != expected and (key == "pad_token_id" or not key.endswith("_token_id")):
            there = f"{folder}/config.json has {key}={shown(str(actual))}"
            raise DataError(f"model={spec.name}: {there}, conf/model/{spec.name}.yaml {shown(str(expected))}")
