"""What is known of each of peft's types, and a configuration checked before anything is loaded."""

import dataclasses
import enum
import functools
import json
import math
import typing
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from peftbench.config.bounds import LARGEST, MOST
from peftbench.config.validate import show
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, first_line, near, shown
from peftbench.ground.files import expanded

CONFIG_FILE = "adapter_config.json"
LARGEST_CONFIG = 1 << 20  # bytes
ABSENT = "peft is not installed, and this method is one of its own: pip install 'peftbench[peft]'"


EMBEDDINGS, KEYS_AND_VALUES = "embeddings", "keys and values"  # where a prompt goes


@dataclass(frozen=True)
class PeftType:
    """A type of peft that is put inside the backbone.

    Attributes:
        dial: the key of its configuration that a budget turns; more of it trains more entries.
        divides: the dial is the side of a block, or the rank of a base, and divides the sides of every map.
        falls: more of the dial, or of the share, trains fewer entries.
        share: in the place of a dial, the key of a share of entries; and of which: "weight", or "square" of its inputs.
        seed: the key from which it draws whatever ignores torch's generator.
        on: what it is attached to: linear maps, their biases, norms; of prompts the embeddings, or keys and values.
        merges: whether peft can fold it into the weights.
        by_shape: whether it is counted on one map of every shape: it looks at the weights when it is attached, or draws
            so much for every map that all of them together take seconds.
        needs: keys of its configuration that peft has no default for.
    """

    dial: str | None = None
    divides: bool = False
    falls: bool = False
    share: tuple[str, str] | None = None
    seed: str | None = None
    on: str = "linear map"
    merges: bool = True
    by_shape: bool = False
    needs: tuple[str, ...] = ()

    @property
    def is_prompt(self) -> bool:
        """Whether it puts something before the row, and nothing into the backbone."""
        return self.on in (EMBEDDINGS, KEYS_AND_VALUES)


TOKENS = "num_virtual_tokens"
ROUNDING = 1e-12  # less than one entry of any map, and more than a share loses as a float
TYPES = {
    "adalora": PeftType(),
    "adamss": PeftType(seed="random_seed", by_shape=True),
    "beft": PeftType(on="linear map with a bias"),
    "boft": PeftType(dial="boft_block_size", divides=True, by_shape=True),
    "c3a": PeftType(dial="block_size", divides=True, falls=True),
    "deft": PeftType(dial="r"),
    "delora": PeftType(dial="r"),
    "fourierft": PeftType(dial="n_frequency", seed="random_loc_seed", by_shape=True),
    "frod": PeftType(share=("sparse_rate", "square"), seed="projection_prng_key", by_shape=True),
    "glora": PeftType(dial="r"),
    "gralora": PeftType(dial="r"),
    "hira": PeftType(dial="r"),
    "hra": PeftType(dial="r"),
    "ia3": PeftType(),
    "lily": PeftType(dial="r", merges=False),
    "ln_tuning": PeftType(on="norm"),
    "loha": PeftType(dial="r"),
    "lokr": PeftType(dial="r"),
    "lora": PeftType(dial="r"),
    "miss": PeftType(dial="r"),
    "oft": PeftType(dial="oft_block_size", divides=True),
    "osf": PeftType(),
    "peanut": PeftType(dial="r"),
    "p_tuning": PeftType(dial=TOKENS, on=EMBEDDINGS, merges=False, needs=(TOKENS,)),
    "prefix_tuning": PeftType(dial=TOKENS, on=KEYS_AND_VALUES, merges=False, needs=(TOKENS,)),
    "prompt_tuning": PeftType(dial=TOKENS, on=EMBEDDINGS, merges=False, needs=(TOKENS,)),
    "psoft": PeftType(dial="r", seed="random_seed"),
    "pvera": PeftType(dial="r", seed="projection_prng_key"),
    "randlora": PeftType(dial="r", divides=True, falls=True, seed="projection_prng_key"),
    "road": PeftType(),
    "shira": PeftType(dial="r", seed="random_seed", by_shape=True),
    "supertuning": PeftType(share=("sparsity", "weight"), falls=True),
    "tinylora": PeftType(dial="u", seed="projection_seed"),
    "unilora": PeftType(dial="theta_d_length", seed="proj_seed"),
    "vblora": PeftType(dial="num_vectors"),
    "vera": PeftType(dial="r", seed="projection_prng_key"),
    "waveft": PeftType(dial="n_frequency", seed="random_loc_seed", by_shape=True),
}
REFUSED = {
    "adaption_prompt": "is made for decoders",
    "cartridge": "is a decoder's cache of a long text; prefix_tuning does the same from a different start",
    "cpt": "is made for decoders: the text of its prompt ends in answers",
    "multitask_prompt_tuning": "needs a task number with every row; with one task it is the same as prompt_tuning",
    "poly": "needs a task number with every row",
    "shadow": "adds a second network outside the backbone",
    "trainable_tokens": "trains the embeddings of tokens that were added to a vocabulary",
    "xlora": "mixes adapters that were trained earlier",
}
# Keys that scope, kinds and head answer here, or that only describe a file.
WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")
WHOLE = ("modules_to_save", "trainable_token_indices", "layer_replication", "ensure_weight_tying")
OF_A_FILE = ("task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping")
SIZES = ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules")
OURS = frozenset((*WHERE, *WHOLE, *OF_A_FILE, *SIZES, "peft_version", "total_step"))
POSITIVE = (
    "boft_n_butterfly_factor",
    "deltaT",
    "init_r",
    "target_r",
    "topk",
    "encoder_hidden_size",
    "encoder_num_layers",
    "subspace_rank",
)  # beside the dial
# Values of a key that would do something else than they say here.
IMPOSSIBLE = {
    ("bias", "all"): "every bias would train, outside the scope too; take method.strata with bitfit, or a ..._only",
    ("use_asa", True): "its schedule is not bridged",
    ("init_lora_weights", "corda"): "it wants passes over the data first, which are not bridged",
    ("init_lora_weights", "lora_ga"): "it wants passes over the data first, which are not bridged",
    ("prompt_tuning_init", "TEXT"): "it asks for a tokenizer by name; take SAMPLE_VOCAB or RANDOM",
    ("init_lora_weights", "loftq"): "it wants quantised weights, which this bench does not have",
}


