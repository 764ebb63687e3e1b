"""Signals that ask to stop (a cluster's preemption, a terminal that closes, Ctrl-C): leave at once, or at the next
point where nothing is lost."""

import atexit
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# USR1 and USR2 are warnings before a time limit: Slurm's usual one, and submitit's
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
BURST = 5.0  # seconds after a first signal in which more ask for the same: they must not interrupt the way out
SOON = 0.05  # seconds until a signal is given again that came where Python can raise nothing


class Stopped(BaseException):
    """A signal ended the run; no Exception, since the run has not failed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.exit_code = 128 + number
        self.lost = False  # whether it was raised where nothing can be


class _Way:
    """The way out: it is taken once, and again only by who asks after the burst (a library may swallow the first)."""

    def __init__(self) -> None:
        self.stopped: Stopped | None = None
        self.hand_on: Callable[[], bool] = lambda: False
        self._until = 0.0  # end of the burst, by the monotonic clock

    def take(self, number: int, _: FrameType | None = None) -> None:
        """Raise `Stopped`, unless that was just done, or workers are to end first."""
        before = self.stopped
        if self._in_burst() and not (before and before.lost):
            return
        stopped = self.note(Stopped(number))
        if before or not self.hand_on():
            raise stopped

    def end(self, number: int, _: FrameType | None = None) -> None:
        """End the process, unless the way out was just taken."""
        if not self._in_burst():
            os._exit(128 + number)

    def _in_burst(self) -> bool:
        return time.monotonic() < self._until

    def begin_burst(self) -> None:
        """A signal came: for a while, more of them ask for the same."""
        self._until = time.monotonic() + BURST

    def note(self, stopped: Stopped) -> Stopped:
        """Remember that one is on its way."""
        self.stopped = stopped
        self.begin_burst()
        return stopped


_command = _Way()  # of the whole command, where no run has its own


def leave_on_signals() -> None:
    """Let a signal raise `Stopped` in the main thread from now on, wherever it is; none came so far."""
    global _command
    _command = _Way()
    _set(dict.fromkeys(SIGNALS, _command.take))
    _prepare()


def leave_at_once() -> None:
    """Nothing is left to put in order: a signal ends the process, unless it belongs to a burst."""
    _set(dict.fromkeys(SIGNALS, _command.end))


@functools.cache
def _prepare() -> None:
    atexit.register(_set, dict.fromkeys(SIGNALS, signal.SIG_IGN))  # the last to run: Python's own end is not cut short
    sys.unraisablehook = functools.partial(_give_again, sys.unraisablehook)


def _give_again(hook: Callable[[Any], None], unraisable: Any) -> None:
    """A finaliser, or the end of an import, is where a signal came: Python prints what is raised there, and goes on."""
    stopped = unraisable.exc_value
    if not isinstance(stopped, Stopped):
        hook(unraisable)
        return
    stopped.lost = True
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(SOON, signal.pthread_kill, [main, stopped.number])
    again.daemon = True
    again.start()


def stopped() -> Stopped | None:
    """What a signal has raised since `leave_on_signals`; a library may have made another exception of it."""
    return _command.stopped


def check() -> None:
    """Leave, if a signal asked to and the command went on: something swallowed what it raised, or a run ended first.

    Raises:
        Stopped: one did.
    """
    if _command.stopped is not None:
        raise _command.note(_command.stopped)


@contextmanager
def workers_first(no_more: Callable[[], None]) -> Iterator[None]:
    """Within, a signal ends the processes that this one has started, and `Stopped` is raised when they are through.

    A signal after the burst does not wait for them.

    Args:
        no_more: sees to it that they are given nothing else to do.

    Raises:
        Stopped: a signal came.
    """

    import multiprocessing

    def hand_on() -> bool:
        workers = multiprocessing.active_children()
        no_more()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, signal.SIGTERM)
        return bool(workers)

    _command.hand_on = hand_on
    try:
        yield
    finally:
        _command.hand_on = lambda: False
    check()


class Stop:
    """Within its `with` block a signal raises `Stopped`, at once or, while `deferred`, where the code asks."""

    def __init__(self) -> None:
        self._waiting: Stopped | None = None
        self._deferring = False
        self._way = _Way()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody handle signals
            self._before = _set(dict.fromkeys(SIGNALS, self._handle))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        _set(self._before)
        stopped = error if isinstance(error, Stopped) else self._pending()
        if stopped is None:
            return
        _command.note(stopped)  # where the run came to its end first, there is no next one
        if error is not None and stopped is self._way.stopped:  # what a library made of it is no failure of the run
            raise stopped

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal waits until `check` is called; one after the burst does not."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @property
    def asked(self) -> bool:
        """Whether a signal waits, or something swallowed what it raised."""
        return self._pending() is not None

    def check(self) -> None:
        """Leave, if a signal asked to.

        Raises:
            Stopped: one did.
        """
        if (stopped := self._pending()) is not None:
            raise self._way.note(stopped)

    def _pending(self) -> Stopped | None:
        return self._way.stopped or self._waiting

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._deferring and not self.asked:
            self._waiting = Stopped(number)
            self._way.begin_burst()
        else:
            self._way.take(number)


def _set(handlers: dict[int, Any]) -> dict[int, Any]:
    """Install handlers and give those before; a SIGHUP that is ignored stays so (nohup)."""
    return {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    }
