"""Recipes among a command's words: how a backbone is made from another (`make=WORD make.KEY=VALUE`), and their kin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal, TypeVar

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import Field

from peftbench.config.bounds import Count, InnerShare, NotNegative, PathText, Positive, Share
from peftbench.config.validate import parse
from peftbench.config.words import COMPOSE_ERRORS, conf_dir, words
from peftbench.ground.errors import ConfigError, near, shown

GROUP = "make"
Keys = TypeVar("Keys")


@dataclass(frozen=True)
class LowRank:
    """Low-rank linear maps. Units and sources stand in conf/make/lowrank.yaml."""

    ratio: Annotated[float, Field(gt=0, le=1)]
    variant: Literal["svd", "svd_distil"]
    text: PathText | None
    steps: Count
    lr: Positive
    last_lr: NotNegative
    weight_decay: NotNegative
    distil_weight: Positive
    residual_weight: NotNegative
    residual_margin: NotNegative


@dataclass(frozen=True)
class MaskedLM:
    """Masked-LM training that goes on. Units and sources stand in conf/make/mlm.yaml."""

    text: PathText | None
    steps: Count
    lr: Positive
    warmup: Share
    weight_decay: NotNegative
    masked: InnerShare
    head_only: bool


@dataclass(frozen=True)
class Merged:
    """A finished run folded into its backbone. Units and sources stand in conf/make/merged.yaml."""

    run: PathText | None
    scale: Positive


Recipe = LowRank | MaskedLM | Merged
RECIPES: dict[str, type[Recipe]] = {
    "lowrank": LowRank,
    "mlm": MaskedLM,
    "merged": Merged,
}  # word of conf/make -> what its keys make


def split_words(overrides: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe that a command's words describe, and the words that are left: those of a cell.

    Raises:
        ConfigError: no recipe is named, or one of its keys or values is not possible.
    """
    return recipe(GROUP, overrides, RECIPES.__getitem__)


def recipe(group: str, overrides: Sequence[str], kind: Callable[[str], type[Keys]]) -> tuple[Keys, list[str]]:
    """What the words of a group describe, GROUP=WORD GROUP.KEY=VALUE, and the words that are left.

    Args:
        group: a folder of conf that no cell is made of.
        kind: the dataclass of a word of it.

    Raises:
        ConfigError: no word of it is named, or one of its keys or values is not possible.
    """
    own = [item for item in overrides if item.partition("=")[0].partition(".")[0] == group]
    chosen = [item.partition("=")[2] for item in own if item.startswith(f"{group}=")]
    if len(chosen) != 1 or chosen[0] not in words(group):
        raise ConfigError(f"{group}={shown(','.join(chosen))}: {near(','.join(chosen), words(group))}")
    keys = _defaults(group, chosen[0])
    keys |= dict(_value(group, item) for item in own if not item.startswith(f"{group}="))
    return parse(kind(chosen[0]), keys, group), [item for item in overrides if item not in own]


def _defaults(group: str, word: str) -> dict[str, Any]:
    """The keys of a word's yaml, and of those that it is based on."""
    keys: dict[str, Any] = yaml.safe_load((conf_dir() / group / f"{word}.yaml").read_text(encoding="utf-8"))
    below: dict[str, Any] = {}
    for base in keys.pop("defaults", []):
        if base != "_self_":
            below |= _defaults(group, base)
    return below | keys


def swept(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that words name, as Hydra sweeps: `seed=0,1 merge=ties` is two lists of words.

    Raises:
        ConfigError: a word is not of the form key=value, or one of Hydra's own.
    """
    choices = []
    for override in overrides:
        if override.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise ConfigError(f"{shown(override)}: is of run; here commas sweep, and --save leaves work to workers")
        try:
            parsed = OverridesParser.create().parse_override(override)
            key = parsed.get_key_element()
            values = (
                [*parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [parsed.get_value_element_as_str()]
            )
        except COMPOSE_ERRORS:
            raise ConfigError(f"{shown(override)}: not of the form key=value, a text with signs quoted") from None
        choices.append([f"{key}={value}" for value in values])
    return [list(words) for words in product(*choices)]


def _value(group: str, override: str) -> tuple[str, Any]:
    """Key and value, read as Hydra reads those of a cell."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        key, value = parsed.key_or_group.removeprefix(f"{group}."), parsed.value()
    except COMPOSE_ERRORS:
        parsed = None
    if parsed is None or parsed.is_sweep_override() or parsed.is_delete():
        raise ConfigError(f"{shown(override)}: not of the form {group}.key=value, a text with signs quoted")
    return key, value
