"""Folders that a command writes to."""

import tempfile
from pathlib import Path

from peftbench.ground.errors import ConfigError, shown


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
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None


def writable_file(path: Path) -> Path:
    """A file that may be written, its folder made if need be.

    Raises:
        ConfigError: it is a folder, a device or the like, or its folder cannot be written.
    """
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise ConfigError(f"--to {shown(path, 100)}: {'a folder' if path.is_dir() else 'no regular file'}; name a file")
    writable(path.resolve().parent)
    return path


def empty(folder: Path) -> Path:
    """The same of a folder that holds nothing yet.

    Raises:
        ConfigError: it holds something, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already, and not an empty folder; it is left as it is")
    return writable(folder)
