"""When a finished record counts: while the rows and weights that it was made of are those at hand. No torch."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter

from peftbench.config.fingerprint import digest
from peftbench.config.parents import parents_of_update
from peftbench.config.spec import WEIGHTS_WORDS, Cell
from peftbench.data.rows import Rows, rows_of
from peftbench.ground import untrusted
from peftbench.ground.errors import DataError
from peftbench.ground.files import (
    CHECKPOINT_FILE,
    DELTA_FILE,
    RECORD_FILE,
    beside_weights,
    cache_folder,
    expanded,
    set_aside,
    settled,
    sha256_of,
    stamp,
    write_atomically,
)
from peftbench.record import Glance, damage, glance
from peftbench.study import lock

WEIGHTS_FILE = "model.safetensors"
COMMIT = re.compile("[0-9a-f]{40}")  # of a repository on the Hub; a branch moves on
KEPT = 4096  # hashes that are remembered at most
MOST_BYTES = 16 << 20  # of the file that they are remembered in

Need = Literal["run", "predict", "nothing"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
T = TypeVar("T")


@dataclass(frozen=True)
class Reads:
    """What a cell reads.

    Attributes:
        weights: model.weights.
        init_from: the run it starts from, and the hash of that run's delta when the cell was composed.
        cache: the folder of caches.
        updates: the runs that an update is made of: the hash of each one's delta, likewise, by its folder.
    """

    rows: Rows
    weights: str
    init_from: str | None
    init_sha256: str | None
    cache: str
    updates: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InputHashes:
    """Hashes of what a cell would read now: of rows by split, of weights, and of the files `beside` these.

    None: what never changes.

    Attributes:
        tests: the splits whose predictions may be added later.
        parents: of the deltas that an artefact or an update is made of, by their folders.
    """

    rows: Mapping[str, str] | None
    weights: str | None
    tests: frozenset[str] = frozenset()
    beside: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)

    def need(self, record: Glance) -> Need:
        """What a cell needs that has this record."""
        if record.status != "done":
            return "run"
        made_of = record.hashes.data
        if self.weights is not None and record.hashes.weights != self.weights:
            return "run"
        if self.beside is not None and record.hashes.beside not in (None, self.beside):  # None: an older record
            return "run"
        if set(record.hashes.parents.values()) != set(self.parents.values()):  # wherever they lie
            return "run"
        if self.rows is None:
            return "predict" if self.tests - made_of.keys() else "nothing"
        if any(made_of.get(name) != sha256 for name, sha256 in self.rows.items() if name not in self.tests):
            return "run"
        return "predict" if any(made_of.get(name) != self.rows[name] for name in self.tests) else "nothing"


def reads_of(cell: Cell) -> Reads:
    """What a cell reads."""
    updates = {str(folder): sha256 for folder, sha256 in parents_of_update(cell).values()}
    return Reads(rows_of(cell), cell.model.weights, cell.init_from, cell.init_sha256, cell.cache, updates)


def reads_from(raw: Any) -> Reads:
    """What a cell reads, back from JSON.

    Raises:
        ValueError: it is not that.
    """
    return _adapter().validate_json(json.dumps(raw), strict=True)


@functools.cache
def _adapter() -> TypeAdapter[Reads]:
    return TypeAdapter(Reads)


def once_each(function: Callable[[Reads], T]) -> Callable[[Reads], T]:
    """The same, computed once for each object: thousands of cells share a few."""
    known: dict[int, tuple[Reads, T]] = {}

    def remembered(reads: Reads) -> T:
        if id(reads) not in known:
            known[id(reads)] = reads, function(reads)
        return known[id(reads)][1]

    return remembered


def hash_inputs(reads: Reads) -> InputHashes:
    """The hashes of what a cell would read now; a file that has not changed since is not read again.

    Raises:
        DataError: it cannot be read.
    """
    rows, cache = reads.rows, cache_folder(reads.cache)
    tests = frozenset(rows.task.test if rows.tested and rows.task.train else ())
    weights = beside = None
    if reads.weights not in WEIGHTS_WORDS:  # what a word names stays
        weights, beside = _weights(reads.weights, cache), _beside(reads.weights, cache)
    return InputHashes(_rows(rows, cache), weights, tests, beside, reads.updates)


def _rows(rows: Rows, cache: Path) -> Mapping[str, str] | None:
    """The hash of every split; None: they are those of a commit."""
    data = rows.data
    if data.source != "hub":
        return _remembered(cache, repr(rows), rows.stamps(), lambda: _hashes(rows))
    is_commit = COMMIT.fullmatch(data.revision or "") and not Path(str(data.path)).is_dir()
    return None if is_commit else _hashes(rows)


def still_starts_from(reads: Reads) -> bool:
    """Whether the deltas that a cell starts from, or is taught by, are those with which it was composed."""
    composed_with = dict(reads.updates)
    if reads.init_from is not None and reads.init_sha256 is not None:
        composed_with[reads.init_from] = reads.init_sha256
    cache = cache_folder(reads.cache)
    try:
        return all(_file_sha256(Path(folder) / DELTA_FILE, cache) == sha256 for folder, sha256 in composed_with.items())
    except OSError:
        return False


def has_result(folder: Path) -> bool:
    """Whether a cell has a record, in its folder or beside it: only then anything is to be compared."""
    return (folder / RECORD_FILE).exists() or any((other / RECORD_FILE).exists() for other in beside(folder))


def beside(folder: Path) -> list[Path]:
    """The folders of results that were moved out of the way of a cell's own."""
    return sorted(folder.parent.glob(f"{folder.name}-*"))