def check(kind: str, config: Mapping[str, Any]) -> None:
    """See that peft is there, has this type, and that the keys and values of its configuration are possible.

    Raises:
        ConfigError: one line for each thing that is wrong.
    """
    if kind in REFUSED:
        raise ConfigError(f"method.type={kind}: {REFUSED[kind]}")
    if kind not in TYPES:
        raise ConfigError(f"method.type={shown(kind)}: not a type of peft that is bridged; {near(kind, TYPES)}")
    hints = keys(kind)
    absent = [key for key in TYPES[kind].needs if config.get(key) is None]
    problems = [f"method.config.{key}: must be given; peft has no default for {kind}" for key in absent]
    for key, value in config.items():
        if key in OURS:
            instead = "method.kinds and scope say where it acts, the protocol how long, and the head trains in any case"
            problems.append(f"method.config.{key}: not to be given here; {instead}")
        elif (kind, key) == ("adalora", "r"):
            problems.append("method.config.r: peft's adalora takes no notice of it; init_r and target_r are meant")
        elif key not in hints:
            problems.append(f"method.config.{shown(key)}: peft's {kind} has no such key; {near(key, hints)}")
        elif reason := next((why for (name, wrong), why in IMPOSSIBLE.items() if (name, wrong) == (key, value)), None):
            problems.append(f"method.config.{key}={show(value)}: {reason}")
        elif key in absent:
            continue
        elif (reason := _wrong(hints[key], value)) is not None:
            problems.append(f"method.config.{key}={shown(show(value))}: {reason}")
        elif (inner := _unknown(hints[key], value)) is not None:
            problems.append(f"method.config.{key}.{inner}")
        elif _counts(kind, key) and value is not None and value < 1 and not _by_blocks(kind, key, config):
            problems.append(f"method.config.{key}={value}: must be at least 1")
        elif (reason := _outside(value, least=-1 if _defaults(kind)[key] == -1 else 0)) is not None:
            problems.append(f"method.config.{key}={shown(show(value))}: {reason}")
    problems += _together(kind, {**_defaults(kind), **config}) if not problems else []
    if problems:
        raise ConfigError(problems)


