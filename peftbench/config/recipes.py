"""How a backbone is made from another: `make=WORD make.KEY=VALUE` among a command's words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from pydantic import Field

from peftbench.config.bounds import Count, InnerShare, NotNegative, PathText, Positive, Share
from peftbench.config.validate import parse
from peftbench.config.words import COMPOSE_ERRORS, conf_dir, words
from peftbench.ground.errors import ConfigError, near, shown

GROUP = "make"


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


Recipe = LowRank | MaskedLM
RECIPES: dict[str, type[Recipe]] = {"lowrank": LowRank, "mlm": MaskedLM}  # word of conf/make -> what its keys make


def split_words(overrides: Sequence[str]) -> tuple[Recipe, list[str]]:
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
    recipe = parse(RECIPES[chosen[0]], keys, GROUP, problems)
    if recipe is None or problems:
        raise ConfigError(problems)
    return recipe, [item for item in overrides if item not in own]


def _value(override: str) -> tuple[str, Any]:
    """Key and value, read as Hydra reads those of a cell."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        key, value = parsed.key_or_group.removeprefix(f"{GROUP}."), parsed.value()
    except COMPOSE_ERRORS:
        parsed = None
    if parsed is None or parsed.is_sweep_override() or parsed.is_delete():
        raise ConfigError(f"{shown(override)}: not of the form {GROUP}.key=value, a text with signs quoted")
    return key, value
