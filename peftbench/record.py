"""The record of a run and its store: one typed JSON file, written whole, which is the truth about a cell."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from peftbench.ground import untrusted
from peftbench.ground.errors import DataError, printable, shown
from peftbench.ground.files import RECORD_FILE, write_atomically
from peftbench.ground.quantity import quantity
from peftbench.ground.record_parts import (
    Attention,
    BudgetFacts,
    CellName,
    Counts,
    Energy,
    Evaluation,
    FewLabels,
    Flops,
    Git,
    Glance,
    Hardware,
    Hashes,
    Headline,
    Made,
    Memory,
    Metrics,
    Moment,
    Name,
    Rate,
    ReadBy,
    Search,
    SelfTrained,
    Taken,
    TaughtBy,
    Throughput,
    Times,
    Worker,
)

__all__ = [
    "MEASURED",
    "MOST_BYTES",
    "READABLE",
    "SCHEMA",
    "SEARCH_SUFFIX",
    "Attention",
    "BudgetFacts",
    "CellName",
    "Counts",
    "Energy",
    "Evaluation",
    "Flops",
    "Git",
    "Glance",
    "Hardware",
    "Hashes",
    "Headline",
    "Made",
    "Memory",
    "Metrics",
    "Moment",
    "Record",
    "Search",
    "Taken",
    "Throughput",
    "Times",
    "Worker",
    "budget_facts",
    "changed_parents",
    "damage",
    "find_records",
    "finished_record",
    "glance",
    "read_record",
    "record_status",
    "write_record",
]

SCHEMA = 2
READABLE = (1, SCHEMA)  # 1 had no digest and is otherwise the same
SEARCH_SUFFIX = ".search"  # the tries of study "pilot" are the study "pilot.search"
# the keys in which two equal runs on a CPU may differ
MEASURED = ("time", "memory", "throughput", "energy", "worker", "failed_on")
MOST_BYTES = 16 << 20  # of a record; those of long runs have a tenth of a MB
MOST_VALUES = 400_000  # of a record; a growing selection leaves three for every step
MOST_ERRORS = 1000  # that are looked at
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class _Protocol:
    lr: Rate
    head_lr: Rate | None = None


@dataclass(frozen=True)
class _Task:
    labels: list[Name] | None


@dataclass(frozen=True)
class _Config:
    """What of a configuration is looked at by those who read records."""

    model: dict[str, Any]
    task: _Task
    method: dict[str, Any]
    budget: dict[str, Any]
    protocol: _Protocol
    init_from: str | None = None
    shots: FewLabels | None = None
    readout: ReadBy | None = None
    selftrain: SelfTrained | None = None
    objective: TaughtBy | None = None


def _is_config(raw: dict[str, Any]) -> dict[str, Any]:
    _adapter(_Config).validate_json(json.dumps(raw), strict=True)
    return raw


def _is_budget(raw: dict[str, Any]) -> dict[str, Any]:
    budget_facts(raw)
    return raw


def budget_facts(budget: dict[str, Any]) -> BudgetFacts:
    """The typed part of a record's budget.

    Raises:
        ValidationError: it is not that.
    """
    facts: BudgetFacts = _adapter(BudgetFacts).validate_json(json.dumps(budget), strict=True)
    return facts


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.replace("\t", "    ").split("\n"))


@dataclass(frozen=True)
class Record:
    """Everything that is known about a finished run.

    Attributes:
        schema: version of this layout.
        status: how the run ended.
        counts: trainable entries.
        budget: backbone entries asked for and used (`BudgetFacts`), and the method's own facts.
        throughput: None where nothing was trained.
        config: the resolved configuration; overrides: what the user typed.
        error: what went wrong, where the status is not done.
        search: how the learning rate was chosen, where it was.
        drawn: parameters of the backbone that the weights lacked, drawn from the seed and stored in the delta.
        attention: how many attention modules this bench's own function computed; None in records of before version 0.3,
            and in those of artefacts, sequences apart.
        worker: who computed it; None in records of before version 0.4.
        failed_on: hosts on which the cell failed, this time and before; empty where it is done.
        made: how it was made of finished runs, where it is an artefact's.
        row: the fingerprint with parents named by their cells, not by what they learned; None: it has none.
        flops, energy: None in older records, and where they are not known.
    """

    schema: int
    status: Literal["done", "failed", "diverged"]
    cell: CellName
    fingerprint: Name
    headline: Headline
    metrics: Metrics
    counts: Counts | None
    budget: Annotated[dict[str, Any], AfterValidator(_is_budget)]
    time: Times
    memory: Memory
    throughput: Annotated[Throughput | None, BeforeValidator(lambda raw: raw or None)]
    hashes: Hashes
    versions: dict[Name, Name]
    git: Git
    hardware: Hardware
    overrides: list[str]
    config: Annotated[dict[str, Any], AfterValidator(_is_config)]
    error: Annotated[str, AfterValidator(_lines)] | None = None
    search: Search | None = None
    drawn: list[Name] = field(default_factory=list)
    attention: Attention | None = None
    worker: Worker | None = None
    failed_on: list[Name] = field(default_factory=list)
    made: Made | None = None
    row: Name | None = None
    flops: Flops | None = None
    energy: Energy | None = None

    @property
    def lr(self) -> float:
        """The peak learning rate that was used."""
        return self.search.chosen if self.search else float(self.config["protocol"]["lr"])

    @property
    def few(self) -> FewLabels | None:
        """How many rows of train had their labels; None: all of them."""
        raw = self.config.get("shots")
        shots: FewLabels | None = None if raw is None else _adapter(FewLabels).validate_python(raw)
        return shots if shots and shots.words else None

    @property
    def read_by(self) -> ReadBy:
        """How it read its logits; before there was a choice, by a classifier."""
        read_by: ReadBy = _adapter(ReadBy).validate_python(self.config.get("readout") or {})
        return read_by

    @property
    def self_trained(self) -> SelfTrained:
        """How it used rows without labels."""
        how: SelfTrained = _adapter(SelfTrained).validate_python(self.config.get("selftrain") or {})
        return how

    @property
    def taught_by(self) -> TaughtBy:
        """What its training made small."""
        how: TaughtBy = _adapter(TaughtBy).validate_python(self.config.get("objective") or {})
        return how

    @property
    def reason(self) -> str:
        """The last line of its error."""
        return (self.error or "").strip().rpartition("\n")[2] or "no reason given"

    def as_json(self) -> str:
        """Indented JSON; a number that is not finite is written as null. The last key is a digest of the others."""
        raw = json.loads(json.dumps(_finite(asdict(self)), allow_nan=False))
        raw["sha256"] = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
        return json.dumps(raw, indent=1, ensure_ascii=False)


def write_record(record: Record, folder: Path, check: Callable[[], None] = lambda: None) -> Path:
    """Write the record into its cell's folder, whole or not at all; returns its path.

    Args:
        check: as of `write_atomically`.
    """
    path = folder / RECORD_FILE
    write_atomically(path, (record.as_json() + "\n").encode(), check)
    return path


def read_record(path: Path) -> Record:
    """Read a record, and check all of it.

    Raises:
        DataError: the file is missing, too large, no regular file, damaged, or of another schema.
    """
    try:
        raw = _raw(path)
        untrusted.check(raw)
        if raw.get("schema") not in READABLE:
            schema = shown(raw.get("schema"))
            raise DataError(f"{path}: a record of schema {schema}, this version reads schema {SCHEMA}")
        record: Record = _adapter(Record).validate_json(json.dumps(raw), strict=True)
        _check_texts(raw)
    except ValidationError as error:
        raise DataError(f"{path}: not a valid record: {_first(error)}") from None
    except OSError as error:
        raise DataError(f"{path}: not a readable record ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not a readable record ({error})") from None
    return record


def finished_record(path: Path) -> Record | None:
    """The record at this path, if it is whole and its run ended well."""
    return read_record(path) if record_status(path) == "done" and damage(path) is None else None


def record_status(path: Path) -> str | None:
    """How the run of a record ended, read without looking at the rest; None where there is none, or a damaged one."""
    return glance(path).status


def glance(path: Path) -> Glance:
    """See what of a record decides whether its cell is to be run.

    Raises:
        DataError: it cannot be read.
    """
    try:
        raw = _raw(path)
        if raw.get("schema") not in READABLE:
            return Glance("done")
        fields = {"status": raw.get("status"), "hashes": raw.get("hashes")}
        fields |= {"seconds": raw["time"]["total_s"], "peak_mb": raw["memory"]["peak_mb"]}
        fields["failed_on"] = raw.get("failed_on", [])
        seen: Glance = _adapter(Glance).validate_python(fields)
    except FileNotFoundError:
        return Glance()
    except OSError as error:
        raise DataError(f"{path}: not a readable record ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):  # a ValidationError is a ValueError
        return Glance()
    return seen


def changed_parents(hashes: Hashes, outputs: Path, glance_at: Callable[[Path], Glance] = glance) -> list[str]:
    """The runs that an artefact was made of and that have learned something else since.

    One that is gone, or that is being run again, says nothing against what was made of it.

    Args:
        outputs: where the artefact's study lies.
        glance_at: how the record at a path is seen.
    """
    changed = []
    for folder, sha256 in hashes.parents.items():
        try:
            seen = glance_at(outputs / folder / RECORD_FILE)
        except DataError:
            continue
        if seen.status == "done" and seen.hashes.delta != sha256:
            changed.append(folder)
    return changed


def damage(path: Path) -> str | None:
    """What is wrong with a record; None where nothing is, where there is none, or where it is of another schema."""
    try:
        raw = _raw(path)
        if raw.get("schema") in READABLE:
            read_record(path)
    except FileNotFoundError:
        return None
    except DataError as error:
        return error.every[0].removeprefix(f"{path}: ")
    except (OSError, ValueError) as error:
        return f"damaged record ({error})"
    return None


def _raw(path: Path) -> dict[str, Any]:
    """The record as JSON has it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or not the bytes that were written.
    """
    content = untrusted.read_bytes(path, MOST_BYTES)
    untrusted.check_number(content, MOST_VALUES)
    try:
        raw = json.loads(content)
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        digest = raw.pop("sha256", None)
        if raw.get("schema") != 1:
            if digest != hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest():
                raise ValueError("its sha256 does not match")
    except RecursionError:
        raise ValueError("nested too deep") from None
    return raw


def _check_texts(raw: dict[str, Any]) -> None:
    """Refuse control codes: what a record holds is shown on terminals. The error's text is cleaned instead."""
    for key, value in raw.items():
        for text in untrusted.texts(value):
            if key != "error" and CONTROL.search(text):
                raise ValueError(f"{shown(key)}: control codes in {shown(text)}")


def _first(error: ValidationError) -> str:
    if error.error_count() > MOST_ERRORS:  # spelled out, each takes a kilobyte or two
        return quantity(error.error_count(), "value in it is wrong", "values in it are wrong")
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(step) for step in first["loc"])
    return f"{shown(key)}: {shown(first['msg'], 120)}"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def find_records(study: Path) -> Iterator[Path]:
    """Paths of all records of a study, sorted."""
    yield from sorted(study.glob(f"*/*/{RECORD_FILE}"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
