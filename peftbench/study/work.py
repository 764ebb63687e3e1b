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
from peftbench.study import lock
from peftbench.study.cell import Screen, settle
from peftbench.study.index import Planned
from peftbench.study.lock import Elsewhere, Lock
from peftbench.study.queue import Queue, Unwritable

STOP_FILE = ".stop"
END_OF_JOB = "SLURM_JOB_END_TIME"  # seconds since 1970; Slurm sets it
MARGIN = 120.0  # seconds before the end of a Slurm job in which a checkpoint is written
LOOKS = 1.0  # seconds between two looks at whether to leave
MOST_REFUSED = 20  # cells in a row that cannot be run here; then something is wrong with this machine
MOST_TROUBLES = 8  # in a row, with longer and longer waits: four minutes in all
LONGEST_WAIT = 60.0  # seconds


class Source(Protocol):
    """Where work comes from: cells, or what is made of them once they are done."""

    def take(self) -> Callable[[], int] | None:
        """What does the next open piece of work, which is claimed, and gives its exit code; None: none is open.

        Raises:
            Unwritable: nothing can be claimed at the moment.
        """
        ...


class Cells:
    """The cells of a study as work."""

    def __init__(self, queue: Queue, screen: Screen) -> None:
        self._queue, self._screen = queue, screen

    def take(self) -> Callable[[], int] | None:
        """See `Source`."""
        taken = self._queue.take()
        return None if taken is None else functools.partial(self._run, *taken)

    def _run(self, planned: Planned, claimed: Lock) -> int:
        try:
            return settle(self._queue.plain(planned), planned.overrides, self._screen, claimed)
        finally:
            claimed.release()


def work(sources: Sequence[Source], most: int | None) -> list[int]:
    """Do what is open, of the first source that has something, until nothing is or `most` pieces are done.

    Gives the exit codes of those that were refused.

    A piece that is refused, or lost while this process was paused, is named and left. While nothing can be written,
    it waits.

    Raises:
        BadInput: too many pieces in a row were refused.
        OSError: nothing could be written for too long.
    """
    codes: list[int] = []
    ended = refused = troubles = 0
    while most is None or ended < most:
        try:
            job = next((job for source in sources if (job := source.take()) is not None), None)
            if job is None:
                break
            ended += job() != Elsewhere.exit_code
            refused = troubles = 0
        except Elsewhere as error:
            warn(error)
        except BadInput as error:
            warn(*error.problems)
            codes.append(error.exit_code)
            refused += 1
            if refused == MOST_REFUSED:
                raise ConfigError(f"{refused} cells in a row cannot be run here; this worker leaves") from None
        except (Unwritable, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:  # of the screen
                raise
            troubles += 1
            if troubles == MOST_TROUBLES:
                raise
            warn(f"{error}; this worker tries again")
            time.sleep(min(2.0**troubles, LONGEST_WAIT))
    return codes


class Leaving:
    """Within it, this process gets the signal of a cluster that ends it when its time is up or workers are stopped.

    A run then writes a checkpoint after its step, and `Stopped` is raised.

    Attributes:
        reason: why it was asked to leave; None: it was not, or by somebody else.
    """

    def __init__(self, study: Path, seconds: float | None) -> None:
        """Args:
        study: the study's folder.
        seconds: from now, until it leaves; None: when a Slurm job is about to end, or never.
        """
        self.reason: str | None = None
        self._stop = study / STOP_FILE
        self._began = lock.clock_of(study)
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
                self.reason = "the study's workers are stopped"
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
