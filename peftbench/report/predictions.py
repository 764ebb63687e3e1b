"""A run's predictions, read back from its folder."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.ground import strangers
from peftbench.ground.errors import DataError, shown
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
    path = path_of(run, split)
    try:
        text = strangers.read_bytes(path, MOST_BYTES).decode("utf-8")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        head = next(rows, [])
        places = [head.index(column) for column in COLUMNS]
        index, prediction, label = places
        predicted = []
        for number, row in enumerate(rows):
            if row[index] != str(number):
                raise ValueError(f"row {number} has the index {shown(row[index])}")
            predicted.append((row[prediction], row[label]))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except IndexError:
        raise DataError(f"{path}: a row has too few columns") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a file of predictions ({error})") from None
    return predicted


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
