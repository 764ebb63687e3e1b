"""Signals that ask to stop (a cluster's preemption, a terminal that closes, Ctrl-C): leave at once, or at the next
point where nothing is lost."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # USR1: Slurm's warning before a time limit
BURST = 5.0  # seconds after a stop in which more signals ask for the same: they must not interrupt the way out


class Stopped(BaseException):
    """A signal ended the run; no Exception, since the run has not failed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class _Way:
    """The way out: it is taken once, and again only by who asks after the burst (a library may swallow the first)."""

    def __init__(self) -> None:
        self.stopped: Stopped | None = None
        self._since = -BURST

    def take(self, number: int, _: FrameType | None = None) -> None:
        """Raise `Stopped`, unless that was just done."""
        if time.monotonic() - self._since >= BURST:
            raise self.note(Stopped(number))

    def note(self, stopped: Stopped) -> Stopped:
        """Remember that one is on its way."""
        self.stopped, self._since = stopped, time.monotonic()
        return stopped


_command = _Way()  # of the whole command, where no run has its own


def leave_on_signals() -> None:
    """Let a signal raise `Stopped` in the main thread from now on, wherever it is."""
    _set(dict.fromkeys(SIGNALS, _command.take))


def stopped() -> Stopped | None:
    """What a signal has raised since `leave_on_signals`; a library may have made another exception of it."""
    return _command.stopped


class Stop:
    """Within its `with` block a signal raises `Stopped`, at once or, while `deferred`, where the code asks."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._deferring = False
        self._way = _Way()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody handle signals
            self._before = _set(dict.fromkeys(SIGNALS, self._handle))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Stopped):
            _command.note(error)
        _set(self._before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a first signal waits until `check` is called; a second one does not."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @property
    def asked(self) -> bool:
        """Whether a signal waits."""
        return self._asked is not None

    def check(self) -> None:
        """Leave, if a signal waits.

        Raises:
            Stopped: one does.
        """
        if self._asked is not None:
            raise self._way.note(Stopped(self._asked))

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._asked is not None or not self._deferring:
            self._way.take(number)
        else:
            self._asked = number


def _set(handlers: dict[int, Any]) -> dict[int, Any]:
    """Install handlers and give those before; a SIGHUP that is ignored stays so (nohup)."""
    return {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
