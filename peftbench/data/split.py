"""Rows of one split, and the one place that decides whether a source's rows are those of the task."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftbench.config.spec import TaskSpec
from peftbench.ground.errors import DataError, shown
from peftbench.ground.seeds import stream

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
LARGEST = float(np.finfo(np.float32).max)


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

    def first(self, most: int) -> "Split":
        """The first rows, at most so many."""
        return self.rows(np.arange(min(most, len(self))), self.name)

    def some(self, most: int | None) -> "Split":
        """At most so many rows, in their order, by a draw of their number alone: files may be sorted by where rows come
        from, as STS-B's and CoLA's are. None: all."""
        if most is None or most >= len(self):
            return self
        drawn = np.random.default_rng(stream(0, "some rows")).permutation(len(self))[:most]
        return self.rows(np.sort(drawn), self.name)

    def without_labels(self) -> "Split":
        """The same rows without what is known of them."""
        return make_split(self.name, self.texts, None)


def make_split(name: str, texts: tuple[tuple[str, ...], ...], labels: np.ndarray | None) -> Split:
    """A split with its hash."""
    hashed = hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode())
    hashed.update(b"" if labels is None else labels.tobytes())
    return Split(name, texts, labels, hashed.hexdigest())


def checked_split(
    task: TaskSpec,
    name: str,
    texts: Mapping[str, Sequence[object]],
    labels: Sequence[object] | None,
    classes: Sequence[str],
    place: Callable[[int], str],
) -> Split:
    """A split of what a source gave for its rows.

    Args:
        texts: column -> its values, rows long.
        labels: names, class ids or scores as the source writes them, rows long; None where they are not public.
        classes: how the source names the classes, in the order of their ids.
        place: of a row by its number from 0, for the line that refuses it.

    Raises:
        DataError: a text is none, or a label is unknown, not finite or outside task.score_range.
    """
    for column, values in texts.items():
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise DataError(f"{place(row)}: '{shown(column)}' is {shown(value)}, not a text")
    columns = tuple(tuple(str(value) for value in values) for values in texts.values())
    if labels is None:
        return make_split(name, columns, None)
    ids = {label: i for i, label in enumerate(classes)}
    numbers = []
    for row, label in enumerate(labels):
        try:
            numbers.append(_class_id(label, ids) if task.labels else _score(label, task.score_range))
        except ValueError as error:
            raise DataError(f"{place(row)}: {error}") from None
    return make_split(name, columns, np.asarray(numbers, dtype=np.int64 if task.labels else np.float32))


def _class_id(label: object, ids: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label in ids:
            return ids[label]
        raise ValueError(f"unknown label '{shown(label, 30)}', allowed: {shown(', '.join(ids), 50)}")
    if type(label) is int and 0 <= label < len(ids):
        return label
    hint = "; a split with labels of -1 belongs to task.test" if label == -1 else ""
    raise ValueError(f"unknown label {shown(label)}, allowed: 0 to {len(ids) - 1}{hint}")


def _score(label: object, bounds: tuple[float, float] | None) -> float:
    number = isinstance(label, int | float) and not isinstance(label, bool)
    number |= isinstance(label, str) and NUMBER.fullmatch(label) is not None
    value = float(str(label)) if number else math.nan
    if not abs(value) <= LARGEST:
        raise ValueError(f"the score '{shown(label)}' is not a number")
    if bounds and not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"the score {shown(label)} is outside {list(bounds)}")
    return value
