"""Studies from several machines put together; records that disagree are refused before anything is copied."""

import re
from collections.abc import Sequence
from pathlib import Path

from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import DELTA_FILE, RECORD_FILE, STUDY, write_atomically
from peftbench.record import Record, find_records, read_record
from peftbench.study import index
from peftbench.study.agreement import agreement
from peftbench.study.lock import Lock

CELL = re.compile(r"[^/]{1,200}/seed\d{1,10}")
FILES = (DELTA_FILE, "metrics.jsonl", "predictions/*.tsv", ".hydra/*.yaml", RECORD_FILE)  # the record last


def collect(studies: Sequence[Path], outputs: Path) -> tuple[int, int]:
    """Copy every cell that the study under `outputs` lacks, or has failed where another did not.

    Args:
        studies: folders of one study, of one name.
        outputs: where the study is put together; what is there counts as well.

    Returns:
        How many cells were copied, and how many were there in several places and agreed.

    Raises:
        ConfigError: the folders are of several studies, or there is none.
        DataError: a record cannot be read, or two records of one cell disagree; every pair is named, nothing copied.
    """
    names = {path.resolve().name for path in studies}
    if len(names) > 1:
        raise ConfigError(f"collect: folders of several studies: {', '.join(sorted(map(shown, names)))}")
    if not STUDY.fullmatch(name := names.pop()):
        raise ConfigError(f"{shown(studies[0], 100)}: no folder of a study, by its name")
    target = outputs / name
    kept = _records(target) if target.is_dir() else {}
    chosen: dict[str, Path] = {}
    twice, problems = 0, []
    for study in studies:
        if not (own := _records(study)) and not (study / index.FILE).exists():
            raise ConfigError(f"{shown(study, 100)}: no folder of a study, it holds neither a record nor a list")
        for cell, (record, path) in own.items():
            before = kept.get(cell)
            if before is not None and before[0].status == record.status == "done":
                twice += 1
                problems += _disagreement(before, (record, path))
            elif before is None or record.status == "done":
                kept[cell], chosen[cell] = (record, path), path
    if problems:
        raise DataError(problems)
    for cell, path in chosen.items():
        _copy(path.parent, target / cell)
    for study in studies:
        index.add(target, index.read(study))
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


def _copy(source: Path, target: Path) -> None:
    """Copy a cell's files, regular ones alone.

    Raises:
        ConfigError: a runner has the cell, or the folder cannot be written.
    """
    with Lock(target) as held:
        if not held.held:
            raise ConfigError(f"{target}: {held.refused or 'a runner has it'}; nothing of it was copied")
        for pattern in FILES:
            for path in sorted(source.glob(pattern)):
                if path.is_file() and not path.is_symlink() and not path.parent.is_symlink():
                    write_atomically(target / path.relative_to(source), path.read_bytes(), held.check)
