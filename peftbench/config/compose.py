"""Hydra's words in, a validated `Cell` out, with every problem of all of them reported at once."""

import bisect
import functools
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from peftbench.config import build as building
from peftbench.config import userfiles
from peftbench.config.build import Plain as Plain
from peftbench.config.build import build as build
from peftbench.config.build import build_plain as build_plain
from peftbench.config.build import resolved as resolved
from peftbench.config.spec import Cell
from peftbench.config.userfiles import SEARCHPATH as SEARCHPATH
from peftbench.config.words import COMPOSE_ERRORS, GROUPS, composed, one_line, surroundings, without_hydra, yaml_problem
from peftbench.config.words import conf_dir as conf_dir
from peftbench.config.words import words as words
from peftbench.ground.errors import ConfigError, near, shown

LONGEST_OVERRIDE = 10_000  # characters
SEED = re.compile(r"seed=(0|[1-9]\d{0,17})", re.ASCII)
NO_SEED = re.compile(r"(?!hydra|seed)\w[^$]*", re.ASCII)  # what means the same whatever the seed, or Hydra's own part
MOST_KEPT = 256  # cells, their seeds apart, of about 20 KiB each


class WrongWords(ConfigError):
    """Overrides that cannot be applied: a word or key that is not there, or something that cannot be read.

    Attributes:
        overrides: those, as far as they could be told apart from the others.
    """

    def __init__(self, problems: Sequence[str], overrides: Iterable[str] = ()) -> None:
        super().__init__(problems)
        self.overrides = frozenset(overrides)


