"""A user's own yaml files, looked at before Hydra reads them: one that would grow without end is refused."""

import functools
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import yaml

from peftbench.config.validate import targets
from peftbench.config.words import GROUPS, yaml_problem
from peftbench.ground.errors import ConfigError, shown
from peftbench.ground.files import stamp

SEARCHPATH = "hydra.searchpath="  # where a user's own yaml files lie
MOST_FILES = 10_000
MOST_BYTES = 1 << 20
MOST_NODES = 100_000  # values of a file, its aliases followed
DEEPEST = 50  # levels of a yaml file


def check(overrides: Sequence[str]) -> None:
    """Look at every yaml file of the search paths that these overrides name; one that has not changed is read once.

    Raises:
        ConfigError: a folder is not there, or a file is too large, nested too deep, no yaml, or has aliases that
            multiply or contain themselves.
    """
    problems = []
    for folder in _folders(overrides):
        if not folder.is_dir():
            problems.append(f"{SEARCHPATH}[file://{shown(folder, 100)}]: no such folder")
        for number, path in enumerate(folder.rglob("*.yaml")):
            if number == MOST_FILES:
                problems.append(f"{SEARCHPATH}{folder}: more than {MOST_FILES:,} yaml files")
                break
            if path.is_file() and (problem := _problem(path, stamp(path))):
                problems.append(f"{path}: {problem}")
    if problems:
        raise ConfigError(problems)


def classes(folder: Path) -> set[str]:
    """Every class that the methods of a search path name, those within others included.

    Raises:
        ConfigError: there is no such folder, or as `check`.
    """
    if not folder.is_dir():
        raise ConfigError(f"--searchpath {shown(folder, 100)}: no such folder")
    check([f"{SEARCHPATH}[file://{folder}]"])
    return {
        name
        for path in sorted((folder / "method").glob("*.yaml"))
        for name in targets(yaml.safe_load(path.read_text(encoding="utf-8")))
    }


def _folders(overrides: Sequence[str]) -> Iterator[Path]:
    for override in overrides:
        if override.startswith(SEARCHPATH):
            for item in override.removeprefix(SEARCHPATH).strip("[]").split(","):
                folder = Path(item.strip(" '\"").removeprefix("file://"))
                if item.strip() and "://" not in item.replace("file://", ""):
                    yield folder


@functools.lru_cache(maxsize=1024)
def _problem(path: Path, _: Hashable) -> str | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            return f"larger than {MOST_BYTES:,} bytes"
        text = path.read_text(encoding="utf-8")
        return (_no_mapping(text) if path.parent.name in GROUPS else None) or _growth(text)
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start})"
    except yaml.YAMLError as error:
        return f"no valid yaml: {yaml_problem(error)}"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _no_mapping(text: str) -> str | None:
    """What a word's file is in the place of keys with values; None: that, or empty."""
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.MappingStartEvent):
                return None
            found = f"the text '{shown(event.value, 30)}'" if isinstance(event, yaml.ScalarEvent) else "a list"
            return f"must be keys with values, key: value, and is {found}"
    return None


def _growth(text: str) -> str | None:
    """What is wrong with what the text stands for once its aliases are followed; nothing is built."""
    held: dict[str, int] = {}  # anchor -> nodes that an alias of it stands for
    inside: list[tuple[str | None, int]] = []  # anchor of every collection not yet closed, and the nodes before it
    nodes = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in held:
                return f"the anchor '{shown(event.anchor, 30)}' contains itself, or is nowhere"
            nodes += held[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = inside.pop()
            if anchor:
                held[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                held[event.anchor] = 1
        if len(inside) > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        if nodes > MOST_NODES:
            return f"more than {MOST_NODES:,} values, its aliases followed"
    return None
