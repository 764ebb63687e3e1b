"""Where the rows come from: the Hub, a folder in the layout of the official download, or the built-in sample."""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.config.spec import DataSpec, TaskSpec
from peftbench.errors import DataError
from peftbench.files import stamp

SAMPLE = Path(__file__).resolve().parent / "sample"


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        name: our name of the split (train, dev, dev_matched, test, ...).
        texts: one tuple of strings per text column, rows long.
        labels: class ids (rows,) int64, scores (rows,) float32 for a regression, or None where they are not public.
        sha256: hash of texts and labels.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray | None
    sha256: str

    def __len__(self) -> int:
        return len(self.texts[0])

    def rows(self, keep: np.ndarray, name: str) -> "Split":
        """The rows with these numbers, as a split of another name."""
        texts = tuple(tuple(column[i] for i in keep) for column in self.texts)
        labels = None if self.labels is None else self.labels[keep]
        return make_split(name, texts, labels)


def make_split(name: str, texts: tuple[tuple[str, ...], ...], labels: np.ndarray | None) -> Split:
    """A split with its hash."""
    hashed = hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode())
    hashed.update(b"" if labels is None else labels.tobytes())
    return Split(name, texts, labels, hashed.hexdigest())


def load(data: DataSpec, task: TaskSpec, splits: Sequence[str]) -> dict[str, Split]:
    """Read the named splits of a task.

    Raises:
        DataError: a folder, file, column or label is missing or wrong (with file and line), a split is empty, or
            the Hub cannot be reached (the line says which sources would work).
    """
    readers: dict[str, Callable[[DataSpec, TaskSpec, str], Split]] = {
        "hub": _from_hub,
        "folder": lambda data, task, split: _from_folder(Path(str(data.path)).expanduser(), task, split),
        "sample": _from_sample,
    }
    found = {split: readers[data.source](data, task, split) for split in splits}
    for split in found.values():
        if len(split) == 0:
            raise DataError(f"data={data.name}: {task.name}/{split.name} has no rows")
    if data.limit is None:
        return found
    return {name: split.rows(np.arange(min(data.limit, len(split))), name) for name, split in found.items()}


def stamps(data: DataSpec, task: TaskSpec, splits: Sequence[str]) -> list[Hashable]:
    """What changes when the files of a folder or of the sample do; nothing for the Hub's copy."""
    if data.source == "hub":
        return []
    folder = (SAMPLE if data.source == "sample" else Path(str(data.path)).expanduser()) / task.folder.name
    return [stamp(folder / task.folder.files[split]) for split in splits]


def _from_sample(data: DataSpec, task: TaskSpec, split: str) -> Split:
    if not (SAMPLE / task.folder.name).is_dir():
        available = sorted(path.name for path in SAMPLE.iterdir() if path.is_dir())
        raise DataError(
            f"data=sample: has no {task.name}, only {', '.join(available)}; use data=hub or data=folder data.path=..."
        )
    return _from_folder(SAMPLE, task, split)


def _from_hub(data: DataSpec, task: TaskSpec, split: str) -> Split:
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries; what comes of them is said below in one line
    try:
        rows = load_dataset(str(data.path), task.hub.config, revision=data.revision, split=task.hub.splits[split])
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data=hub: cannot read {data.path} ({task.hub.config}, {task.hub.splits[split]}): "
            f"{type(error).__name__}; data=folder data.path=<the official download> and data=sample need no network"
        ) from None
    for column in (*task.hub.text, task.hub.label):
        if column not in rows.column_names:
            raise DataError(
                f"data=hub: {data.path} ({task.hub.config}, {split}) has no column '{column}', only {rows.column_names}"
            )
    texts = tuple(tuple(rows[column]) for column in task.hub.text)
    labels = np.asarray(rows[task.hub.label], dtype=np.int64 if task.labels else np.float32)
    known = split not in task.test and bool(np.greater_equal(labels, 0).all())
    return make_split(split, texts, labels if known else None)


def _from_folder(root: Path, task: TaskSpec, split: str) -> Split:
    folder = root / task.folder.name
    if not root.is_dir():
        raise DataError(f"data.path={root}: no such folder")
    if not folder.is_dir():
        raise DataError(
            f"data.path={root}: has no folder {task.folder.name} (the official download's name for {task.name})"
        )
    path = folder / task.folder.files[split]
    if not path.is_file():
        raise DataError(f"{path}: no such file ({task.name}'s {split} split)")
    return _read_tsv(path, task, split)


def _read_tsv(path: Path, task: TaskSpec, split: str) -> Split:
    """Read a GLUE file: tab-separated, nothing quoted, perhaps a byte-order mark, perhaps no header line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    numbered = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, 1) if line.strip("\r")]
    columns = list(task.folder.columns.get(split, ()))
    if not columns and numbered:
        columns = numbered.pop(0)[1]
    public = split not in task.test
    places = {
        name: _column(path, columns, name) for name in (*task.folder.text, *([task.folder.label] if public else []))
    }
    if task.folder.skip_incomplete:
        numbered = [(number, fields) for number, fields in numbered if len(fields) == len(columns)]
    for number, fields in numbered:
        if len(fields) != len(columns):
            raise DataError(f"{path}, line {number}: {len(fields)} fields where the file has {len(columns)} columns")
    texts = tuple(tuple(fields[places[name]] for _, fields in numbered) for name in task.folder.text)
    if not public:
        return make_split(split, texts, None)
    at = places[task.folder.label]
    values = [_label(path, number, fields[at], task) for number, fields in numbered]
    return make_split(split, texts, np.asarray(values, dtype=np.int64 if task.labels else np.float32))


def _column(path: Path, columns: list[str], name: str) -> int:
    if name not in columns:
        raise DataError(f"{path}, line 1: no column '{name}', only {', '.join(columns) or 'nothing'}")
    return columns.index(name)


def _label(path: Path, number: int, text: str, task: TaskSpec) -> float:
    if task.labels is None:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise DataError(f"{path}, line {number}: the score '{text}' is not a number")
        if task.score_range and not task.score_range[0] <= value <= task.score_range[1]:
            raise DataError(f"{path}, line {number}: the score {text} is outside {list(task.score_range)}")
        return value
    allowed = task.folder.label_values or task.labels
    if text not in allowed:
        raise DataError(f"{path}, line {number}: unknown label '{text}', allowed: {', '.join(allowed)}")
    return allowed.index(text)
