"""The numbers that a backbone is built from, which transformers takes as they come: bounded, and fitting together."""

from collections.abc import Mapping
from typing import Any

from peftbench.config.validate import show
from peftbench.ground.errors import shown

NEEDED = ("vocab_size", "max_position_embeddings", "pad_token_id")  # and the layout's depth

# Key -> the least and the most that it may be.
WIDTH, LAYERS, PLACES = (1, 1 << 16), (1, 1000), (1, 1 << 20)
SIZES = {"vocab_size": (1, 1 << 22), "max_position_embeddings": PLACES, "type_vocab_size": (0, 1 << 16)}
SIZES |= dict.fromkeys(("hidden_size", "intermediate_size", "embedding_size", "pooler_hidden_size"), WIDTH)
SIZES |= {"num_hidden_layers": LAYERS, "num_attention_heads": WIDTH}
SIZES |= {"dim": WIDTH, "n_layers": LAYERS, "n_heads": WIDTH, "hidden_dim": WIDTH}  # DistilBERT's names
EPSILONS = ("layer_norm_eps", "norm_eps")
DIVIDED = (("hidden_size", "num_attention_heads"), ("dim", "n_heads"))


def problems_of(model: Mapping[str, Any]) -> list[str]:
    """A line for every number of `model.config` that is missing, out of bounds or does not fit."""
    config, layout = model.get("config"), model.get("layout")
    if not isinstance(config, Mapping) or not isinstance(layout, Mapping):
        return []
    return _out_of_bounds(config, str(layout.get("depth", "num_hidden_layers"))) or _misfits(config)


def _out_of_bounds(config: Mapping[str, Any], depth: str) -> list[str]:
    problems = [f"model.config.{key}: must be given" for key in NEEDED if key not in config]
    if depth not in config:
        problems.append(f"model.layout.depth={shown(depth)}: model.config has no such key, and it must be given")
    for key, (least, most) in {**SIZES, depth: LAYERS}.items():
        if key in config and not (type(config[key]) is int and least <= config[key] <= most):
            line = f"model.config.{key}={shown(show(config[key]))}: must be a whole number, at least {least}"
            problems.append(f"{line} and at most {most}")
    problems += [
        f"model.config.{key}={shown(show(config[key]))}: must be a number between 0 and 1"
        for key in EPSILONS
        if key in config and not (type(config[key]) in (int, float) and 0 < config[key] < 1)
    ]
    return problems


def _misfits(config: Mapping[str, Any]) -> list[str]:
    problems = [
        f"model.config.{hidden}={config[hidden]}: not divisible by {heads}={config[heads]}"
        for hidden, heads in DIVIDED
        if hidden in config and heads in config and config[hidden] % config[heads]
    ]
    pad = config["pad_token_id"]
    if not (type(pad) is int and 0 <= pad < config["vocab_size"]):
        problems.append(
            f"model.config.pad_token_id={shown(show(pad))}: not among the {config['vocab_size']} of vocab_size"
        )
    return problems
