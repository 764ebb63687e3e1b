"""The predictions that a run's headline was computed from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peftbench.ground.errors import LONGEST_LINE, DataError, short_line, warn
from peftbench.ground.predictions import columns, numbers, path_of
from peftbench.ground.quantity import quantity
from peftbench.record import Record
from peftbench.report import bootstrap

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


def logits(run: Path, record: Record) -> np.ndarray:
    """Logits (rows, labels) of the split that a record's headline is of.

    Raises:
        DataError: the file cannot be read, is not of predictions, or lacks a label's logits.
    """
    split = scored_split(record)
    try:
        values = np.array(columns(run, split, record.config["task"]["labels"]), dtype=float)
    except ValueError:
        raise DataError(f"{path_of(run, split)}: a logit is no number") from None
    if not np.isfinite(values).all():
        raise DataError(f"{path_of(run, split)}: a logit is not finite")
    return values


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
    predicted, true = numbers(run, split, record.config["task"]["labels"])
    score = float(bootstrap.whole(metric, predicted[None], true)[0])
    if not abs(score - record.headline.value) < ROUNDING:
        raise DataError(f"{path}: gives the score {score:.4f}, the record says {record.headline.value:.4f}")
    return Scored(metric, predicted, true)


def name_unusable(problems: Sequence[str]) -> None:
    """Say on the terminal which files of predictions are left out: the first, and how many more."""
    if problems:
        others = f"; and {quantity(len(problems) - 1, 'more file')} of predictions" if len(problems) > 1 else ""
        warn(f"left out: {short_line(problems[0], LONGEST_LINE - 10 - len(others))}{others}")
