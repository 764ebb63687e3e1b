"""The yaml files as Hydra sees them: the words of every group, and what is composed of some of them."""

import copy
import functools
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from peftbench.ground.errors import ConfigError, shown

CONFIG_NAME = "config"
COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    RecursionError,
)  # all are bad overrides
PARTS = (
    "model",
    "task",
    "data",
    "method",
    "scope",
    "budget",
    "protocol",
    "select",
    "shots",
    "readout",
    "selftrain",
    "objective",
    "tracker",
)  # groups a cell is made of
GROUPS = (*PARTS, "experiment")
OPTUNA = "hydra/sweeper=optuna"  # the word for a search of any keys
LISTED = (*GROUPS, "paper", "make", "merge", "port", "edit", "sequence", "learner")  # what `peftbench list` knows
CHOICE = re.compile(rf"(?:{'|'.join(GROUPS)})=\w+", re.ASCII)  # of a word
# Keys of no group
TOP = "seed|label|study|outputs|cache|init_from|predict_test|checkpoint_every|rerun|cells_per_gpu|progress"
VALUE = re.compile(rf"(?:(?:{'|'.join(PARTS)})\.[\w.]+|{TOP})=.*", re.ASCII | re.DOTALL)
MOST_CHOICES = 64  # configurations kept, of about 0.5 MiB each


def conf_dir() -> Path:
    """Folder of the yaml files: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = [package / "conf", package.parent / "conf"]
    for folder in places:
        if folder.is_dir():
            return folder
    raise ConfigError(f"no yaml files: neither {places[0]} nor {places[1]} is there; install peftbench again")


def words(group: str) -> list[str]:
    """The words a user may choose in a group: its yaml files, bases (leading underscore) left out."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))


def origin(group: str, choices: Mapping[str, str]) -> str:
    """What a line about a key of a group begins with where a yaml file that is none of ours may be at fault: the word.

    Args:
        choices: the word chosen in every group.
    """
    word = choices.get(group)
    return f"{group}={shown(word)}: " if word and word not in words(group) else ""


def words_for_globs(group: str, searchpaths: Sequence[str]) -> list[str]:
    """The same with those of a user's own yaml files, for a sweep over method=glob(...)."""
    with _hydra() as loader:
        options = loader.get_group_options(group, ObjectType.CONFIG, CONFIG_NAME, list(searchpaths))
    return sorted(word for word in options if not word.startswith("_"))


def describe(group: str, word: str) -> str:
    """The first comment of a word's file."""
    first = (conf_dir() / group / f"{word}.yaml").read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in first if not line.startswith("# @")), "")


def composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of these overrides, its own part included.

    Hydra needs a tenth of a second for the choices of words, and most cells of a sweep differ in values alone: what a
    choice makes is kept, and values are put on top, as Hydra does, too.
    """
    config = with_values(overrides)
    if config is not None:
        return config
    with _hydra():
        return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def with_values(overrides: Sequence[str]) -> DictConfig | None:
    """The same from the choices alone; None where there is more to do, or something is wrong, which Hydra can say.

    All but hydra.job.override_dirname, which nothing of ours reads.
    """
    choices = [item for item in overrides if CHOICE.fullmatch(item)]
    values = [item for item in overrides if VALUE.fullmatch(item)]
    if len(choices) + len(values) < len(overrides):
        return None
    try:
        config = copy.deepcopy(_chosen(tuple(choices), _yaml_files()))
        for override in OverridesParser.create().parse_overrides(values):
            if override.is_sweep_override():
                return None
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except COMPOSE_ERRORS:
        return None
    config.hydra.overrides.task = list(overrides)
    config.hydra.runtime.cwd = os.getcwd()
    return config


@functools.lru_cache(MOST_CHOICES)
def _chosen(choices: tuple[str, ...], yaml_files: Hashable) -> DictConfig:
    with _hydra():
        return compose(CONFIG_NAME, overrides=list(choices), return_hydra_config=True)


def surroundings() -> Hashable:
    """What a cell depends on beside its words: yaml files of ours, the environment, and the folder we are in."""
    return _yaml_files(), frozenset(os.environ.items()), os.getcwd()


def _yaml_files() -> Hashable:
    """What a composed configuration depends on, beside the choices and the folder we are in."""
    folder = str(conf_dir())
    places = ((place, name) for place, _, names in os.walk(folder) for name in names)
    return folder, *sorted(_seen(os.path.join(*place)) for place in places if place[1].endswith(".yaml"))


def _seen(path: str) -> tuple[str, ...]:
    """What changes when a file does: as `files.stamp`, in a tenth of the time; every cell asks for all files."""
    try:
        info = os.stat(path)
    except OSError:  # an editor's lock leads nowhere
        return (path,)
    return path, *map(str, (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, interpolations resolved, without Hydra's own part.

    Raises:
        ConfigError: an interpolation leads nowhere.
    """
    try:
        container = OmegaConf.to_container(without_hydra(config), resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        whose = origin(str(key).partition(".")[0], config.hydra.runtime.choices) if key else ""
        raise ConfigError(f"{whose}{key}{_typed(config, key)}: {one_line(error)}" if key else one_line(error)) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _typed(config: DictConfig, key: str) -> str:
    """The value of a key as it stands there, with its interpolations, after an equals sign; nothing where none does."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return f"={shown(node)}" if isinstance(node, str) else ""


def without_hydra(config: DictConfig) -> DictConfig:
    # masked_copy keeps the parent-less tree, so that ${...} still finds its keys
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("See https://")[0].split("full_key:")[0]).strip()


def yaml_problem(error: YAMLError) -> str:
    """What is wrong with a yaml file, and where, in short."""
    if not isinstance(error, MarkedYAMLError) or not error.problem:
        return shown(one_line(error), 100)
    mark = error.problem_mark or error.context_mark
    return shown(error.problem, 100) + ("" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}")


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra over our yaml files; inside a Hydra job there is one already, which is put back afterwards."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="peftbench"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running
