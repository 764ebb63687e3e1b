"""The files of a cell by name, and files that are either whole or not there."""

import os
import sys
import tempfile
from pathlib import Path

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
