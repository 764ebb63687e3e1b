"""One runner per cell: a lock file with owner, host and heartbeat; a dead owner's lock is taken over."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "lock.json"
BEAT = 10.0  # seconds between two heartbeats
DEAD = 60.0  # seconds without one after which an owner on another host counts as dead


class Lock:
    """The lock of one cell's folder; use it as a context manager, and ask `held` within.

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
        try:
            self._make_folder()
            self._take()
        except OSError as error:
            self.refused = error.strerror or str(error)
        return self

    def _take(self) -> None:
        for _ in range(3):
            if self._create():
                self.held = True
                threading.Thread(target=self._beat, daemon=True).start()
                return
            if alive(self.path) or not self._take_away():
                return

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._end.set()
        if self.held and _content(self.path).get("token") == self._token:
            self.path.unlink(missing_ok=True)
        self.held = False
        for folder in self._made:  # a cell that left nothing leaves no folder either
            try:
                folder.rmdir()
            except OSError:
                break

    def _make_folder(self) -> None:
        folder = self.path.parent
        while not folder.exists():
            self._made.append(folder)
            folder = folder.parent
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def _create(self) -> bool:
        """Make the file with its content in one step: a link to a finished file, which fails where there is one."""
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "token": self._token,
            "started": _started(os.getpid()),
        }
        draft = self.path.with_name(f".{FILE}.{self._token}")
        try:
            draft.write_text(json.dumps(owner))
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _take_away(self) -> bool:
        """Move a dead owner's lock out of the way, unless somebody else did and has it now."""
        dead = _content(self.path)
        aside = self.path.with_name(f".{FILE}.dead.{self._token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return True
        taken = _content(aside)
        if taken != dead:  # between our look and our move another runner came in: give it back
            try:
                os.link(aside, self.path)
            except FileExistsError:
                pass
        aside.unlink(missing_ok=True)
        return taken == dead

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:
                return


def alive(path: Path) -> bool:
    """Whether the owner of a lock file lives: its process on this host, or else a fresh heartbeat."""
    owner = _content(path)
    if not owner:
        return path.exists() and time.time() - path.stat().st_mtime < DEAD
    if owner.get("host") == socket.gethostname():
        started = _started(int(owner["pid"]))
        return started is not None and started == owner.get("started")
    try:
        return time.time() - path.stat().st_mtime < DEAD
    except OSError:
        return False


def owner(path: Path) -> str:
    """Who holds a lock, for a person."""
    found = _content(path)
    return f"process {found.get('pid', '?')} on {found.get('host', '?')}"


def _content(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "pid" in found else {}


def _started(pid: int) -> str | None:
    """When a process was started, by the kernel's clock, since numbers are given out again; None: it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:  # no Linux: the number alone must do
            os.kill(pid, 0)
        except OSError:
            return None
        return "unknown"
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]
