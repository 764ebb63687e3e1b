"""Folders and files that a command writes to."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftbench.ground.errors import BadInput, ConfigError, shown


def writable(folder: Path) -> Path:
    """The folder, made if need be.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(f"{shown(folder, 100)}: cannot be written ({error.strerror})") from None


def writable_file(path: Path, switch: str = "--to") -> Path:
    """A file that may be written, its folder made if need be.

    Args:
        switch: that names it.

    Raises:
        ConfigError: it is a folder, a device or the like, or its folder cannot be written.
    """
    try:
        is_folder = path.is_dir()
        if is_folder or (path.exists() and not path.is_file()):
            problem = "a folder" if is_folder else "no regular file"
            raise ConfigError(f"{switch} {shown(path, 100)}: {problem}; name a file")
        folder = path.resolve().parent
    except OSError as error:
        raise ConfigError(f"{switch} {shown(path, 100)}: cannot be written ({error.strerror})") from None
    try:
        writable(folder)
    except ConfigError as error:
        raise ConfigError(f"{switch} {shown(path, 100)}: {error.every[0]}") from None
    return path


def empty(folder: Path) -> Path:
    """The same of a folder that holds nothing yet.

    Raises:
        ConfigError: it holds something, or cannot be written.
    """
    try:
        is_taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise ConfigError(f"{shown(folder, 100)}: cannot be written ({error.strerror})") from None
    if is_taken:
        raise ConfigError(f"{shown(folder, 100)}: is there already, and not an empty folder; it is left as it is")
    return writable(folder)


@contextmanager
def kept_if_used(folder: Path, made: Callable[[Path], Path] = writable) -> Iterator[Path]:
    """A folder that can be written; where the input is refused then, nothing of it is left that was not there.

    Args:
        made: makes it, or refuses it: `writable` or `empty`.

    Raises:
        ConfigError: it is refused.
    """
    absent = [one for one in (folder, *folder.parents) if not _is_there(one)]
    try:
        made(folder)
        yield folder
    except BadInput:
        with suppress(OSError):  # something lies there
            for one in absent:
                one.rmdir()
        raise


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its name is too long
        return False
