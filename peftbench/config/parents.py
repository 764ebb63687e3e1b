"""The runs that an update is made of, as their records tell: what does not fit is refused before any cost."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from peftbench.config.spec import Cell
from peftbench.ground.errors import DataError, shown
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.record import Record, read_record


def parents(cell: Cell) -> dict[str, tuple[Path, str]]:
    """The runs that a cell starts from or is taught by: by key, each one's folder and the hash of its delta."""
    runs = {}
    if cell.init_from is not None and cell.init_sha256 is not None:
        runs["init_from"] = Path(cell.init_from), cell.init_sha256
    if cell.objective.old is not None and cell.old_sha256 is not None:
        runs["objective.old"] = Path(cell.objective.old), cell.old_sha256
    return runs


def parents_of_update(cell: Cell) -> dict[str, tuple[Path, str]]:
    """The runs that an update is made of, as `parents` gives them; none where the cell is no update."""
    return parents(cell) if cell.objective.updates else {}


def check_unchanged(runs: Mapping[str, tuple[Path, str]]) -> None:
    """See that runs are still those that a cell was composed with.

    Args:
        runs: see `parents`.

    Raises:
        DataError: one has learned something else since.
    """
    for key, (folder, sha256) in runs.items():
        if read_record(folder / RECORD_FILE).hashes.delta != sha256:
            raise DataError(f"{key}={folder}: was run again since; the same command goes on with what it learned now")


def row_of(cell: Cell) -> str | None:
    """The cell's fingerprint with its parents named by their cells, not by what they learned.

    Seeds of one row of a table have it in common, whose parents are seeds of one row, too. None: there are no parents.

    Raises:
        DataError: a parent's record cannot be read.
    """
    rows = {key: _row(read_record(folder / RECORD_FILE)) for key, (folder, _) in parents(cell).items()}
    if not rows:
        return None
    return replace(cell, init_sha256=rows["init_from"], old_sha256=rows.get("objective.old")).fingerprint


def _row(record: Record) -> str:
    return record.row or record.fingerprint


def is_to_come(folder: Path, to_come: Collection[Path]) -> bool:
    """Whether a folder is that of a run which has not left its delta yet."""
    return bool(to_come) and folder.resolve() in to_come and not (folder / DELTA_FILE).is_file()


def of_update(cell: Cell, to_come: Collection[Path] = ()) -> Iterator[str]:
    """A line for whatever of an update the task, another key or one of its parents does not allow.

    Args:
        to_come: folders of runs that have no record yet, and of which nothing can be said.
    """
    if not cell.objective.updates:
        return
    if len(cell.task.parts) > 1:
        yield "objective=muscle: task=joint is several tasks, and an update is of one"
    elif cell.task.labels is None:
        yield f"objective=muscle: task={cell.task.name} is a regression, whose answers are not right or wrong"
    if cell.task.train is None:
        yield f"objective=muscle: task={cell.task.name} has no training rows"
    if cell.selftrain.kind != "none":
        yield f"selftrain={cell.selftrain.kind}: has a teacher of its own; objective=muscle goes without"
    if cell.init_from is None:
        yield "objective=muscle: updates a newer run; give init_from=<folder of that run>"
    if cell.objective.asks_old and cell.objective.old is None:
        yield "objective.old: must be given, as objective.old=<folder of the older run>"
    records: dict[str, Record] = {}
    for key, (folder, sha256) in parents(cell).items():
        where = f"{key}={shown(folder, 100)}"
        if is_to_come(folder, to_come):
            continue
        try:
            records[key] = read_record(folder / RECORD_FILE)
        except DataError as error:
            yield f"{where}: {error.every[0].removeprefix(f'{folder / RECORD_FILE}: ')}"
            continue
        yield from (f"{where}: {problem}" for problem in _misfits(cell, key, records[key], sha256))
    if len(records) == 2 and len({record.hashes.tokenizer for record in records.values()}) == 2:
        yield "objective.old: its run has another tokenizer than the run in init_from, and rows are tokenised once"


def _misfits(cell: Cell, key: str, record: Record, sha256: str) -> Iterator[str]:
    """What keeps a run from being a parent of this cell."""
    task, readout = cell.task, cell.readout
    if record.status != "done":
        yield f"that run {record.status}; an update is made of finished runs"
    elif record.hashes.delta != sha256:
        yield "its delta is not the one that its record was made with"
    elif record.cell.task != task.name or (record.config["task"].get("labels") or []) != list(task.labels or ()):
        other = f"task={record.cell.task}" if record.cell.task != task.name else "other labels"
        yield f"of {other}, and this cell is of task={task.name}"
    elif record.read_by.kind != readout.kind:
        yield f"its readout is a {record.read_by.kind}, this cell's a {readout.kind}"
    elif key == "init_from" and record.cell.model != cell.model.name:
        yield f"of model={record.cell.model}, and an update goes on with that backbone, not {cell.model.name}"
    elif key == "init_from" and record.read_by.head != readout.head:
        yield f"its readout.head is {record.read_by.head}, this cell's {readout.head}"
