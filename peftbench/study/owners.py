"""Who holds a lock, as its file says, and whether that process can be seen to live.

It is looked for in the same process namespace of the same start of the same host alone, and known by its own start.
"""

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from peftbench.ground.errors import shown
from peftbench.ground.untrusted import read_json

LONGEST = 4096  # bytes of a lock file


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        started: when the process was started, by its kernel's clock, since numbers are given out again.
        boot: names this start of the host; empty: nothing does.
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
        """Whether its number means a process that can be seen from here; a start that has no name may be another."""
        here = socket.gethostname(), boot_id(), _namespace()
        return self.boot != "" and (self.host, self.boot, self.namespace) == here


def this_process(token: str, since: float) -> Owner:
    """The owner that this process is.

    Args:
        token: of the lock.
        since: the moment (s), by the clock of the folder.
    """
    pid = os.getpid()
    seen = seen_of(pid)
    return Owner(pid, socket.gethostname(), seen and seen[1], boot_id(), _namespace(), token, since)


def read(path: Path) -> Owner | None:
    """What a lock file says; None: it is not there, or says nothing that one of ours would.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return _adapter().validate_python(read_json(path, LONGEST))
    except (FileNotFoundError, ValueError):  # pydantic's error is one
        return None


def lives(owner: Owner | None) -> bool | None:
    """Whether an owner's process lives; None: that cannot be seen from here, and its heartbeat counts."""
    if owner is None or not owner.is_near():
        return None
    if (seen := seen_of(owner.pid)) is not None and owner.started is not None:
        state, started = seen
        return state not in ("Z", "X") and started == owner.started
    return False if _is_gone(owner.pid) else None  # /proc may hide the processes of other users


@functools.cache
def _adapter() -> TypeAdapter[Owner]:
    return TypeAdapter(Owner)


def boot_id() -> str:
    """What names this start of the host; empty: nothing does."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def seen_of(pid: int) -> tuple[str, str] | None:
    """The state of a process, and when it was started; None: it cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def _is_gone(pid: int) -> bool:
    if pid < 1:  # these name groups of processes
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's, who lives
        pass
    return False
