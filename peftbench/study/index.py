"""What a study consists of: every cell that was asked for, by the words that asked for it."""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from peftbench.config.words import conf_dir
from peftbench.ground import untrusted
from peftbench.ground.errors import LONGEST_LINE, ConfigError, DataError, shown, warn
from peftbench.ground.files import set_aside, write_atomically
from peftbench.ground.quantity import quantity
from peftbench.ground.version import __version__
from peftbench.study import done
from peftbench.study.done import Reads
from peftbench.study.lock import FILE as LOCK_FILE
from peftbench.study.lock import Lock, forget_deaths

FILE = "study.json"
LOCK = f".{FILE}.lock"
SCHEMA = 1
MOST_BYTES = 64 << 20  # of a list; a cell has about 400
NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
LOOKS = 0.2  # seconds between two looks at a lock that another has
List = TypeVar("List")
Parent = Literal["init_from", "objective.old"]  # what a cell may start from, or be taught by


@dataclass(frozen=True)
class Planned:
    """A cell of a study.

    Attributes:
        folder: under `outputs`.
        overrides: those that describe it.
        reads: what it reads, by its place in the file's table; None: not known (a file of an earlier version).
        searches: whether rates or strata are searched before it runs, once for all its seeds.
        after: the study's cells whose deltas it starts from, by the key that names each: folders, by which `names`
            knows them. Until these are done, its own folder is a name for it alone, since the real one follows from
            those deltas.
        named: that name, where the real folder is known by now: others may start from it.
    """

    folder: str
    overrides: list[str]
    reads: Reads | None = None
    searches: bool = False
    after: Mapping[Parent, str] = field(default_factory=dict)
    named: str | None = None


def names(cells: Iterable[Planned]) -> dict[str, Planned]:
    """Cells by every folder that names them."""
    every = list(cells)
    return {cell.named: cell for cell in every if cell.named} | {cell.folder: cell for cell in every}


def kind_of(folder: str) -> str:
    """Task, method, model and fingerprint of a folder study/words-fingerprint/seedN: all but the seed."""
    return folder.split("/")[1] if folder.count("/") >= 2 else folder


