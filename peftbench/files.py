"""The files of a cell by name, files that are either whole or not there, and what is kept of those that were read."""

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

RECORD_FILE = "result.json"
DELTA_FILE = "delta.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that cannot be trusted, out of the way of a good one, and say why."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.bad{number}")
        if not aside.exists():
            break
    try:
        path.rename(aside)
    except OSError as error:
        print(f"{path}: {reason} (it cannot be renamed: {error.strerror})", file=sys.stderr)
        return
    print(f"{path}: {reason}; kept as {aside.name}", file=sys.stderr)


def stamp(path: Path) -> tuple[str, int, int, int] | None:
    """What changes when a file does: its place, size, time and inode. None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino


def keep_last(identity: Callable[P, Hashable]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate what reads for a cell: the next cell of the process is given the same again, if it asks for the same.

    One result is kept, and let go before another is made: a cell's memory stays its own. It is shared, so it must not
    be written to.

    Args:
        identity: of the arguments; decides what is the same.
    """

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        kept: dict[Hashable, T] = {}

        @functools.wraps(read)
        def read_once(*args: P.args, **kwargs: P.kwargs) -> T:
            key = identity(*args, **kwargs)
            if key not in kept:
                kept.clear()
                kept[key] = read(*args, **kwargs)
            return kept[key]

        return read_once

    return decorate
