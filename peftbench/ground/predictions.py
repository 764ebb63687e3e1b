"""A run's predictions, read back from its folder."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peftbench.ground import untrusted
from peftbench.ground.errors import DataError, shown

MOST_BYTES = 256 << 20  # of a file of predictions; QQP's test split has 391,000 rows
COLUMNS = ("index", "prediction", "label")


def path_of(run: Path, split: str) -> Path:
    """Where the predictions of a split lie."""
    return run / "predictions" / f"{split}.tsv"


def read(run: Path, split: str) -> list[tuple[str, str]]:
    """(prediction, label) of every row; the label is empty where it is not public.

    Raises:
        DataError: the file cannot be read, or is not of predictions.
    """
    return [(prediction, label) for prediction, label in columns(run, split, COLUMNS[1:])]


def columns(run: Path, split: str, names: Sequence[str]) -> list[tuple[str, ...]]:
    """These columns of every row.

    Raises:
        DataError: the file cannot be read, is not of predictions, or lacks a column.
    """
    path = path_of(run, split)
    try:
        text = untrusted.read_bytes(path, MOST_BYTES).decode("utf-8")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        head = next(rows, [])
        index, *places = [head.index(column) for column in (COLUMNS[0], *names)]
        chosen = []
        for number, row in enumerate(rows):
            if row[index] != str(number):
                raise ValueError(f"row {number} has the index {shown(row[index])}")
            chosen.append(tuple(row[place] for place in places))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except IndexError:
        raise DataError(f"{path}: a row has too few columns") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a file of predictions ({error})") from None
    return chosen


def numbers(run: Path, split: str, names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels (rows,): class ids, or numbers of a regression.

    Args:
        run: the run's folder.
        names: of the classes; None for a regression.

    Raises:
        DataError: the file cannot be read, or holds what is not of this task.
    """
    path, rows = path_of(run, split), read(run, split)
    try:
        number = {name: float(place) for place, name in enumerate(names)}.__getitem__ if names else float
        predicted, true = (np.array([number(word) for word in side]) for side in zip(*rows, strict=True))
    except (KeyError, ValueError):
        raise DataError(f"{path}: a row is not of this task") from None
    if not np.isfinite([predicted, true]).all():
        raise DataError(f"{path}: a number is not finite")
    return predicted, true
