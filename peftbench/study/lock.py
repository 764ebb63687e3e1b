"""One runner per cell: a lock file with owner and heartbeat; a dead owner's lock is taken over.

An owner in the same process namespace of the same start of the same host is looked for among the processes; of any
other nothing but the heartbeat counts, by the clock of the folder that both share.

The lock of an owner that died before it wrote a checkpoint or a record stays in the folder under another name: a cell
that kills whoever runs it leaves nothing else.
"""

import functools
import hashlib
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter

from peftbench.ground.errors import BadInput, shown
from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE, make_folder, remove_drafts, set_aside
from peftbench.ground.strangers import read_json

FILE = "lock.json"
BEAT = 10.0  # seconds between two heartbeats
DEAD = 60.0  # seconds without one after which an owner elsewhere counts as dead
LONGEST = 4096  # bytes of a lock file
DIED = f"{FILE}.died-"  # what the name of a dead owner's lock begins with, once it was taken over


class Elsewhere(BadInput):
    """Another runner has the cell."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        started: when the process was started, by its kernel's clock, since numbers are given out again.
        boot: names this start of the host.
        namespace: names the set of processes that the number is one of.
        token: names the lock itself.
        since: when it was taken (s), by the clock of the folder; None in locks of before version 0.4.
    """

    pid: int
    host: str
    started: str | None
    boot: str
    namespace: str
    token: str
    since: float | None = None

    def __str__(self) -> str:
        return f"process {self.pid} on {shown(self.host)}"

    def is_near(self) -> bool:
        """Whether its number means a process that can be seen from here."""
        return (self.host, self.boot, self.namespace) == (socket.gethostname(), _boot(), _namespace())


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
        return self

    def release(self) -> None:
        """Let it go; nothing happens where it was not held."""
        self._end.set()
        if self.held and self._is_ours():
            self.path.unlink(missing_ok=True)
        self.held = False
        for folder in self._made:  # a cell that left nothing leaves no folder either
            try:
                folder.rmdir()
            except OSError:
                break

    def check(self) -> None:
        """Nothing may be written by a runner that was paused for so long that another took the cell.

        Raises:
            Elsewhere: the lock is not this one's any more.
        """
        if not self._is_ours():
            self._withdraw()
            raise Elsewhere(f"{self.path.parent}: this runner was paused and lost the cell; it writes nothing more")

    def _withdraw(self) -> None:
        """This owner lives, whatever the runner thought that took its lock."""
        with suppress(OSError):
            (self.path.parent / _trace(self._token)).unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        holder = owner_of(self.path)
        return holder is not None and holder.token == self._token

    def _try(self) -> None:
        for _ in range(3):
            now = self._create()
            if self.held:
                remove_drafts(self.path.parent)  # an owner that lost the cell cannot put them in place any more
                threading.Thread(target=self._beat, daemon=True).start()
                return
            identity = _identity(self.path)
            if alive(self.path, now) or not self._take_away(identity):
                return

    def _create(self) -> float:
        """Make the lock where there is none; gives the moment (s) by the folder's own clock."""
        pid = os.getpid()
        draft = self.path.with_name(f".{FILE}.{self._token}")
        try:
            draft.touch()
            now = draft.stat().st_mtime
            this_process = Owner(pid, socket.gethostname(), _started(pid), _boot(), _namespace(), self._token, now)
            draft.write_text(json.dumps(asdict(this_process)))
            self.held = _put(draft, self.path)
            return now
        finally:
            draft.unlink(missing_ok=True)

    def _take_away(self, identity: tuple[int, ...] | None) -> bool:
        """Move a dead owner's lock out of the way, unless somebody else did and has it now."""
        if identity is not None and not _is_file(self.path):
            set_aside(self.path, "no lock")
            return True
        aside = self.path.with_name(f".{FILE}.dead.{self._token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        same = _identity(aside) == identity
        if not same:  # between our look and our move another runner came in, or its heartbeat: give it back
            _put(aside, self.path)
        elif (dead := owner_of(aside)) is not None and not _got_further(aside.parent, dead):
            os.replace(aside, aside.parent / _trace(dead.token))
        aside.unlink(missing_ok=True)
        return same

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                if not self._is_ours():
                    self._withdraw()
                    return
                os.utime(self.path)
            except OSError:
                return


def alive(path: Path, now: float | None = None) -> bool:
    """Whether the owner of a lock file lives: its process, where that can be seen from here, or else its heartbeat.

    Args:
        path: the lock file.
        now: the moment (s) by the clock of the folder; None: it is asked.
    """
    owner = owner_of(path)
    if owner is not None and owner.is_near():
        started = _started(owner.pid)
        return started is not None and started == owner.started
    if not _is_file(path):
        return False
    try:  # a lock from the future beats no more than one from the past
        return abs((clock_of(path.parent) if now is None else now) - path.stat().st_mtime) < DEAD
    except OSError:
        return False


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

    A folder that cannot be written says nothing; it is this machine's then.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
            file.flush()
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
    """What a lock file says; None: nothing that one of ours would say."""
    try:
        return _adapter().validate_python(read_json(path, LONGEST))
    except (OSError, ValueError):  # pydantic's error is one
        return None


@functools.cache
def _adapter() -> TypeAdapter[Owner]:
    return TypeAdapter(Owner)


def _put(draft: Path, path: Path) -> bool:
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
        stat = path.lstat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process was started; None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:  # no Linux: the number alone must do
            os.kill(pid, 0)
        except (OSError, OverflowError):
            return None
        return "unknown"
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
