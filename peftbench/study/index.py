"""What a study consists of: every cell that was asked for, by the words that asked for it."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from peftbench import __version__
from peftbench.config.words import conf_dir
from peftbench.errors import ConfigError
from peftbench.files import set_aside, write_atomically
from peftbench.study import done
from peftbench.study.done import Reads

FILE = "study.json"


@dataclass(frozen=True)
class Planned:
    """A cell of a study.

    Attributes:
        folder: under `outputs`.
        overrides: those that describe it.
        reads: what it reads, by its place in the file's table; None: not known (a file of an earlier version).
    """

    folder: str
    overrides: list[str]
    reads: Reads | None = None


def key(overrides: Sequence[str]) -> str:
    """The same for the same words in any order, as long as neither yaml files nor this package change.

    Of words with one key the order counts: Hydra takes the last.
    """
    words = sorted(overrides, key=lambda word: word.partition("=")[0])
    return hashlib.sha256("\n".join([_yaml_digest(), *words]).encode()).hexdigest()[:32]


def read(study: Path) -> dict[str, Planned]:
    """The cells of a study by the key of their words; a damaged file is set aside."""
    path = study / FILE
    if not path.exists():
        return {}
    try:
        raw = json.loads(path.read_bytes())
        reads = [done.reads_from(item) for item in raw.get("reads", [])]
        return {
            name: Planned(
                cell["folder"],
                list(cell["overrides"]),
                None if cell.get("reads") is None else reads[cell["reads"]],
            )
            for name, cell in raw["cells"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        set_aside(path, "not a readable list of a study's cells")
        return {}


def add(study: Path, cells: Mapping[str, Planned]) -> None:
    """Add cells to a study; runners that start at the same moment lose none.

    Raises:
        ConfigError: the study's folder cannot be written.
    """
    known = read(study)
    if all(known.get(name) == cell for name, cell in cells.items()):
        return
    try:
        with _alone(study):
            cells = {**read(study), **cells}
            tables = {json.dumps(asdict(reads)): None for reads in _distinct(cells.values())}
            place = {id(reads): list(tables).index(json.dumps(asdict(reads))) for reads in _distinct(cells.values())}
            every = {
                name: {
                    "folder": cell.folder,
                    "overrides": cell.overrides,
                    "reads": None if cell.reads is None else place[id(cell.reads)],
                }
                for name, cell in cells.items()
            }
            raw = {"reads": [json.loads(text) for text in tables], "cells": every}
            write_atomically(study / FILE, json.dumps(raw, ensure_ascii=False).encode())
    except OSError as error:
        raise ConfigError(f"outputs={study.parent}: {study} cannot be written ({error.strerror})") from None


def _distinct(cells: Iterable[Planned]) -> list[Reads]:
    return list({id(cell.reads): cell.reads for cell in cells if cell.reads is not None}.values())


@contextmanager
def _alone(study: Path) -> Iterator[None]:
    study.mkdir(parents=True, exist_ok=True)
    with (study / f".{FILE}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@cache
def _yaml_digest() -> str:
    found = hashlib.sha256(__version__.encode())
    for path in sorted(conf_dir().rglob("*.yaml")):
        found.update(str(path.relative_to(conf_dir())).encode())
        found.update(path.read_bytes())
    return found.hexdigest()
