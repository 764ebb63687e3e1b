"""Folders that a command writes to."""

import tempfile
from pathlib import Path

from peftbench.ground.errors import ConfigError


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