def find(
    folder: Path,
    inputs: InputHashes,
    glance_at: Callable[[Path], Glance] = glance,
    others: Callable[[Path], list[Path]] = beside,
) -> tuple[Path, Need]:
    """Where a cell's result lies and what it needs: in its folder, or beside it if it was made of other rows before.

    Args:
        folder: the cell's own.
        inputs: what it would read now.
        glance_at: how the record at a path is seen.
        others: the folders beside the cell's own.
    """
    need = inputs.need(glance_at(folder / RECORD_FILE))
    if need == "run":
        for other in others(folder):
            if (there := inputs.need(glance_at(other / RECORD_FILE))) != "run":
                return other, there
    return folder, need


def make_way(folder: Path, inputs: InputHashes) -> None:
    """Move a result that was made of other rows or weights to a folder beside it, and back what was made of these.

    Its record goes last, so that an end in between leaves a result that is moved on at the next start. A damaged
    record is set aside.
    """
    _set_aside_damaged(folder)
    seen = glance(folder / RECORD_FILE)
    if seen.status == "done" and inputs.need(seen) == "run":
        read: dict[str, Any] = {"data": seen.hashes.data, "weights": seen.hashes.weights}
        read |= {"beside": seen.hashes.beside} if seen.hashes.beside else {}
        made_of = digest({**read, "parents": seen.hashes.parents} if seen.hashes.parents else read)[:8]
        _move(folder, folder.with_name(f"{folder.name}-{made_of}"))
    if (other := find(folder, inputs)[0]) != folder:
        _move(other, folder)
        other.rmdir()
        _set_aside_damaged(folder)


def _set_aside_damaged(folder: Path) -> None:
    if (reason := damage(folder / RECORD_FILE)) is not None:
        set_aside(folder / RECORD_FILE, reason)


def remove_checkpoint(folder: Path) -> None:
    """Remove what a runner left that was killed after its record; who calls has the cell's lock."""
    with suppress(OSError):
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    paths = [path for path in source.iterdir() if lock.FILE not in path.name]
    for path in sorted(paths, key=lambda path: path.name == RECORD_FILE):
        os.replace(path, target / path.name)


def _hashes(rows: Rows) -> dict[str, str]:
    return {name: split.sha256 for name, split in rows.read().items()}


def _weights(folder: str, cache: Path) -> str:
    path = expanded(folder) / WEIGHTS_FILE
    try:
        return _file_sha256(path, cache)
    except OSError:
        raise DataError(f"model.weights={folder}: no {WEIGHTS_FILE} in that folder") from None


def _beside(folder: str, cache: Path) -> str:
    paths = beside_weights(expanded(folder))
    try:
        return _remembered(cache, "beside", [*map(stamp, paths)], lambda: {"files": sha256_of(paths)})["files"]
    except OSError as error:
        raise DataError(f"model.weights={folder}: {error.filename} cannot be read ({error.strerror})") from None


def _file_sha256(path: Path, cache: Path) -> str:
    def read() -> str:
        if not path.is_file():  # a pipe would hold us up
            raise FileNotFoundError(f"{path}: no regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return _remembered(cache, "file", [stamp(path)], lambda: {"file": read()})["file"]


def _remembered(cache: Path, what: str, stamps: list[Any], read: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The hashes that `read` gives, from a file in `cache` where they were read before and nothing changed since."""
    path = cache / "hashes.json"
    key = hashlib.sha256(json.dumps([what, stamps]).encode()).hexdigest()[:32]
    if (known := _known(path).get(key)) is not None:
        return known
    hashes = read()
    if all(map(settled, stamps)):
        kept = {**_known(path), key: hashes}
        with suppress(OSError):  # it is read again next time
            write_atomically(path, json.dumps(dict(list(kept.items())[-KEPT:])).encode())
    return hashes


def _known(path: Path) -> dict[str, dict[str, str]]:
    """The hashes that are remembered; none where the file is damaged."""
    try:
        return _known_adapter().validate_json(untrusted.read_bytes(path, MOST_BYTES), strict=True)
    except (OSError, ValueError):
        return {}


@functools.cache
def _known_adapter() -> TypeAdapter[dict[str, dict[str, str]]]:
    return TypeAdapter(dict[str, dict[str, Sha256]])
