"""One runner per cell: a lock file with owner and heartbeat; a dead owner's lock is taken over.

An owner whose process can be seen from here is looked for among the processes; of any other nothing but the heartbeat
counts, by the clock of the folder that both share.

The lock of an owner that died before it wrote a checkpoint or a record stays in the folder under another name: a cell
that kills whoever runs it leaves nothing else.
"""

import errno
import hashlib
import json
import os
import stat
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from peftbench.ground.errors import BadInput
from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE, make_folder, remove_drafts, set_aside
from peftbench.study.owners import Owner, lives, read, this_process

FILE = "lock.json"
BEAT = 10.0  # seconds between two heartbeats
DEAD = 60.0  # seconds without one after which an owner elsewhere counts as dead
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
LATE = BEAT + 0.5  # seconds in which such an owner is given another heartbeat
AGAIN = 0.5  # seconds until a second look at a lock that seems to be lost
DIED = f"{FILE}.died-"  # what the name of a dead owner's lock begins with, once it was taken over


class Elsewhere(BadInput):
    """Another runner has the cell."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Lock:
    """The lock of one cell's folder; use it as a context manager, or `take` and `release` it, and ask `held`.

    Attributes:
        held: whether this process has it.
        refused: why the folder cannot be written, where it cannot.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.held = False
        self.refused: str | None = None
        self._token = uuid.uuid4().hex
        self._end = threading.Event()
        self._may_lie_there = False  # a signal may come between the lock and the next line
        self._made: list[Path] = []  # folders made for the lock alone

    def __enter__(self) -> "Lock":
        return self.take()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def take(self) -> "Lock":
        """Try to have it; who does must `release` it."""
        try:
            self._made = make_folder(self.path.parent)
            self._try()
        except OSError as error:
            self.refused = error.strerror or str(error)
            with suppress(OSError):
                self.release()
        except BaseException:
            self.release()
            raise
        return self

    def release(self) -> None:
        """Let it go; nothing happens where it was not held."""
        self._end.set()
        if self._may_lie_there and self._is_ours():
            self.path.unlink(missing_ok=True)
        self.held = self._may_lie_there = False
        made, self._made = self._made, []
        for folder in made:  # a cell that left nothing leaves no folder either
            try:
                folder.rmdir()
            except OSError:
                break

    def check(self) -> None:
        """Nothing may be written by a runner that was paused for so long that another took the cell.

        Raises:
            Elsewhere: the lock is not this one's any more.
            OSError: it cannot be read, twice.
        """
        if not self._is_ours():
            self._withdraw()
            raise Elsewhere(f"{self.path.parent}: this runner was paused and lost the cell; it writes nothing more")

    def _withdraw(self) -> None:
        """This owner lives, whatever the runner thought that took its lock."""
        with suppress(OSError):
            (self.path.parent / _trace(self._token)).unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        """Whether the lock is still this one's. One that seems to be lost is looked at again: whoever takes it for dead
        moves it away for a moment, and a server may stand still.

        Raises:
            OSError: it cannot be read, twice.
        """
        with suppress(OSError):
            if self._is_named():
                return True
        time.sleep(AGAIN)
        return self._is_named()

    def _is_named(self) -> bool:
        holder = read(self.path)
        return holder is not None and holder.token == self._token

    def _try(self) -> None:
        for _ in range(3):
            now = self._create()
            if self.held:
                remove_drafts(self.path.parent)  # an owner that lost the cell cannot put them in place any more
                threading.Thread(target=self._beat, daemon=True).start()
                return
            identity = _identity(self.path)
            if identity is None:  # it was let go meanwhile
                continue
            if not self._is_dead(identity, now) or not self._take_away(identity):
                return

    def _is_dead(self, identity: tuple[int, ...], now: float) -> bool:
        """Whether the owner of the lock that was seen is dead. One elsewhere is given the time of another heartbeat:
        those of all owners are late where the server of the folder stood still.
        """
        if alive(self.path, now):
            return False
        if lives(owner_of(self.path)) is None and _is_file(self.path):
            time.sleep(_grace(self.path, identity))
        return _identity(self.path) == identity

    def _create(self) -> float:
        """Make the lock where there is none; gives the moment (s) by the folder's own clock."""
        draft = self.path.with_name(f".{FILE}.{self._token}")
        try:
            draft.touch()
            now = draft.stat().st_mtime
            draft.write_text(json.dumps(asdict(this_process(self._token, now))))
            self._may_lie_there = True
            self.held = put(draft, self.path)
            if not self.held:  # over a network a lock of our own may be said to have been there
                holder = owner_of(self.path)
                self.held = holder is not None and holder.token == self._token
            self._may_lie_there = self.held
            return now
        finally:
            draft.unlink(missing_ok=True)

    def _take_away(self, identity: tuple[int, ...]) -> bool:
        """Move a dead owner's lock out of the way, unless somebody else did and has it now."""
        if not _is_file(self.path) and _identity(self.path) == identity:
            set_aside(self.path, "no lock")
            return True
        aside = self.path.with_name(f".{FILE}.dead.{self._token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        same = _identity(aside) == identity
        if not same:  # between our look and our move another runner came in, or its heartbeat: give it back
            put(aside, self.path)
        elif (dead := owner_of(aside)) is not None and not _got_further(aside.parent, dead):
            os.replace(aside, aside.parent / _trace(dead.token))
        aside.unlink(missing_ok=True)
        return same

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with suppress(OSError):  # the next beat may be heard again
                if not self._is_ours():
                    self._withdraw()
                    return
                os.utime(self.path)


def alive(path: Path, now: float | None = None) -> bool:
    """Whether the owner of a lock file lives: its process, where that can be seen from here, or else its heartbeat.

    Args:
        path: the lock file.
        now: the moment (s) by the clock of the folder; None: it is asked.
    """
    if (seen := lives(owner_of(path))) is not None:
        return seen
    try:
        info = path.lstat()
    except OSError as error:  # of another kind: nobody can tell for the moment
        return error.errno not in NOT_THERE
    # one from the future beats no more than one from the past
    return stat.S_ISREG(info.st_mode) and abs((clock_of(path.parent) if now is None else now) - info.st_mtime) < DEAD


_late: dict[Path, tuple[tuple[int, ...], float]] = {}  # what seemed dead: as it was, and when it was seen (s)


def is_late(path: Path, now: float) -> bool:
    """Whether a lock is that of an owner elsewhere who seems dead, and may yet be heard: who takes it has to wait.

    Args:
        path: the lock file.
        now: the moment (s) by the clock of the folder.
    """
    identity = _identity(path)
    if identity is None or alive(path, now) or lives(owner_of(path)) is not None or not _is_file(path):
        return False
    return _grace(path, identity) > 0


def _grace(path: Path, identity: tuple[int, ...]) -> float:
    """For how long (s) an owner elsewhere who seems dead is still given, since that was first seen here."""
    now = time.monotonic()
    before, since = _late.get(path, (None, now))
    if before != identity:
        since = now
        _late[path] = identity, since
    return max(0.0, since + LATE - now)


def deaths(folder: Path) -> list[Owner]:
    """The owners that died with a cell, and since whose claim nobody got further with it.

    One that still has the lock counts where another died before it.
    """
    try:
        paths = [folder / name for name in sorted(os.listdir(folder)) if name.startswith(DIED)]
    except OSError:
        return []
    if paths and not alive(folder / FILE):
        paths.append(folder / FILE)
    owners = [owner for path in paths if (owner := owner_of(path)) is not None]
    return [owner for owner in owners if not _got_further(folder, owner)]


def forget_deaths(folder: Path) -> None:
    """A runner came to an end with the cell and wrote its record; who calls has the lock."""
    with suppress(OSError):
        for path in folder.glob(f"{DIED}*"):
            path.unlink(missing_ok=True)


def _trace(token: str) -> str:
    return DIED + hashlib.sha256(token.encode()).hexdigest()[:16]


def _got_further(folder: Path, owner: Owner) -> bool:
    """Whether a checkpoint or a record was written after an owner took the lock, by the folder's clock."""
    for name in (CHECKPOINT_FILE, RECORD_FILE):
        with suppress(OSError):
            if owner.since is not None and (folder / name).stat().st_mtime > owner.since:
                return True
    return False


def clock_of(folder: Path) -> float:
    """The moment (s) by the clock of who keeps a folder: its files are dated by it, and machines' own may differ.

    A folder in which no file can be made, not even an empty one, says nothing, and it is this machine's then: that
    does for a look, and no lock can be taken there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # empty: a full disk has room for it
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def owner(path: Path) -> str:
    """Who holds a lock, for a person."""
    holder = owner_of(path)
    return "another runner" if holder is None else str(holder)


def age(path: Path) -> float | None:
    """For how long (s) a lock has been held; None: it does not say."""
    holder = owner_of(path)
    return None if holder is None or holder.since is None else max(0.0, clock_of(path.parent) - holder.since)


def owner_of(path: Path) -> Owner | None:
    """What a lock file says; None: nothing that one of ours would say, or nothing that can be read."""
    try:
        return read(path)
    except OSError:
        return None


def put(draft: Path, path: Path) -> bool:
    """Put a whole file in a place in one step, unless there is one already; gives whether it did."""
    try:
        os.link(draft, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: for a moment the file is there and empty
        pass
    try:
        with path.open("xb") as file:
            file.write(draft.read_bytes())
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _identity(path: Path) -> tuple[int, ...] | None:
    """Another one for another file, and after another heartbeat."""
    try:
        info = path.lstat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_mtime_ns
