"""Studies from several machines put together; records that disagree are refused before anything is copied."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from peftbench.ground import registered
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import DELTA_FILE, METRICS_FILE, RECORD_FILE, STUDY, write_atomically
from peftbench.record import Record, find_records, read_record, write_record
from peftbench.study import index
from peftbench.study.agreement import agreement
from peftbench.study.lock import Lock

CELL = re.compile(r"[^/]{1,200}/(split\d{1,10}-)?seed\d{1,10}")
FILES = (DELTA_FILE, METRICS_FILE, "predictions/*.tsv", ".hydra/*.yaml")  # the record comes last


def collect(studies: Sequence[Path], outputs: Path) -> tuple[int, int]:
    """Copy every cell that the study under `outputs` lacks, or has failed where another did not. Of one that failed
    everywhere, the record knows all hosts.

    Args:
        studies: folders of one study, of one name.
        outputs: where the study is put together; what is there counts as well.

    Returns:
        How many cells were copied, and how many were there in several places and agreed.

    Raises:
        ConfigError: the folders are of several studies, or there is none.
        DataError: a record or a list of plans cannot be read, two records of one cell disagree, or a delta is not its
            record's; every one is named, nothing copied.
    """
    names = {path.resolve().name for path in studies}
    if len(names) > 1:
        raise ConfigError(f"collect: folders of several studies: {', '.join(sorted(map(shown, names)))}")
    if not STUDY.fullmatch(name := names.pop()):
        raise ConfigError(f"{shown(studies[0], 100)}: no folder of a study, by its name")
    target = outputs / name
    kept = _records(target) if target.is_dir() else {}
    chosen: dict[str, Path] = {}
    failed_again: dict[str, Record] = {}
    twice, problems = 0, []
    for study in studies:
        if not (own := _records(study)) and not (study / index.FILE).exists():
            raise ConfigError(f"{shown(study, 100)}: no folder of a study, it holds neither a record nor a list")
        for cell, (record, path) in own.items():
            before = kept.get(cell)
            if before is None or (record.status == "done" and before[0].status != "done"):
                kept[cell], chosen[cell] = (record, path), path
                failed_again.pop(cell, None)
            elif before[0].status == record.status == "done":
                twice += 1
                problems += _disagreement(before, (record, path))
            elif record.status != "done" and set(record.failed_on) - set(before[0].failed_on):
                hosts = list(dict.fromkeys([*before[0].failed_on, *record.failed_on]))
                failed_again[cell] = replace(before[0], failed_on=hosts)
                kept[cell] = failed_again[cell], before[1]
    problems += [line for cell, path in chosen.items() for line in _wrong_delta(kept[cell][0], path)]
    if problems:
        raise DataError(problems)
    plans = [plan for study in studies for plan in registered.read(study)]
    for cell, path in chosen.items():
        _copy(path.parent, target / cell)
    for cell, record in failed_again.items():
        with _locked(target / cell) as held:
            write_record(record, target / cell, held.check)
    for study in studies:
        index.add(target, index.read(study))
    registered.add(target, plans)
    return len(chosen), twice


def _records(study: Path) -> dict[str, tuple[Record, Path]]:
    """Every record of a study by its cell, a folder inside it.

    Raises:
        ConfigError: there is no such folder.
        DataError: a record cannot be read; all such are named.
    """
    if not study.is_dir():
        raise ConfigError(f"{shown(study, 100)}: no folder of a study")
    records, problems = {}, []
    for path in find_records(study):
        cell = str(path.parent.relative_to(study))
        if not CELL.fullmatch(cell) or not cell.isprintable():  # results that were moved aside
            continue
        try:
            records[cell] = read_record(path), path
        except DataError as error:
            problems += error.every
    if problems:
        raise DataError(problems)
    return records


def _disagreement(one: tuple[Record, Path], other: tuple[Record, Path]) -> list[str]:
    compared = agreement(one[0], other[0])
    if compared.verdict != "differs" and one[0].fingerprint == other[0].fingerprint:
        return []
    what = compared.made[0] if compared.made else "fingerprint differs"
    return [f"{one[1].parent} and {other[1].parent} disagree: {shown(what, 80)}"]


def _wrong_delta(record: Record, path: Path) -> list[str]:
    """A line where the delta beside a record is not the one that the record was made with."""
    delta = path.with_name(DELTA_FILE)
    if record.hashes.delta is None or not _is_own(delta):
        return []
    with delta.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return [] if sha256 == record.hashes.delta else [f"{delta}: not the delta that its record was made with"]


def _copy(source: Path, target: Path) -> None:
    """Copy a cell's files, regular ones alone.

    Raises:
        ConfigError: a runner has the cell, or the folder cannot be written.
    """
    with _locked(target) as held:
        for path in (path for pattern in (*FILES, RECORD_FILE) for path in sorted(source.glob(pattern))):
            if _is_own(path) and not path.parent.is_symlink():
                write_atomically(target / path.relative_to(source), path.read_bytes(), held.check)


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


@contextmanager
def _locked(cell: Path) -> Iterator[Lock]:
    """Within, no runner has a cell.

    Raises:
        ConfigError: one has it, or the folder cannot be written.
    """
    with Lock(cell) as held:
        if not held.held:
            raise ConfigError(f"{cell}: {held.refused or 'a runner has it'}; nothing of it was copied")
        yield held
