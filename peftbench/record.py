"""The record of a run and its store: one typed JSON file, written whole, which is the truth about a cell."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from peftbench.errors import DataError
from peftbench.files import RECORD_FILE, set_aside, write_atomically

SCHEMA = 2
READABLE = (1, SCHEMA)  # 1 had no digest and is otherwise the same
SEARCH_SUFFIX = ".search"  # the tries of study "pilot" are the study "pilot.search"
MEASURED = ("time", "memory", "throughput")  # the keys in which two equal runs on a CPU may differ


@dataclass(frozen=True)
class CellName:
    """The words that name a cell."""

    task: str
    method: str
    model: str
    data: str
    budget: str
    seed: int
    study: str


@dataclass(frozen=True)
class Headline:
    """The metric that a table shows first: the selected evaluation's value in [-1, 1], and its standard error over
    the rows (bootstrap). Both are None where nothing was scored.
    """

    name: str
    value: float | None
    standard_error: float | None


@dataclass(frozen=True)
class Metrics:
    """The selected evaluation and all of them, in the order of time."""

    selected: dict[str, Any] | None
    evaluations: list[dict[str, Any]]
    selection: str
    collapsed: bool


@dataclass(frozen=True)
class Search:
    """How the learning rate was chosen.

    Attributes:
        chosen: the learning rate with the best score; of equal ones that nearest to protocol.lr.
        rows: where the tries were scored: held_out or dev.
        scores: score of every learning rate tried; None where that try failed or diverged.
        folders: the tries' folders under `outputs`.
        seconds: what the tries cost together.
    """

    chosen: float
    rows: str
    scores: dict[str, float | None]
    folders: list[str]
    seconds: float


@dataclass(frozen=True)
class Record:
    """Everything that is known about a finished run.

    Attributes:
        schema: version of this layout.
        status: how the run ended.
        counts: trainable entries: backbone, head, total; model (all entries); stored_bytes (the delta's tensors).
        budget: backbone entries asked for and used.
        time: seconds by phase, and the moments of start and end (UTC).
        memory: peak_mb (MiB) of the process, or of the GPU where there is one.
        throughput: tokens_per_s and steps_per_s of training, padding_share of the tokens computed; empty where
            nothing was trained.
        config: the resolved configuration; overrides: what the user typed.
        hashes: of the rows of every split, of the weights file, of the delta.
        error: what went wrong, where the status is not done.
        search: how the learning rate was chosen, where it was.
        drawn: parameters of the backbone that the weights lacked, drawn from the seed and stored in the delta.
    """

    schema: int
    status: Literal["done", "failed", "diverged"]
    cell: CellName
    fingerprint: str
    headline: Headline
    metrics: Metrics
    counts: dict[str, int | None] | None
    budget: dict[str, Any]
    time: dict[str, float | str]
    memory: dict[str, float]
    throughput: dict[str, float]
    hashes: dict[str, Any]
    versions: dict[str, str]
    git: dict[str, Any]
    hardware: dict[str, Any]
    overrides: list[str]
    config: dict[str, Any]
    error: str | None = None
    search: Search | None = None
    drawn: list[str] = field(default_factory=list)

    @property
    def lr(self) -> float:
        """The peak learning rate that was used."""
        return self.search.chosen if self.search else float(self.config["protocol"]["lr"])

    def as_json(self) -> str:
        """Indented JSON; a number that is not finite is written as null. The last key is a digest of the others."""
        raw = json.loads(json.dumps(_finite(asdict(self)), allow_nan=False))
        raw["sha256"] = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
        return json.dumps(raw, indent=1, ensure_ascii=False)


def write_record(record: Record, folder: Path) -> Path:
    """Write the record into its cell's folder, whole or not at all; returns its path."""
    path = folder / RECORD_FILE
    write_atomically(path, (record.as_json() + "\n").encode())
    return path


def read_record(path: Path) -> Record:
    """Read and validate a record.

    Raises:
        DataError: the file is missing, damaged, or of another schema.
    """
    try:
        raw = _checked(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable record ({error})") from None
    if raw.get("schema") not in READABLE:
        raise DataError(f"{path}: a record of schema {raw.get('schema')}, this version reads schema {SCHEMA}")
    try:
        return _adapter().validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise DataError(f"{path}: not a valid record: {where}: {first['msg']}") from None


def finished_record(path: Path) -> Record | None:
    """The record at this path, if its run ended well; one that is not readable is set aside."""
    if record_status(path) != "done":
        return None
    try:
        return read_record(path)
    except DataError as error:
        set_aside(path, error.problems[0].removeprefix(f"{path}: "))
        return None


def record_status(path: Path) -> str | None:
    """How the run of a record ended, read without looking at the rest; None where there is none.

    A damaged record is set aside. One of another schema is left alone and counts as "done": it is never run over.
    """
    return status_and_hashes(path)[0]


def status_and_hashes(path: Path) -> tuple[str | None, dict[str, Any]]:
    """As `record_status`, with the hashes of what the run was made of."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, {}
    except OSError as error:
        raise DataError(f"{path}: not a readable record ({error.strerror})") from None
    try:
        raw = _checked(content)
    except ValueError as error:
        set_aside(path, f"damaged record ({error})")
        return None, {}
    hashes = raw.get("hashes")
    status = "done" if raw["schema"] not in READABLE else str(raw.get("status"))
    return status, hashes if isinstance(hashes, dict) else {}


def _checked(content: bytes) -> dict[str, Any]:
    """The record as plain data.

    Raises:
        ValueError: it is no JSON object, or not the bytes that were written.
    """
    raw = json.loads(content)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    found = raw.pop("sha256", None)
    if raw.get("schema") != 1:
        if found != hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest():
            raise ValueError("its sha256 does not match")
    return raw


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def find_records(study: Path) -> Iterator[Path]:
    """Paths of all records of a study, sorted."""
    yield from sorted(study.glob(f"*/*/{RECORD_FILE}"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
