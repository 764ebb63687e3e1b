"""What a record was made of, as this version has it: parts of its configuration, and the rows that it was scored on.

No torch.
"""

from typing import Any, TypeVar

from peftbench.config.spec import DataSpec, TaskSpec
from peftbench.config.validate import parse
from peftbench.data import sources
from peftbench.ground.errors import DataError, shown
from peftbench.record import Record

T = TypeVar("T")


def part(record: Record, kind: type[T], name: str, more: dict[str, Any]) -> T:
    """One part of the configuration.

    Args:
        kind: a class of `config.spec`.
        name: of the part, a key of the configuration.
        more: what of it the record keeps elsewhere.

    Raises:
        DataError: it is not one of this version.
    """
    problems: list[str] = []
    parsed = parse(kind, {**more, **record.config[name]}, name, problems)
    if parsed is None or problems:
        raise DataError(f"the record's {name} is not one of this version: {problems[0]}")
    return parsed


def texts_of(record: Record, split: str, folder: str | None = None) -> tuple[tuple[str, ...], ...]:
    """The texts of a split, one tuple per text column.

    Args:
        folder: where the rows lie, in the layout of the official download; None: where the run's came from.

    Raises:
        DataError: they cannot be read, or are not the rows of the record.
    """
    task = part(record, TaskSpec, "task", {"name": record.cell.task})
    data = part(record, DataSpec, "data", {"name": record.cell.data})
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