def key(overrides: Sequence[str]) -> str:
    """The same for the same words in any order, as long as neither yaml files nor this package change.

    Of words with one key the order counts: Hydra takes the last.
    """
    words = sorted(overrides, key=lambda word: word.partition("=")[0])
    return hashlib.sha256("\n".join([_yaml_digest(), *words]).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class _Cell:
    folder: str
    overrides: list[str]
    reads: int | None = None
    searches: bool = False
    after: str | dict[Parent, str] | None = None  # a word: of init_from
    named: str | None = None


@dataclass(frozen=True)
class _File:
    cells: dict[str, _Cell]
    reads: list[Any] = field(default_factory=list)
    schema: int = SCHEMA


def read(study: Path) -> dict[str, Planned]:
    """The cells of a study by the key of their words, those that lie inside it; what is left out is named on the
    terminal. Nothing is changed.
    """
    try:
        file = _file(study / FILE)
    except DataError as error:
        warn(f"{error.problems[0]}; what its folders show is taken")
        return {}
    outside = [cell.folder for cell in file.cells.values() if not is_inside(cell.folder, study.name)]
    if outside:
        line = f"{study / FILE}: {quantity(len(outside), 'cell')} left out, not inside the study: {outside[0]}"
        warn(shown(line, LONGEST_LINE))
    return _planned(file, study.name)


class _Damaged(DataError):
    """What the file holds is no list of cells of any version."""


def _file(path: Path) -> _File:
    """What the file says; nothing where there is none.

    Raises:
        DataError: as `read_list`.
    """
    return read_list(path, _adapter(), "a list of a study's cells") or _File({})


def read_list(path: Path, adapter: TypeAdapter[List], what: str) -> List | None:
    """What one of a study's files of lists holds; None: there is no such file.

    Args:
        what: what it should be, as a line says it.

    Raises:
        DataError: it cannot be read, is damaged, or of another version.
    """
    try:
        raw = untrusted.read_json(path, MOST_BYTES)
        if isinstance(raw, dict) and raw.get("schema", SCHEMA) != SCHEMA:
            raise DataError(f"{path}: of schema {shown(raw['schema'])}, this version reads schema {SCHEMA}")
        return adapter.validate_python(raw)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError:
        raise _Damaged(f"{path}: not {what}") from None
    except ValueError as error:
        raise _Damaged(f"{path}: not {what} ({error})") from None


@cache
def _adapter() -> TypeAdapter[_File]:
    return TypeAdapter(_File)


def _planned(file: _File, study: str) -> dict[str, Planned]:
    reads = dict(enumerate(map(_reads, file.reads)))
    return {
        name: Planned(
            cell.folder,
            cell.overrides,
            None if cell.reads is None else reads.get(cell.reads),
            cell.searches,
            {"init_from": cell.after} if isinstance(cell.after, str) else cell.after or {},
            cell.named,
        )
        for name, cell in file.cells.items()
        if is_inside(cell.folder, study)
    }


def _reads(raw: Any) -> Reads | None:
    """None: of another version, and its cells are composed anew."""
    try:
        return done.reads_from(raw)
    except ValueError:
        return None


def is_inside(folder: str, study: str) -> bool:
    """Whether the name of a folder under the outputs is that of a cell of the study."""
    parts = folder.split("/")
    return len(parts) == 3 and parts[0] == study and not {"", ".", ".."} & set(parts) and folder.isprintable()


def add(study: Path, cells: Mapping[str, Planned]) -> None:
    """Add cells to a study; runners that start at the same moment lose none. A damaged file is set aside.

    Raises:
        ConfigError: the study's folder cannot be written.
        DataError: the file cannot be read, or is of another version; it is left as it is.
    """
    path = study / FILE
    with suppress(_Damaged):
        known = _planned(_file(path), study.name)
        if all(known.get(name) == cell for name, cell in _with_names(cells, known).items()):
            return
    try:
        with alone(study):
            known = _planned(_undamaged(path), study.name)
            cells = {**known, **_with_names(cells, known)}
            tables = {json.dumps(asdict(reads)): None for reads in _distinct(cells.values())}
            place = {id(reads): list(tables).index(json.dumps(asdict(reads))) for reads in _distinct(cells.values())}
            entries = {
                name: {
                    "folder": cell.folder,
                    "overrides": cell.overrides,
                    "reads": None if cell.reads is None else place[id(cell.reads)],
                    **({"searches": True} if cell.searches else {}),
                    **({"after": _as_known(cell.after)} if cell.after else {}),
                    **({"named": cell.named} if cell.named else {}),
                }
                for name, cell in cells.items()
            }
            raw = {"schema": SCHEMA, "reads": [json.loads(text) for text in tables], "cells": entries}
            write_atomically(path, json.dumps(raw, ensure_ascii=False).encode())
    except OSError as error:
        raise ConfigError(f"outputs={study.parent}: {study} cannot be written ({error.strerror})") from None


def _with_names(cells: Mapping[str, Planned], known: Mapping[str, Planned]) -> dict[str, Planned]:
    """The same cells, with the name of each that the list has under another folder."""
    before = {name: known[name].named or known[name].folder for name in cells if name in known}
    return {
        name: replace(cell, named=before[name]) if before.get(name, cell.folder) != cell.folder else cell
        for name, cell in cells.items()
    }


def _as_known(after: Mapping[Parent, str]) -> str | dict[Parent, str]:
    """What a cell starts from as earlier versions have it, where they know it."""
    return after["init_from"] if list(after) == ["init_from"] else dict(after)


def _undamaged(path: Path) -> _File:
    try:
        return _file(path)
    except _Damaged as error:
        set_aside(path, error.every[0].removeprefix(f"{path}: "))
        return _File({})


def _distinct(cells: Iterable[Planned]) -> list[Reads]:
    return list({id(cell.reads): cell.reads for cell in cells if cell.reads is not None}.values())


def forget(study: Path, folders: Collection[str], also: Collection[str]) -> None:
    """Remove a study whose list names these cells alone and that holds nothing else than it and the files `also`.

    A runner that adds cells at the same moment finds the study gone and makes it anew, or is found in the list.
    """
    if not study.is_dir():
        return
    with suppress(OSError, DataError), alone(study):
        lists = {FILE, LOCK, LOCK_FILE, *also}
        known = {cell.folder for cell in _planned(_file(study / FILE), study.name).values()}
        if known != set(folders) or {path.name for path in study.iterdir()} - lists:
            return
        for name in lists:
            (study / name).unlink(missing_ok=True)
        study.rmdir()
        study.parent.rmdir()  # if it is empty now


@contextmanager
def alone(study: Path) -> Iterator[None]:
    """Within, no other runner changes the study's lists; its folder is made if need be.

    Raises:
        OSError: it cannot be written.
    """
    file = None
    try:
        while file is None:
            study.mkdir(parents=True, exist_ok=True)
            file = _locked(study / LOCK)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
    with file or _locked_as_a_cell(study):
        yield


@contextmanager
def _locked_as_a_cell(study: Path) -> Iterator[None]:
    """The same by the lock that a cell has, on a file system without `flock`; who has it is waited for.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        with Lock(study) as held:
            if held.refused:
                raise OSError(errno.EACCES, held.refused, str(study))
            if held.held:
                forget_deaths(study)
                yield
                return
        time.sleep(LOOKS)


def _locked(path: Path) -> IO[str] | None:
    """The open file, locked; None: who had it removed it meanwhile, so that others lock another file of its name."""
    try:
        file = path.open("w")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@cache
def _yaml_digest() -> str:
    sha256 = hashlib.sha256(__version__.encode())
    for path in sorted(conf_dir().rglob("*.yaml")):
        sha256.update(str(path.relative_to(conf_dir())).encode())
        sha256.update(path.read_bytes())
    return sha256.hexdigest()
