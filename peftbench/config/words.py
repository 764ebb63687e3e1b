"""The yaml files as Hydra sees them: the words of every group, and what is composed of some of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftbench.ground.errors import ConfigError

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
    "tracker",
)  # groups a cell is made of
GROUPS = (*PARTS, "experiment")
LISTED = (*GROUPS, "paper")  # what `peftbench list` knows


def conf_dir() -> Path:
    """Folder of the yaml files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def words(group: str) -> list[str]:
    """The words a user may choose in a group: its yaml files, bases (leading underscore) left out."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))


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
    with _hydra():
        return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, interpolations resolved, without Hydra's own part.

    Raises:
        ConfigError: an interpolation leads nowhere.
    """
    try:
        container = OmegaConf.to_container(without_hydra(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(error)) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def without_hydra(config: DictConfig) -> DictConfig:
    # masked_copy keeps the parent-less tree, so that ${...} still finds its keys
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("See https://")[0].split("full_key:")[0]).strip()


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra over our yaml files; inside a Hydra job there is one already, which is put back afterwards."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="peftbench"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running
