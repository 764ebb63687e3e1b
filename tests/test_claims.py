"""Claims on folders whose server stands still or errs for a moment, and in the moments at which signals come."""

import errno
import fcntl
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from peftbench.study import index, lock, owners, work
from peftbench.study.index import Planned
from peftbench.study.lock import Elsewhere, Lock
from peftbench.study.queue import Queue
from peftbench.training.stopping import Stopped

LONG = 60.0  # seconds in which a thread surely gets a turn


def fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def written(folder: Path, age: float = 0.0, **changes: object) -> Path:
    """A lock as this process would write it, with changes, by nobody who beats; `age` seconds old."""
    with Lock(folder) as mine:
        owner = json.loads(mine.path.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    mine.path.write_text(json.dumps({**owner, "token": "other", **changes}))
    moment = mine.path.stat().st_mtime - age
    os.utime(mine.path, (moment, moment))
    return mine.path


def waits(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> list[float]:
    """Nothing waits for real: what happens meanwhile is done instead. Gives the seconds that were asked for."""
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        meanwhile()

    monkeypatch.setattr(time, "sleep", sleep)
    return asked


def test_a_heartbeat_goes_on_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors, heard, plain = [fail(errno.EIO), fail(errno.ESTALE)], threading.Event(), os.utime

    def utime(*arguments: Any, **more: Any) -> None:
        if errors:
            raise errors.pop()
        plain(*arguments, **more)
        heard.set()

    monkeypatch.setattr(lock, "BEAT", 0.001)
    monkeypatch.setattr(os, "utime", utime)
    with Lock(tmp_path):
        assert heard.wait(LONG)


def test_a_lock_that_cannot_be_read_for_a_moment_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, errors = lock.read, [fail(errno.EIO)]

    def read(path: Path) -> owners.Owner | None:
        if errors:
            raise errors.pop()
        return plain(path)

    waits(monkeypatch, lambda: None)
    with Lock(tmp_path) as mine:
        monkeypatch.setattr(lock, "read", read)
        mine.check()
        assert not errors
        errors += [fail(errno.EIO)] * 2
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):  # nobody knows, and nothing is written
            mine.check()
        assert lock.alive(mine.path)


def test_a_lock_that_was_moved_away_for_a_moment_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = tmp_path / "aside"
    with Lock(tmp_path) as mine:
        mine.path.rename(aside)
        with monkeypatch.context() as patch:
            waits(patch, lambda: aside.rename(mine.path))
            mine.check()
        mine.path.rename(aside)
        waits(monkeypatch, lambda: None)
        with pytest.raises(Elsewhere):
            mine.check()
        aside.rename(mine.path)


def test_a_lock_that_the_server_made_and_then_denied_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.link

    def link(source: Path, target: Path) -> None:
        plain(source, target)
        raise FileExistsError(errno.EEXIST, "of the second try, whose first had been answered to nobody")

    monkeypatch.setattr(os, "link", link)
    with Lock(tmp_path / "cell") as mine:
        assert mine.held
        mine.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["put", "remove_drafts"])
def test_a_signal_while_a_lock_is_taken_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    plain = getattr(lock, name)

    def interrupted(*arguments: Any) -> None:
        plain(*arguments)
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(lock, name, interrupted)
    with pytest.raises(Stopped):
        Lock(tmp_path / "cell").take()
    assert list(tmp_path.iterdir()) == []


def test_a_signal_between_a_claim_and_its_run_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add(tmp_path / "made", {"a": Planned("made/mrpc-lora-x-00000000/seed0", [])})
    plain = Queue.take

    def interrupted(self: Queue) -> None:
        assert plain(self) is not None
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(Queue, "take", interrupted)
    with pytest.raises(Stopped):
        work.work([work.Cells(Queue(tmp_path, "made"), None)], None)  # type: ignore[arg-type]  # nothing is shown
    assert not list(tmp_path.rglob(lock.FILE))