def load(overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration, Hydra's own part included.

    Raises:
        WrongWords: an override cannot be applied; all such overrides are listed.
    """
    overrides = [longhand(override) for override in overrides]
    userfiles.check(overrides)
    refused = any(_refused(override) for override in overrides)
    try:
        if not refused:
            return composed(overrides)
        reason = ""
    except COMPOSE_ERRORS as error:
        reason = one_line(error)
    wrong = _override_problems(overrides)
    raise WrongWords(list(wrong.values()) or [reason], wrong)


def plain(overrides: Sequence[str], outputs: Path | None = None) -> Plain:
    """What a cell is built from, as plain data; those that differ by their seed alone are composed once.

    Args:
        outputs: the folder of studies, where it is not the one that the overrides name.

    Raises:
        ConfigError: as `load` and `build.plain`.
    """
    here = {} if outputs is None else {"outputs": str(outputs)}
    seeds = [seed for override in overrides if (seed := SEED.fullmatch(override))]
    others = tuple(override for override in overrides if not SEED.fullmatch(override))
    if not seeds or any(not NO_SEED.fullmatch(override) for override in others):
        config = load(overrides)
        config.update(here)
        return building.plain(config)
    return _plain(others, surroundings()).having(seed=int(seeds[-1][1]), **here)


@functools.lru_cache(MOST_KEPT)
def _plain(overrides: tuple[str, ...], _: Hashable) -> Plain:
    return building.plain(load(overrides))


def longhand(override: str) -> str:
    """An override as Hydra needs it.

    `budget=20000` (or a sweep, `budget=5000,20000`) is budget.entries=20000; keys of method.config are another
    library's, and in no yaml.
    """
    if match := re.fullmatch(r"budget=(\d+(?:,\d+)*)", override):
        return f"budget.entries={match[1]}"
    return f"++{override}" if override.startswith("method.config.") else override


def cell_from(overrides: Sequence[str], to_come: Collection[Path] = ()) -> Cell:
    """The cell that these overrides describe.

    Args:
        to_come: see `build.build_plain`.

    Raises:
        ConfigError: every problem of all of them.
    """
    try:
        data = plain(overrides)
    except WrongWords as error:
        good = [override for override in map(longhand, overrides) if override not in error.overrides]
        if not error.overrides:
            raise
        # Values are looked at too, so that one mistyped key does not hide a bad number.
        raise WrongWords([*error.every, *_value_problems(good)], error.overrides) from None
    return build_plain(data, to_come)


def _override_problems(overrides: Sequence[str]) -> dict[str, str]:
    """What is wrong with each override that cannot be applied: group choices first, then keys on top of them."""
    problems = {override: refused for override in overrides if (refused := _refused(override))}
    applied = [item for item in overrides if item.startswith(SEARCHPATH)]
    others = [item for item in overrides if not item.startswith(SEARCHPATH) and item not in problems]
    left = sorted(others, key=lambda item: item.partition("=")[0] not in GROUPS)
    while left and _error_of([*applied, *left]):
        first = bisect.bisect_left(range(1, len(left)), True, key=lambda n: bool(_error_of([*applied, *left[:n]])))
        applied += left[:first]
        error = _error_of([*applied, left[first]])
        assert error
        problems[left[first]] = _explain(left[first], error, applied)
        left = left[first + 1 :]
    return {override: problems[override] for override in dict.fromkeys(overrides) if override in problems}


def _error_of(overrides: Sequence[str]) -> Exception | None:
    try:
        composed(overrides)
    except COMPOSE_ERRORS as error:
        return error
    return None


def _refused(override: str) -> str | None:
    """What is wrong with an override that Hydra would take, or choke on."""
    if len(override) > LONGEST_OVERRIDE:
        return f"{shown(override)}: longer than {LONGEST_OVERRIDE:,} characters"
    key, _, value = override.lstrip("+~").partition("=")
    if key.partition("@")[0] in GROUPS and re.search(r"[/\\]|\.\.", value):
        return f"{key}={shown(value)}: must be a word, not a path; peftbench list {key.partition('@')[0]}"
    return None


def _explain(override: str, error: Exception, applied: Sequence[str]) -> str:
    key, equals, value = override.partition("=")
    key = key.lstrip("+~")
    if not equals or not key:
        return f"{shown(override)}: not of the form key=value"
    text = str(error)
    if isinstance(error, YAMLError):
        return f"{shown(override)}: no valid yaml: {yaml_problem(error)}"
    if isinstance(error, RecursionError):
        return f"{shown(override)}: its defaults lead back to itself"
    if f"Could not find '{key}/{value}'" in text and (conf_dir() / key).is_dir():
        return f"{key}={shown(value)}: there is no {key} called '{shown(value)}'; {near(value, words(key))}"
    if key.startswith("hydra/") and f"Could not find '{key}/{value}'" in text:
        return f"{key}={shown(value)}: there is none of that name"
    if "Ambiguous value" in text:
        return f"{shown(override)}: several values; a sweep needs -m (peftbench run -m ...)"
    if "Could not override" in text or "not in struct" in text or "Could not find" in text:
        return f"{shown(key)}: there is no such key; {near(key, _keys(applied, key))}"
    if isinstance(error, OverrideParseException) and re.search(r"[=#(){}\[\],'\"\s]", value):
        return f"{shown(key)}={shown(value)}: cannot be read; a text with such signs is quoted: '{shown(key)}=\"...\"'"
    return f"{shown(key)}={shown(value)}: {one_line(error)}"


def _keys(applied: Sequence[str], like: str) -> list[str]:
    """Every key that an override such as `like` may name, once the overrides in `applied` are."""
    config = composed(applied)
    if like.startswith("hydra."):
        return _walk(OmegaConf.to_container(config.hydra), "hydra")
    known = OmegaConf.to_container(without_hydra(config))
    assert isinstance(known, dict)
    return [*GROUPS, *_walk(known, "")]


def _walk(node: Any, path: str) -> list[str]:
    keys = [path] if path else []
    if not isinstance(node, Mapping):
        return keys
    return keys + [key for name in node for key in _walk(node[name], f"{path}.{name}" if path else str(name))]


def _value_problems(overrides: Sequence[str]) -> list[str]:
    try:
        build(load(overrides))
    except ConfigError as error:
        return error.every
    return []
