"""A table of text: a file in the form of the official downloads, for training and for predictions alike."""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.ground.errors import DataError, shown
from peftbench.ground.quantity import quantity

MAX_BYTES = 2**30  # MNLI's train.tsv has 78 million


@dataclass(frozen=True)
class Table:
    """Some columns of a file.

    Attributes:
        path: the file, as a message may hold it.
        columns: name -> the fields of every row.
        lines: of every row, the number of its line from 1.
        left_out: lines that were left out, since they have other than `width` fields.
    """

    path: str
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]
    left_out: int = 0
    width: int = 0


def read_table(path: Path, needed: Sequence[str], head: Sequence[str] = (), skip_incomplete: bool = False) -> Table:
    """Read the wanted columns of a file: UTF-8, tab-separated, nothing quoted, perhaps a byte-order mark.

    Lines end in LF or CRLF. Each is one row, so an empty one is refused; only those at the end of the file are left
    out.

    Args:
        head: the names of all columns, for files whose first line is a row; otherwise that line holds them.
        skip_incomplete: leave out rows of other than so many fields instead of refusing the file.

    Raises:
        DataError: it is no file that can be read, it is not of that form (with the line), or it has no rows.
    """
    name = shown(path, 80)
    lines = list(enumerate(_lines(path, name), 1))
    if not lines:
        raise DataError(f"{name}: has no rows")
    if not head:
        first = lines.pop(0)[1]
        head = first.split("\t")
        if fault := _misshapen(first, len(head)) or _wrong_head(first, head, needed):
            raise DataError(f"{name}, line 1: {fault}")
    elif absent := [column for column in needed if column not in head]:
        raise DataError(f"{name}: no column '{shown(absent[0])}', only {shown(', '.join(head))}")
    rows = []
    for number, line in lines:
        if not (fault := _misshapen(line, len(head))):
            rows.append((number, line.split("\t")))
        elif not skip_incomplete:
            raise DataError(f"{name}, line {number}: {fault}")
    if not rows:
        raise DataError(f"{name}: has no rows")
    places = {column: list(head).index(column) for column in needed}
    columns = {column: tuple(fields[place] for _, fields in rows) for column, place in places.items()}
    return Table(name, columns, tuple(number for number, _ in rows), len(lines) - len(rows), len(head))


def _lines(path: Path, name: str) -> list[str]:
    """The lines of a file without their ends; no empty ones at its end."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # a pipe would be waited for, a device never ends
            raise DataError(f"{name}: not a regular file")
        if info.st_size > MAX_BYTES:
            raise DataError(f"{name}: {info.st_size:,} bytes, more than the {MAX_BYTES:,} that are read")
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start}") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _misshapen(line: str, width: int) -> str | None:
    """What keeps a line from being a row of so many fields; None: nothing."""
    if "\r" in line:
        return "a CR (carriage return) that ends no line; lines must end in LF or CRLF"
    if not line:
        return "is empty, and every line is a row"
    if (fields := line.count("\t") + 1) == width:
        return None
    comma_separated = fields == 1 and line.count(",") + 1 >= width
    hint = "; it looks comma-separated, fields must be separated by tabs" if comma_separated else ""
    return f"{quantity(fields, 'field')} where the file has {quantity(width, 'column')}{hint}"


def _wrong_head(line: str, head: Sequence[str], needed: Sequence[str]) -> str | None:
    """What keeps a first line from naming every wanted column once; None: nothing."""
    if line not in needed and set(needed) <= {name.strip(' "') for name in line.split(",")}:
        return "the file is comma-separated, columns must be separated by tabs"
    for name in needed:
        if (times := head.count(name)) != 1:
            names = shown(", ".join(head))
            return f"no column '{shown(name)}', only {names}" if not times else f"{times} columns '{shown(name)}'"
    return None
