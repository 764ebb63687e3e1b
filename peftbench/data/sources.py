"""Where the rows come from: the Hub, a folder in the layout of the official download, or the built-in sample."""

from collections.abc import Hashable, Sequence
from os.path import exists, isdir  # Path's own raises for names that are too long
from pathlib import Path

import numpy as np

from peftbench.config.spec import DataSpec, TaskSpec
from peftbench.data.hub import read_hub
from peftbench.data.split import Split, checked_split
from peftbench.data.tsv import read_table
from peftbench.ground.errors import ConfigError, DataError, shown, warn
from peftbench.ground.files import expanded, stamp
from peftbench.ground.quantity import quantity

SAMPLE = Path(__file__).resolve().parent / "sample"


def load(data: DataSpec, task: TaskSpec, splits: Sequence[str]) -> dict[str, Split]:
    """Read the named splits of a task.

    Raises:
        ConfigError: the task does not say where the source has a split.
        DataError: a folder, file, column, text or label is missing or wrong (with file and line, or with the Hub's
            row), a split is empty, or the Hub cannot be reached (the line says which sources would work).
    """
    _check_splits(data, task, splits)
    read = read_hub if data.source == "hub" else _read_folder
    loaded = {split: read(data, task, split) for split in splits}
    for split in loaded.values():
        if len(split) == 0:
            raise DataError(f"data={data.name}: {task.name}/{split.name} has no rows")
    if data.limit is None:
        return loaded
    return {name: split.rows(np.arange(min(data.limit, len(split))), name) for name, split in loaded.items()}


def stamps(data: DataSpec, task: TaskSpec, splits: Sequence[str]) -> list[Hashable]:
    """What changes when the files of a folder or of the sample do; nothing for the Hub's copy.

    Raises:
        ConfigError: as `load`.
    """
    _check_splits(data, task, splits)
    if data.source == "hub":
        return []
    folder = _root(data) / task.folder.name
    return [stamp(folder / task.folder.files[split]) for split in splits]


def absent(data: DataSpec, task: TaskSpec) -> str | None:
    """Why a source has no rows of a task at all, as far as folders show; None: it may have them."""
    if data.source == "hub":
        return None
    try:
        _folder(data, task)
    except DataError as error:
        return str(error)
    return None


def _check_splits(data: DataSpec, task: TaskSpec, splits: Sequence[str]) -> None:
    key, known = ("hub.splits", task.hub.splits) if data.source == "hub" else ("folder.files", task.folder.files)
    if absent := [split for split in splits if split not in known]:
        raise ConfigError(f"task.{key}: does not say where '{absent[0]}' is")


def _root(data: DataSpec) -> Path:
    if data.source == "sample":
        return SAMPLE
    try:
        return expanded(str(data.path))
    except RuntimeError:
        raise DataError(f"data.path={shown(data.path)}: there is no such home") from None


def _read_folder(data: DataSpec, task: TaskSpec, split: str) -> Split:
    path = _folder(data, task) / task.folder.files[split]
    layout, public = task.folder, split not in task.test
    columns = (*layout.text, *([layout.label] if public else []))
    table = read_table(path, columns, layout.columns.get(split, ()), layout.skip_incomplete)
    if table.left_out:
        warn(
            f"{table.path}: {quantity(table.left_out, 'line')} of other than {quantity(table.width, 'field')} left out"
        )
    texts = {column: table.columns[column] for column in layout.text}
    labels = table.columns[layout.label] if public else None
    classes = layout.label_values or task.labels or ()
    return checked_split(
        task, split, texts, labels, classes, lambda row: f"{table.path}, line {table.lines[row]} ({split}, row {row})"
    )


def _folder(data: DataSpec, task: TaskSpec) -> Path:
    root, name = _root(data), task.folder.name
    if data.source == "sample":
        if not isdir(root / name):
            available = sorted(path.name for path in root.iterdir() if path.is_dir())
            raise DataError(
                f"data=sample: has no {task.name}, only {', '.join(available)}; "
                "use data=hub or data=folder data.path=..."
            )
    elif not isdir(root):
        raise DataError(f"data.path={shown(root, 80)}: {'not a folder' if exists(root) else 'no such folder'}")
    elif not isdir(root / name):
        raise DataError(
            f"data.path={shown(root, 80)}: has no folder {name} (the official download's name for {task.name})"
        )
    return root / name
