"""The rows that a record was scored on. No torch."""

from peftbench.config.recorded import part
from peftbench.config.spec import DataSpec, TaskSpec
from peftbench.data import sources
from peftbench.ground.errors import DataError, shown
from peftbench.record import Record


def texts_of(record: Record, split: str, folder: str | None = None) -> tuple[tuple[str, ...], ...]:
    """The texts of a split, one tuple per text column.

    Args:
        folder: where the rows lie, in the layout of the official download; None: where the run's came from.

    Raises:
        DataError: they cannot be read, or are not the rows of the record.
    """
    task = part(record, TaskSpec, "task")
    data = part(record, DataSpec, "data")
    if folder is not None:
        data = DataSpec("folder", "folder", folder, None, data.limit)
    try:
        rows = sources.load(data, task, [split])[split]
    except DataError as error:
        raise DataError(error.every[0] if folder else f"{error.every[0]}; --data DIR says where the rows lie") from None
    if rows.sha256 != record.hashes.data.get(split):
        where = shown(folder or data.path or data.name, 80)
        raise DataError(f"{where}: its rows of {task.name}/{split} are not those that the study was scored on")
    return rows.texts
