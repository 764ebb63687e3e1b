"""Artefacts as work: lines of `merge`, `port` and `score` that a study keeps, made when their runs have ended."""

import functools
import random
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from peftbench.commands import artefacts
from peftbench.ground.errors import BadInput, DataError, shown
from peftbench.ground.files import stamp
from peftbench.lifecycle import saved
from peftbench.lifecycle.saved import End, Line
from peftbench.study import index, lock, status
from peftbench.study.lock import Elsewhere, Lock
from peftbench.study.queue import Unwritable
from peftbench.study.standing import DEATHS, HOSTS

COMMANDS = {"merge": artefacts.merge, "port": artefacts.port, "score": artefacts.score}
ENDED = ("done", "failed", "stale")  # states of a cell that no worker will change


class Artefacts:
    """The lines of a study as one worker sees them. Each is taken once, and made anew where its runs have changed."""

    def __init__(self, outputs: Path, study: str) -> None:
        """Raises:
        DataError: the list of lines cannot be read.
        """
        self._outputs, self._study = outputs, outputs / study
        self._began = lock.clock_of(self._study)
        self._listed: object = None
        self._known: set[Line] = set()
        self._left: list[Line] = []
        self._ended: dict[str, object] = {}  # studies whose cells had all ended, and their lists then
        self._read_list()

    def take(self) -> Callable[[], int] | None:
        """See `work.Source`. What another worker makes, or waits for runs, stays for a later look."""
        self._read_list()
        waiting: list[Line] = []
        try:
            while self._left:
                line = self._left.pop()
                if self._is_settled(line):
                    continue
                claimed = Lock(saved.folder_of(self._study, line)).take() if self._has_runs(line) else None
                if claimed is not None and claimed.held:
                    return functools.partial(self._make, line, claimed)
                waiting.append(line)
                if claimed is not None and claimed.refused:
                    raise Unwritable(f"{claimed.path.parent}: cannot be written ({claimed.refused})")
        finally:
            self._left += waiting
        return None

    def _make(self, line: Line, claimed: Lock) -> int:
        try:
            code = COMMANDS[line.words[0]](line.arguments(self._outputs))
            if code != Elsewhere.exit_code:
                saved.write_end(self._study, line, End("done"))
                lock.forget_deaths(claimed.path.parent)
            return code
        except (Elsewhere, OSError):
            raise  # the worker waits, or goes on with something else
        except BadInput as error:
            self._failed(line, error.problems[0])
            raise
        except Exception as error:  # as of a cell that crashes, the next one is none the worse for it
            reason = f"{type(error).__name__}: {error}"
            self._failed(line, reason)
            raise DataError(f"{' '.join(line.words)}: {reason}") from error
        finally:
            claimed.release()

    def _failed(self, line: Line, reason: str) -> None:
        before = saved.end_of(self._study, line)
        hosts = [*(before.failed_on if before else ()), socket.gethostname()]
        saved.write_end(self._study, line, End("failed", tuple(dict.fromkeys(hosts)), shown(reason)))
        print(f"failed: {shown(' '.join(line.words))}", file=sys.stderr)

    def _read_list(self) -> None:
        """Read the study's list of lines, if it changed."""
        now = stamp(self._study / saved.FILE)
        if now == self._listed:
            return
        new = [line for line in saved.read(self._study) if line not in self._known]
        self._listed = now
        self._known.update(new)
        random.shuffle(new)  # workers that start together take different ones
        self._left += new

    def _is_settled(self, line: Line) -> bool:
        """Whether this worker has nothing to do for a line: another made it since it began, or it is left alone."""
        folder = saved.folder_of(self._study, line)
        if len(lock.deaths(folder)) >= DEATHS:
            return True
        end = saved.end_of(self._study, line)
        if end is None:
            return False
        is_new = (folder / saved.END).stat().st_mtime >= self._began
        if end.status == "done":
            return is_new
        return len(end.failed_on) >= HOSTS or (is_new and socket.gethostname() in end.failed_on)

    def _has_runs(self, line: Line) -> bool:
        """Whether the runs that a line is made of have ended, well or not: of `score` one, else all of their study."""
        now = stamp(self._outputs / line.source / index.FILE)
        if line.source in self._ended and self._ended[line.source] == now:
            return True
        cells = status.cells_if_any(self._outputs, line.source)
        if line.run is not None:
            return any(cell.folder == line.run and cell.state in ENDED for cell in cells)
        if all(cell.state in ENDED for cell in cells):
            self._ended[line.source] = now
            return True
        return False


def counted(outputs: Path, study: str) -> dict[str, int]:
    """How many lines of a study are done, failed and open, where it has any.

    Raises:
        DataError: the list of lines cannot be read.
    """
    lines = saved.read(outputs / study)
    ends = [saved.end_of(outputs / study, line) for line in lines]
    numbers = {"done": 0, "failed": 0, "open": 0}
    for end in ends:
        numbers["open" if end is None else end.status] += 1
    return numbers if lines else {}


def in_words(numbers: Mapping[str, int]) -> str:
    """What `counted` gives as a part of a line."""
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number or state == "done")
