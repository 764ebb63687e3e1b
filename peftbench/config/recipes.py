"""How a backbone is made from another: `make=WORD make.KEY=VALUE` among a command's words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field
from yaml import YAMLError

from peftbench.config.bounds import Count, NotNegative, PathText, Positive
from peftbench.config.validate import parse
from peftbench.config.words import conf_dir, words
from peftbench.ground.errors import ConfigError, near, shown

GROUP = "make"
VALUE = re.compile(rf"{GROUP}\.([^=]*)=(.*)", re.DOTALL)


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


def split_words(overrides: Sequence[str]) -> tuple[LowRank, list[str]]:
    """The recipe that a command's words describe, and the words that are left: those of a cell.

    Raises:
        ConfigError: no recipe is named, or one of its keys or values is not possible.
    """
    own = [item for item in overrides if item.partition("=")[0].partition(".")[0] == GROUP]
    chosen = [item.partition("=")[2] for item in own if item.startswith(f"{GROUP}=")]
    if len(chosen) != 1 or chosen[0] not in words(GROUP):
        raise ConfigError(f"{GROUP}={shown(','.join(chosen))}: {near(','.join(chosen), words(GROUP))}")
    keys = yaml.safe_load((conf_dir() / GROUP / f"{chosen[0]}.yaml").read_text(encoding="utf-8"))
    keys |= dict(_value(item) for item in own if not item.startswith(f"{GROUP}="))
    problems: list[str] = []
    recipe = parse(LowRank, keys, GROUP, problems)
    if recipe is None or problems:
        raise ConfigError(problems)
    return recipe, [item for item in overrides if item not in own]


def _value(override: str) -> tuple[str, Any]:
    match = VALUE.fullmatch(override)
    if match is None:
        raise ConfigError(f"{shown(override)}: not of the form {GROUP}.key=value")
    try:
        value = yaml.safe_load(match[2])
    except (YAMLError, RecursionError, ValueError):
        raise ConfigError(f"{shown(override)}: no valid yaml") from None
    number = isinstance(value, str) and re.fullmatch(
        r"\d+(\.\d*)?e[-+]?\d{1,3}", value, re.ASCII
    )  # 1e-4 is a text to yaml
    return match[1], float(value) if number else value