def _together(kind: str, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that are possible one by one, and that peft would not notice, or not say."""
    problems = []
    if kind == "adalora":
        if config["target_r"] > config["init_r"]:
            problems.append(f"method.config.target_r={config['target_r']}: above init_r, which is {config['init_r']}")
        outside = [key for key in ("beta1", "beta2") if not 0 < config[key] < 1]
        problems += [f"method.config.{key}={config[key]:g}: must be between 0 and 1" for key in outside]
    dial = TYPES[kind].dial
    if dial is not None and config[dial] not in sizes(kind, config) and not _by_blocks(kind, dial, config):
        problems.append(f"method.config.{dial}={config[dial]}: must be {_WHY[kind]}")
    if kind == "osf" and isinstance(rank := config["effective_rank"], float) and rank > 1:
        problems.append(f"method.config.effective_rank={rank:g}: must be a whole number, or a share of at most 1")
    if config.get("init_lora_weights") == "eva":
        problems += _eva(kind, config)
    if kind == "p_tuning" and config["encoder_reparameterization_type"] == "MLP" and config["encoder_num_layers"] != 2:
        problems.append(f"method.config.encoder_num_layers={config['encoder_num_layers']}: of an LSTM; an MLP has two")
    return problems


def _counts(kind: str, key: str) -> bool:
    return key == TYPES[kind].dial or key in POSITIVE


def _by_blocks(kind: str, key: str, config: Mapping[str, Any]) -> bool:
    """Whether a key is the side of blocks and zero, since the number of blocks is given."""
    number = {("oft", "oft_block_size"): "r", ("boft", "boft_block_size"): "boft_block_num"}.get((kind, key))
    return number is not None and config[key] == 0 and bool(config.get(number))


_WHY = {
    "hra": "even, or it cannot start as it should",
    "lora": "even, or it cannot start as it should",
    "vblora": "at least topk: it mixes so many different vectors",
    "gralora": "a multiple of gralora_k",
    "oft": "at least 2",
    "boft": "at least 2",
}


def fitting(kind: str, config: Mapping[str, Any], sides: Iterable[int]) -> Sequence[int]:
    """The values that a type's dial may have on maps with these sides, such that more and more entries train."""
    possible: Sequence[int] = sizes(kind, config)
    if TYPES[kind].divides:
        common = math.gcd(*sides)
        possible = [size for size in range(1, common + 1) if common % size == 0 and size in possible]
    return possible[::-1] if TYPES[kind].falls else possible


def parts(kind: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """Into how many parts the share of a type can be cut so that a part is a whole number of entries of every map.

    Args:
        shapes: of the maps, (out, in).
    """
    facts = TYPES[kind].share
    assert facts is not None
    return math.gcd(*(into * (into if facts[1] == "square" else out) for out, into in shapes))


def of_parts(kind: str, number: int, every: int) -> dict[str, float]:
    """The key of a type's share, at so many parts of all; peft rounds what it makes of it down."""
    facts = TYPES[kind].share
    assert facts is not None
    share = min(1.0, number / every + ROUNDING)
    return {facts[0]: 1 - share if TYPES[kind].falls else share}


def sizes(kind: str, config: Mapping[str, Any]) -> range:
    """The values that a type's dial may have, rising."""
    config = {**_defaults(kind), **config}
    in_pairs = config["init_weights"] if kind == "hra" else config.get("init_lora_weights") == "orthogonal"
    if in_pairs:  # of HRA, two equal reflections undo each other: it starts at the backbone
        return range(2, MOST + 1, 2)
    if kind == "gralora":
        return range(config["gralora_k"], MOST + 1, config["gralora_k"])
    if kind in ("oft", "boft"):  # a block of one number cannot be turned
        return range(2, MOST + 1)
    return range(config["topk"] if kind == "vblora" else 1, MOST + 1)


def _eva(kind: str, config: Mapping[str, Any]) -> list[str]:
    """What stands against EVA's start: the sizes of the factors must be known before anything is read."""
    rho = (config.get("eva_config") or {}).get("rho", 2.0)  # peft's default
    if kind != "lora":
        return [f"method.config.init_lora_weights=eva: is a start of LoRA, not of {kind}"]
    if rho != 1:
        return [f"method.config.eva_config.rho={rho:g}: must be 1; ranks that move between maps are not bridged"]
    return ["method.config.rank_pattern: every map has the same rank under EVA here"] if config["rank_pattern"] else []


@functools.cache
def keys(kind: str) -> dict[str, Any]:
    """The keys of a type's configuration that may be given here, with the types of their values.

    Raises:
        ConfigError: peft is not installed.
    """
    config = config_class(kind)
    hints = typing.get_type_hints(config)
    return {item.name: hints[item.name] for item in dataclasses.fields(config) if item.name not in OURS}


def config_class(kind: str) -> Any:
    """peft's class for the configuration of a type.

    Raises:
        ConfigError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError(ABSENT)
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    return {name.value.lower(): config for name, config in CONFIGS.items()}[kind]


def make(kind: str, config: Mapping[str, Any]) -> Any:
    """peft's configuration.

    Raises:
        ConfigError: peft refuses it.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return config_class(kind)(**config)
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise ConfigError(f"method.config: peft's {kind} refuses it: {first_line(error)}") from None


def read(folder: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """An adapter_config.json: its type, the keys that say what it is, and those that say where it acts.

    Raises:
        ConfigError: it is not there, or not such a file.
    """
    path = expanded(folder) / CONFIG_FILE
    given_as = f"method.adapter_config={shown(folder, 100)}"
    try:
        raw = untrusted.read_json(path, LARGEST_CONFIG)
    except OSError as error:
        raise ConfigError(f"{given_as}: no readable {CONFIG_FILE} there ({type(error).__name__})") from None
    except ValueError as error:
        raise ConfigError(f"{given_as}: {CONFIG_FILE} is {first_line(error)}") from None
    kind = raw.get("peft_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str):
        raise ConfigError(f"{given_as}: {CONFIG_FILE} there names no peft_type")
    given = {key: value for key, value in raw.items() if value is not None}
    usual = _defaults(kind.lower()) if kind.lower() in TYPES else {}
    config = {
        key: value for key, value in given.items() if key not in OURS and (key not in usual or usual[key] != value)
    }
    return kind.lower(), config, {key: value for key, value in given.items() if key in OURS}


def _defaults(kind: str) -> dict[str, Any]:
    """Every key's default, as JSON has it."""
    defaults = {}
    for item in dataclasses.fields(config_class(kind)):
        value = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        defaults[item.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return defaults


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return None  # a class of peft's own: peft checks it


def _outside(value: Any, least: int) -> str | None:
    """Why a number, or one of those within, is none that a configuration may hold, if so; peft has hardly a bound."""
    if isinstance(value, (list, tuple, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return next((reason for item in inner if (reason := _outside(item, least)) is not None), None)
    if type(value) is int and not least <= value <= MOST:
        return f"must be at least {least} and at most {MOST}"
    if type(value) is float and not abs(value) <= LARGEST:
        return f"must be between -{LARGEST:g} and {LARGEST:g}"
    return None


def _wrong(hint: Any, value: Any) -> str | None:
    """Why a value is none of the type that peft says, if so."""
    if words := _words(hint):  # peft takes any text beside them, and does something else then
        return None if value in words else near(str(value), words)
    adapter = _adapter(hint)
    try:
        if adapter is not None:
            adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reasons = [str(item["msg"]).removeprefix("Input ").removeprefix("should").strip() for item in error.errors()]
        return "must " + " or ".join(dict.fromkeys(reasons))
    return None


def _unknown(hint: Any, value: Any) -> str | None:
    """A key of a mapping that peft's own dataclass for it lacks, and why it is wrong; peft would pass over it."""
    parts = [one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)]
    if not parts or not isinstance(value, dict):
        return None
    known = [item.name for part in parts for item in dataclasses.fields(part)]
    return next((f"{shown(key)}: there is no such key; {near(key, known)}" for key in value if key not in known), None)


def _words(hint: Any) -> list[str]:
    """The values of the enumerations that a hint names."""
    enums = [one for one in typing.get_args(hint) if isinstance(one, type) and issubclass(one, enum.Enum)]
    return [str(item.value) for one in enums for item in one]
