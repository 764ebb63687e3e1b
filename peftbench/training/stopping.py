"""SIGTERM and SIGINT (a cluster's preemption, Ctrl-C): leave at once, or at the next point where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run; no Exception, since the run has not failed."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Stop:
    """Within its `with` block a signal raises `Stopped`, at once or, while `deferred`, where the code asks."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody handle signals
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

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
            raise Stopped(self._asked)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._asked is not None or not self._deferring:
            raise Stopped(number)
        self._asked = number
