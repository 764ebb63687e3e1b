"""A worker: one warm process that takes one open piece of work after another, and leaves in good time."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from peftbench.ground.errors import BadInput, ConfigError, warn
from peftbench.ground.files import write_atomically
from peftbench.study.cell import Screen, settle
from peftbench.study.index import Planned
from peftbench.study.lock import Elsewhere, Lock
from peftbench.study.queue import Queue, Unwritable

STOP_FILE = ".stop"
END_OF_JOB = "SLURM_JOB_END_TIME"  # seconds since 1970; Slurm sets it
MARGIN = 120.0  # seconds before the end of a Slurm job in which a checkpoint is written
LOOKS = 1.0  # seconds between two looks at whether to leave
MOST_REFUSED = 20  # cells in a row that cannot be run here; then something is wrong with this machine
MOST_TROUBLES = 8  # in a row, with longer and longer waits: three minutes in all
LONGEST_WAIT = 60.0  # seconds
FOR_OTHERS = 10.0  # seconds between two looks at what others have


class Source(Protocol):
    """Where work comes from: cells, or what is made of them once they are done."""

    def take(self) -> Callable[[], int] | None:
        """What does the next open piece of work, which is claimed, and gives its exit code; None: none is open.

        Raises:
            Unwritable: nothing can be claimed at the moment.
        """
        ...

    def let_go(self) -> None:
        """Release what was claimed last, if it still is."""
        ...

    def waits(self) -> bool:
        """Whether something may yet be open after others have ended what they do now."""
        ...


class Cells:
    """The cells of a study as work."""

    def __init__(self, queue: Queue, screen: Screen) -> None:
        self._queue, self._screen = queue, screen

    def take(self) -> Callable[[], int] | None:
        """See `Source`."""
        taken = self._queue.take()
        return None if taken is None else functools.partial(self._run, *taken)

    def let_go(self) -> None:
        """See `Source`."""
        self._queue.let_go()

    def waits(self) -> bool:
        """See `Source`."""
        return self._queue.waits()

    def _run(self, planned: Planned, claimed: Lock) -> int:
        return settle(self._queue.plain(planned), planned.overrides, self._screen, claimed)


def work(sources: Sequence[Source], most: int | None, wait: bool = False) -> list[int]:
    """Do what is open, of the first source that has something, until nothing is or `most` pieces are done.

    Gives the exit codes of those that were refused.

    A piece that is refused, or lost while this process was paused, is named and left. While nothing can be written,
    it waits.

    Args:
        wait: go on while others have what may come to be open: they may die, or end what something else starts from.

    Raises:
        Unwritable: nothing could be written for too long.
        BadInput: too many pieces in a row were refused.
    """
    codes: list[int] = []
    ended = refused = troubles = 0
    while most is None or ended < most:
        try:
            if (code := _do_next(sources)) is not None:
                ended += code != Elsewhere.exit_code
                refused = 0
            elif wait and any(source.waits() for source in sources):
                time.sleep(FOR_OTHERS)
            else:
                break
            troubles = 0
        except Elsewhere as error:
            warn(error)
        except (Unwritable, OSError) as error:
            troubles += 1
            _wait_after(error, troubles)
        except BadInput as error:
            warn(*error.problems)
            codes.append(error.exit_code)
            refused += 1
            if refused == MOST_REFUSED:
                raise ConfigError(f"{refused} cells in a row cannot be run here; this worker leaves") from None
    return codes


def _do_next(sources: Sequence[Source]) -> int | None:
    """The exit code of the next piece; None: none is open. However it ends, nothing stays claimed."""
    try:
        job = next((job for source in sources if (job := source.take()) is not None), None)
        return None if job is None else job()
    finally:
        for source in sources:
            source.let_go()


def _wait_after(error: Unwritable | OSError, troubles: int) -> None:
    """Wait until something can be written again.

    Args:
        troubles: how often in a row it could not.

    Raises:
        Unwritable: it could not for too long.
        OSError: it is the screen that cannot be written.
    """
    if isinstance(error, OSError) and error.filename is None:
        raise error
    if troubles == MOST_TROUBLES:
        raise Unwritable(f"{error}; nothing could be written for three minutes, this worker leaves")
    warn(f"{error}; this worker tries again")
    time.sleep(min(2.0**troubles, LONGEST_WAIT))


class Leaving:
    """Within it, this process gets the signal of a cluster that ends it when its time is up or workers are stopped.

    A run then writes a checkpoint after its step, and `Stopped` is raised.

    Attributes:
        reason: why it was asked to leave; None: it was not, or by somebody else.
        is_stopped: whether that is because all workers of the study were.
    """

    def __init__(self, study: Path, seconds: float | None, began: float) -> None:
        """Args:
        study: the study's folder.
        seconds: from now, until it leaves; None: when a Slurm job is about to end, or never.
        began: when the command began (s), by the folder's clock: it is asked to leave after that.
        """
        self.reason: str | None = None
        self.is_stopped = False
        self._stop = study / STOP_FILE
        self._began = began
        ends = [] if seconds is None else [time.monotonic() + seconds]
        if (job := os.environ.get(END_OF_JOB, "")).isdecimal():
            ends.append(time.monotonic() + int(job) - time.time() - MARGIN)
        self._end = min(ends, default=None)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Leaving":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            if self._end is not None and time.monotonic() >= self._end:
                self.reason = "its time is up"
            elif is_stopped(self._stop, self._began):
                self.reason, self.is_stopped = "the study's workers are stopped", True
            if self.reason is not None:
                os.kill(os.getpid(), signal.SIGUSR1)
                return
            self._done.wait(LOOKS)


def is_stopped(path: Path, since: float) -> bool:
    """Whether workers were asked to leave after a moment (s, by the folder's clock)."""
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False


def stop(study: Path) -> None:
    """Ask all workers of a study to leave after their step; those that begin later are not meant.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomically(study / STOP_FILE, b"")
