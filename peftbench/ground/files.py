"""The files of a cell by name, files that are either whole or not there, and what is kept of those that were read."""

import errno
import functools
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from os.path import isdir  # Path's own raises for names that are too long
from pathlib import Path
from typing import ParamSpec, TypeVar

from peftbench.ground.errors import ConfigError, near, shown, warn

P = ParamSpec("P")
T = TypeVar("T")

RECORD_FILE = "result.json"
DELTA_FILE = "delta.safetensors"
CHECKPOINT_FILE = "checkpoint.safetensors"
METRICS_FILE = "metrics.jsonl"  # losses and scores, as training went
END_FILE = "end.json"  # of a line of artefacts
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spm.model", "spiece.model", "tokenizer.model"),
)
STUDY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")  # a name of one, which is a folder's
YOUNG = 2.0  # seconds; clocks of file systems tick in up to this many


def write_atomically(path: Path, content: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Write a file in one step: a reader sees the old content or the new, also after a crash or a power loss.

    Args:
        check: called when the draft is whole, just before it is put in place; what it raises leaves the old content.
            Where somebody removed the draft after that, it is called again, to say why.

    Raises:
        OSError: it cannot be written; `filename` is the path.
    """
    temporary = None
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        check()
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            check()
            raise
        _sync(path.parent)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def remove_drafts(folder: Path) -> None:
    """Remove what `write_atomically` has not put in place yet: who still wanted to cannot any more."""
    names = (RECORD_FILE, DELTA_FILE, CHECKPOINT_FILE, END_FILE)
    drafts = [path for name in names for path in folder.glob(f".{name}.*")]
    for path in [*drafts, *folder.glob("predictions/.*.tsv.*")]:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with those above it, to be there after a power loss too; gives those that were made, it first."""
    folders = []
    above = folder
    while not above.exists():
        folders.append(above)
        above = above.parent
    folder.mkdir(parents=True, exist_ok=True)
    for new in folders:
        _sync(new.parent)
    return folders


def expanded(path: str | Path) -> Path:
    """A path that a person gave, its ~ made the home folder.

    Raises:
        ConfigError: it begins with ~ and there is no home (no HOME, and the user's number is in no list of users).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{shown(path, 100)}: this user has no home folder; give the path without ~") from None


def check_study(study: str, before: str = "study ") -> None:
    """Refuse what is no name of a study, as `..` or a path: there may be such a folder.

    Args:
        before: what the line that refuses begins with.

    Raises:
        ConfigError: it is none.
    """
    if not STUDY.fullmatch(study):
        named = shown(study) or "''"
        raise ConfigError(f"{before}{named}: no name of a study, which has letters, digits, '.', '_' and '-'")


def study_folder(outputs: Path, study: str, before: str = "study ") -> Path:
    """The folder of a study that is there.

    Args:
        before: what the line that refuses begins with.

    Raises:
        ConfigError: there is no such study, or what is given is no name of one.
    """
    check_study(study, before)
    if isdir(outputs / study):
        return outputs / study
    known = [path.name for path in outputs.iterdir() if path.is_dir()] if isdir(outputs) else []
    hint = near(study, known) if known else "it holds none"
    raise ConfigError(f"{before}{shown(study)}: there is none under {shown(outputs, 80)}; {hint}")


def place(folder: Path, outputs: Path) -> str:
    """A run's folder as records name it: under `outputs`, or absolute where it lies elsewhere."""
    here, there = folder.resolve(), outputs.resolve()
    return str(here.relative_to(there) if here.is_relative_to(there) else here)


def cache_folder(path: str) -> Path:
    """The folder of caches; who has no home has one of their own among the temporary files.

    Raises:
        ConfigError: that one is somebody else's.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        own = Path(tempfile.gettempdir()) / f"peftbench-{os.geteuid()}"
    try:
        return private_folder(own)
    except OSError as error:
        raise ConfigError(f"cache={shown(path)}: no home, and {own} cannot be used ({error.strerror})") from None


def private_folder(folder: Path) -> Path:
    """A folder that nobody but us may write, made if need be.

    Raises:
        OSError: it cannot be made, or others may write it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write it", str(folder))
    return folder


def _sync(folder: Path) -> None:
    """Let the names in a folder survive a power loss; not every file system can promise that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def set_aside(path: Path, reason: str) -> None:
    """Rename a file that cannot be trusted, out of the way of a good one, and say why."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.bad{number}")
        if not aside.exists():
            break
    try:
        path.rename(aside)
    except OSError as error:
        warn(f"{path}: {reason} (it cannot be renamed: {error.strerror})")
        return
    warn(f"{path}: {reason}; kept as {aside.name}")


def stamp(path: Path) -> tuple[str, int, int, int, int] | None:
    """What changes when a file does: its place, size, time, moment of change and inode. None: it is not there.

    The time of a file can be set back; the moment of change cannot.
    """
    try:
        info = path.stat()
    except OSError:
        return None
    return str(path.resolve()), info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


def sha256_of(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files.

    Raises:
        OSError: one cannot be read.
    """
    sha256 = hashlib.sha256()
    for path in paths:
        sha256.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return sha256.hexdigest()


def beside_weights(folder: Path) -> list[Path]:
    """The configuration and the tokenizer's files that lie in a folder of weights."""
    paths = (folder / name for name in ("config.json", *TOKENIZER_FILES))
    return [path for path in paths if path.is_file()]  # a pipe would hold us up


def settled(stamp: tuple[str, int, int, int, int] | None) -> bool:
    """Whether a file with this stamp was left alone for a while: another change would then give it another time."""
    return stamp is not None and time.time() - max(stamp[2], stamp[3]) / 1e9 > YOUNG


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
