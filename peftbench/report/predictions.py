"""A run's predictions, read back from its folder."""

import csv
import io
from pathlib import Path

from peftbench.ground import strangers
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