def unseen(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Of other processes nothing is seen but what a signal to them says."""
    monkeypatch.setattr(owners, "seen_of", lambda pid: None)

    def kill(pid: int, number: int) -> None:
        raise fail(error)

    monkeypatch.setattr(os, "kill", kill)


def test_a_process_that_is_hidden_lives_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    unseen(monkeypatch, errno.EPERM)
    assert lock.alive(path)
    os.utime(path, (1, 1))
    assert not lock.alive(path)


def test_a_process_that_is_gone_is_dead_whatever_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    unseen(monkeypatch, errno.ESRCH)
    assert not lock.alive(path)


def test_a_host_whose_start_has_no_name_is_not_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "boot_id", lambda: "")
    assert lock.alive(written(tmp_path, pid=2**22 + 1)), "it may be a process of another start"


def test_where_all_heartbeats_are_late_nobody_loses_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, host="elsewhere", age=lock.DEAD + 1)
    with monkeypatch.context() as patch:
        asked = waits(patch, lambda: os.utime(path))
        with Lock(tmp_path) as late:
            assert not late.held
    assert asked == [pytest.approx(lock.LATE, abs=1)]
    assert lock.LATE > lock.BEAT
    os.utime(path, (1, 1))
    asked = waits(monkeypatch, lambda: None)
    with Lock(tmp_path) as taken:
        assert taken.held
    assert asked == [pytest.approx(lock.LATE, abs=1)]


def test_a_worker_takes_other_cells_before_it_waits_for_a_late_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Planned(f"made/mrpc-lora-x-{number:08x}/seed0", []) for number in range(6)]
    index.add(tmp_path / "made", {cell.folder: cell for cell in cells})
    late = [cell.folder for cell in cells[:2]]
    for folder in late:
        written(tmp_path / folder, host="elsewhere", age=lock.DEAD + 1)
    asked = waits(monkeypatch, lambda: monkeypatch.setattr(lock, "LATE", 0.0))  # it is over
    queue, taken = Queue(tmp_path, "made"), []
    while (one := queue.take()) is not None:
        taken.append(one[0].folder)
        assert bool([seconds for seconds in asked if seconds]) == (one[0].folder in late)
    assert sorted(taken[4:]) == late
    assert len(taken) == 6


def test_who_is_seen_to_be_dead_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, pid=2**22 + 1)
    asked = waits(monkeypatch, lambda: None)
    with Lock(tmp_path) as taken:
        assert taken.held
    assert asked == []


def test_a_full_disk_tells_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tempfile.TemporaryFile

    class Full:
        """A file without room."""

        def __init__(self, file: IO[bytes]) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def fileno(self) -> int:
            return self._file.fileno()

        def write(self, content: bytes) -> int:
            raise fail(errno.ENOSPC)

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full(plain(dir=dir)))
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert lock.clock_of(tmp_path) > 0


def test_where_no_time_can_be_told_no_lock_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, host="elsewhere", age=lock.DEAD + 1)

    def touch(path: Path, *_: object) -> None:
        raise fail(errno.EROFS)

    monkeypatch.setattr(Path, "touch", touch)
    before = path.stat()
    with Lock(tmp_path) as refused:
        assert (refused.held, refused.refused) == (False, os.strerror(errno.EROFS))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_without_flock_a_studys_list_is_changed_by_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def flock(file: IO[str], operation: int) -> None:
        raise fail(error)

    study, waiting = tmp_path / "made", threading.Event()
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(index, "LOOKS", 0.001)
    plain = Lock.take

    def take(self: Lock) -> Lock:
        taken = plain(self)
        if not taken.held:
            waiting.set()
        return taken

    with Lock(study):
        monkeypatch.setattr(Lock, "take", take)
        cell = Planned("made/mrpc-lora-x-00000000/seed0", ["seed=0"])
        other = threading.Thread(target=index.add, args=(study, {"a": cell}), daemon=True)
        other.start()
        assert waiting.wait(LONG)
        assert index.read(study) == {}
    other.join(LONG)
    assert index.read(study) == {"a": cell}
    index.forget(study, {cell.folder}, [])
    assert not study.exists()
