"""A run's predictions, read back from its folder."""

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.ground import strangers
from peftbench.ground.errors import LONGEST_LINE, DataError, short_line, shown
from peftbench.record import Record
from peftbench.report import bootstrap

MOST_BYTES = 256 << 20  # of a file of predictions; QQP's test split has 391,000 rows
COLUMNS = ("index", "prediction", "label")
ROUNDING = 1e-3  # by which a score from stored predictions may miss the recorded one


@dataclass(frozen=True)
class Scored:
    """What a headline was computed from.

    Attributes:
        metric: its plain name, a key of `bootstrap.METRICS`.
        predictions, labels: class ids, or numbers of a regression (rows,).
    """

    metric: str
    predictions: np.ndarray
    labels: np.ndarray


def path_of(run: Path, split: str) -> Path:
    """Where the predictions of a split lie."""
    return run / "predictions" / f"{split}.tsv"


def read(run: Path, split: str) -> list[tuple[str, str]]:
    """(prediction, label) of every row; the label is empty where it is not public.

    Raises:
        DataError: the file cannot be read, or is not of predictions.
    """
    return [(prediction, label) for prediction, label in _columns(path_of(run, split), COLUMNS[1:])]


def logits(run: Path, record: Record) -> np.ndarray:
    """Logits (rows, labels) of the split that a record's headline is of.

    Raises:
        DataError: the file cannot be read, is not of predictions, or lacks a label's logits.
    """
    path = path_of(run, scored_split(record))
    try:
        values = np.array(_columns(path, record.config["task"]["labels"]), dtype=float)
    except ValueError:
        raise DataError(f"{path}: a logit is no number") from None
    if not np.isfinite(values).all():
        raise DataError(f"{path}: a logit is not finite")
    return values


def _columns(path: Path, names: Sequence[str]) -> list[tuple[str, ...]]:
    """These columns of a file of predictions, row by row."""
    try:
        text = strangers.read_bytes(path, MOST_BYTES).decode("utf-8")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        head = next(rows, [])
        index, *places = [head.index(column) for column in (COLUMNS[0], *names)]
        found = []
        for number, row in enumerate(rows):
            if row[index] != str(number):
                raise ValueError(f"row {number} has the index {shown(row[index])}")
            found.append(tuple(row[place] for place in places))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except IndexError:
        raise DataError(f"{path}: a row has too few columns") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a file of predictions ({error})") from None
    return found


def scored_split(record: Record) -> str:
    """The split that a record's headline is of."""
    ending = record.headline.name.rpartition("_")[2]
    return f"dev_{ending}" if ending in ("matched", "mismatched") else "dev"


def headline(run: Path, record: Record) -> Scored | None:
    """The predictions that a record's headline was computed from; None where they are not stored.

    Raises:
        DataError: they cannot be read, or give another score than the recorded one.
    """
    split = scored_split(record)
    path, metric = path_of(run, split), record.headline.name.removesuffix(split.removeprefix("dev"))
    if metric not in bootstrap.METRICS or record.headline.value is None or not path.exists():
        return None
    rows = read(run, split)
    labels = record.config["task"]["labels"]
    try:
        number = {label: float(place) for place, label in enumerate(labels)}.__getitem__ if labels else float
        predicted, true = (np.array([number(word) for word in side]) for side in zip(*rows, strict=True))
    except (KeyError, ValueError):
        raise DataError(f"{path}: a row is not of this task") from None
    if not np.isfinite([predicted, true]).all():
        raise DataError(f"{path}: a number is not finite")
    score = float(bootstrap.whole(metric, predicted[None], true)[0])
    if not abs(score - record.headline.value) < ROUNDING:
        raise DataError(f"{path}: gives the score {score:.4f}, the record says {record.headline.value:.4f}")
    return Scored(metric, predicted, true)


def name_unusable(problems: Sequence[str]) -> None:
    """Say on the terminal which files of predictions are left out: the first, and how many more."""
    if problems:
        others = f"; and {len(problems) - 1} more files of predictions" if len(problems) > 1 else ""
        print(f"left out: {short_line(problems[0], LONGEST_LINE - 10 - len(others))}{others}", file=sys.stderr)
