"""Which runs stand against which: two runs, or two studies row by row and seed by seed."""

from dataclasses import dataclass
from pathlib import Path

from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.record import Record, read_record
from peftbench.report.records import Study, column_of, is_mean, made_of, name_of, read_study, readable
from peftbench.report.table import apart, row_named

Run = tuple[Path, Record]
OF_ONE_TASK = "flips are of one task; peftbench score RUN task=WORD makes its predictions of one"


@dataclass(frozen=True)
class Version:
    """One row of a table on one task: runs that differ in nothing but the seed.

    Attributes:
        column: task and metric.
        runs: folder and record by seed.
        seeds: of the runs that are compared, in the order of the other version's; the others tell how much a seed does.
    """

    column: str
    name: str
    runs: dict[int, Run]
    seeds: tuple[int, ...]


def paired(
    old: str, new: str, outputs: Path, old_row: str | None = None, new_row: str | None = None
) -> tuple[list[tuple[Version, Version]], list[str]]:
    """What is compared with what, and what has no counterpart.

    Args:
        old: a run's folder, or a study's name; new: likewise.
        outputs: where studies lie.
        old_row: the one row of the old study's table that is compared, with every row of the new one or with `new_row`;
            without either, rows of the same name are, and rows of any name where each study has one.

    Raises:
        ConfigError: there is no such study or row, both are one run, or there is nothing that both have.
        DataError: a run's record cannot be read, or it did not end well.
    """
    runs = [(Path(word) / RECORD_FILE).is_file() for word in (old, new)]
    if all(runs):
        if old_row or new_row:
            raise ConfigError("--old-row, --new-row: choose rows of studies, and these are two runs")
        before, after = _of_run(Path(old)), _of_run(Path(new))
        if is_mean(before.column) or is_mean(after.column):
            raise ConfigError(f"{old if is_mean(before.column) else new}: {OF_ONE_TASK}")
        if Path(old).samefile(new):
            raise ConfigError(f"{old} and {new} are one run; name two")
        if before.column != after.column:
            raise ConfigError(f"{old} is of {before.column}, {new} of {after.column}: flips are of one task")
        return [(before, after)], []
    if any(runs):
        study, run = (new, old) if runs[0] else (old, new)
        raise ConfigError(f"{study}: not the folder of a finished run, and {run} is one; name two runs, or two studies")
    return _of_studies(read_study(outputs, old, "all"), read_study(outputs, new, "all"), old_row, new_row)


def _of_run(folder: Path) -> Version:
    """A run, and its siblings of other seeds."""
    record = read_record(folder / RECORD_FILE)
    if record.status != "done":
        raise DataError(f"{folder}: that run {record.status}; it has no predictions to compare")
    beside = readable(sorted(folder.resolve().parent.glob(f"*/{RECORD_FILE}")))
    same = {other.cell.seed: (path, other) for path, other in beside if _same(record, other)}
    return Version(
        column_of(record), name_of(record), {**same, record.cell.seed: (folder, record)}, (record.cell.seed,)
    )


def _same(one: Record, other: Record) -> bool:
    return other.status == "done" and made_of(one) == made_of(other)


def _of_studies(
    old: Study, new: Study, old_row: str | None, new_row: str | None
) -> tuple[list[tuple[Version, Version]], list[str]]:
    before, after = _rows(old, old_row), _rows(new, new_row)
    if old.name == new.name and not (old_row or new_row):
        raise ConfigError(f"{old.name} and {new.name} are one study; choose its rows by --old-row and --new-row")
    pairs, notes = [], []
    for column in dict.fromkeys([*(one.column for one in before), *(one.column for one in after)]):
        if is_mean(column):
            notes.append(f"{column}: left out, {OF_ONE_TASK}")
            continue
        sides = [[one for one in side if one.column == column] for side in (before, after)]
        meet = [
            (one, other)
            for one in sides[0]
            for other in sides[1]
            if old_row or new_row or one.name == other.name or len(sides[0]) == len(sides[1]) == 1
        ]
        if old.name == new.name:
            meet = [(one, other) for one, other in meet if one.name != other.name]
        if not meet:
            notes.append(f"{column}: left out, no row of {old.name} has a counterpart in {new.name}")
        for one, other in meet:
            seeds = tuple(sorted(one.runs.keys() & other.runs.keys()))
            if seeds:
                pairs.append(
                    (Version(column, one.name, one.runs, seeds), Version(column, other.name, other.runs, seeds))
                )
            else:
                notes.append(f"{column}: left out, {one.name} and {other.name} have no seed in common")
    if not pairs:
        raise ConfigError(notes or f"{old.name} and {new.name}: nothing that both have")
    return pairs, notes


def _rows(study: Study, row: str | None) -> list[Version]:
    """Every row of the study's table on every task, or the one that is named."""
    done = [run for run in zip(study.folders, study.records, strict=True) if run[1].status == "done"]
    rows = apart(study)[0]
    if rows.empty:
        raise ConfigError(f"study {study.name}: no finished run")
    if row is not None:
        rows = rows[rows["name"] == row_named(row, list(dict.fromkeys(rows["name"])), study.name)]
    versions = []
    for (name, column), same in rows.groupby(["name", "column"], sort=False):
        runs = {int(seed): done[int(place)] for seed, place in zip(same["seed"], same["record"], strict=True)}
        versions.append(Version(str(column), str(name), runs, ()))
    return versions
