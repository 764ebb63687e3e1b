"""Files that somebody else may have made: regular, bounded, and plain JSON or not read at all."""

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

DEEPEST = 40  # levels of lists and mappings
MOST_VALUES = 1_000_000  # of one file; each costs about 100 bytes of memory


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read; FileNotFoundError where it is not there.
        ValueError: it is no regular file (a pipe, a device, a folder), or larger.
    """
    # a pipe without a writer would hold up an open that may block
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", closefd=True) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("not a regular file")
        content = file.read(most + 1) if info.st_size <= most else None
    if content is None or len(content) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return content


def read_json(path: Path, most: int) -> Any:
    """The plain data of a JSON file of at most `most` bytes.

    Raises:
        OSError, ValueError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path, most))


def parse_json(content: bytes | str) -> Any:
    """Plain data: finite numbers of 64 bits, whole characters, not nested without end.

    Raises:
        ValueError: it is not that.
    """
    check_number(content)
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text at byte {error.start}") from None
    check(value)
    return value


def check_number(content: bytes | str, most: int = MOST_VALUES) -> None:
    """See that JSON holds no more values than one of ours, before it is read; a comma in a text counts as one, too.

    Raises:
        ValueError: it may hold more.
    """
    signs = sum(map(content.count, ",[{") if isinstance(content, str) else map(content.count, (b",", b"[", b"{")))
    if signs > most:
        raise ValueError(f"more than {most:,} values")


def check(value: Any) -> None:
    """See that plain data is what `parse_json` gives.

    Raises:
        ValueError: it is not.
    """
    for item in _walk(value):
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("a number is not finite")
        elif isinstance(item, int) and abs(item) >= 2**63:
            raise ValueError("a number has more than 64 bits")


def texts(value: Any) -> Iterator[str]:
    """Every text in plain data, keys included."""
    return (item for item in _walk(value) if isinstance(item, str))


def _walk(value: Any) -> Iterator[Any]:
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        yield from level
        keys = [key for item in level if isinstance(item, dict) for key in item]
        lists = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level, depth = keys + [inner for item in lists if isinstance(item, list) for inner in item], depth + 1


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate)") from None


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
