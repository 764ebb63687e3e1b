"""Artefacts as work: lines of `merge`, `port`, `score`, `edit` and `sequence` that a study keeps, made when their runs
have ended."""

import functools
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftbench.commands import artefacts
from peftbench.ground.errors import BadInput, first_line, short_line
from peftbench.ground.files import END_FILE, stamp
from peftbench.ground.quantity import quantity
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.saved_lines import End, Line
from peftbench.study import index, lock, status
from peftbench.study.cell_state import DEATHS, HOSTS
from peftbench.study.lock import Elsewhere, Lock
from peftbench.study.queue import MOST_TRIES, Unwritable

COMMANDS = {
    "merge": artefacts.merge,
    "port": artefacts.port,
    "score": artefacts.score,
    "edit": artefacts.edit,
    "sequence": artefacts.sequence,
}
ENDED = ("done", "failed", "stale")  # states of a cell that no worker will change


@dataclass(frozen=True)
class LineStatus:
    """How a line stands.

    Attributes:
        state: running: a worker has it now; failed: so it ended the last time, or its workers died with it.
        reason: why, where it failed.
        worker: who makes it, and for how long (s), where it is running.
    """

    line: Line
    state: Literal["done", "running", "failed", "open"]
    reason: str | None = None
    worker: str | None = None
    age_s: float | None = None


class Artefacts:
    """The lines of a study as one worker sees them. Each is looked at once, and made anew where its runs changed."""

    def __init__(self, outputs: Path, study: str) -> None:
        """Raises:
        DataError: the list of lines cannot be read.
        """
        self._outputs, self._study = outputs, outputs / study
        self._began = lock.clock_of(self._study)
        self._listed: object = None
        self._known: set[Line] = set()
        self._left: list[Line] = []
        self._tries: Counter[Line] = Counter()
        self._aside: list[Line] = []  # not before this worker has waited: another runner makes a part of them
        self._elsewhere: set[Line] = set()  # those whose last try found another runner
        self._whole: dict[str, object] = {}  # studies whose cells had all ended, and their lists then
        self._ended: set[str] = set()  # runs, by their folders
        self._running: set[str] = set()  # studies of which a cell was running at the last look
        self._claimed: Lock | None = None  # the last one
        self._random = random.Random()  # its own: a run seeds the one that all share
        self._read_list()

    def take(self) -> Callable[[], int] | None:
        """See `work.Source`. What another worker makes, or waits for runs, stays for a later look.

        After a None the worker waits, or leaves; so what was aside may be tried at the next look.
        """
        self._read_list()
        look = functools.cache(self._look)  # one serves all lines
        waiting: list[Line] = []
        try:
            while self._left:
                line = self._left.pop()
                if self._is_settled(line):
                    continue
                if not self._has_runs(line, look):
                    waiting.append(line)
                    continue
                self._claimed = claimed = Lock(saved_lines.folder_of(self._study, line))
                if claimed.take().held:
                    self._tries[line] += 1
                    return functools.partial(self._make, line, claimed)
                waiting.append(line)
                if claimed.refused:
                    raise Unwritable(f"{claimed.path.parent}: cannot be written ({claimed.refused})")
        finally:
            self._left += waiting
        self._left += self._aside
        self._aside.clear()
        return None

    def let_go(self) -> None:
        """See `work.Source`."""
        if self._claimed is not None:
            self._claimed.release()
            self._claimed = None

    def waits(self) -> bool:
        """See `work.Source`: another worker has a line, a part of one, or a cell that a line may be made of."""
        folders = (saved_lines.folder_of(self._study, line) for line in self._left)
        return any(line in self._elsewhere or line.source in self._running for line in self._left) or any(
            lock.alive(folder / lock.FILE) for folder in folders
        )

    def _make(self, line: Line, claimed: Lock) -> int:
        """Make a line's artefacts; those that cannot be written now are left for another try, and those of which
        another runner is making one are left aside, which is no try.

        Raises:
            Elsewhere: another runner trains what the line needs, or took it while this process was paused.
            OSError: something could not be written.
        """
        ended = busy = False
        try:
            code, end = self._tried(line)
            busy = code == Elsewhere.exit_code
            if not busy:
                saved_lines.write_end(self._study, line, end, claimed.check)
                lock.forget_deaths(claimed.path.parent)
                ended = True
            return code
        except Elsewhere:
            busy = True
            raise
        finally:
            claimed.release()
            if not ended:
                self._leave(line, busy)

    def _leave(self, line: Line, busy: bool) -> None:
        """Leave a line for another try; busy: aside, since another runner makes a part of it, which is no try."""
        if busy:
            self._tries[line] -= 1
            self._elsewhere.add(line)
            self._aside.append(line)
        elif self._tries[line] < MOST_TRIES:
            self._elsewhere.discard(line)
            self._left.append(line)

    def _tried(self, line: Line) -> tuple[int, End]:
        """A line's exit code and how it ended. What is wrong is named, and the next line is none the worse for it."""
        try:
            return COMMANDS[line.words[0]](line.arguments(self._outputs)), End("done")
        except (Elsewhere, OSError):
            raise
        except BadInput as error:
            code, problems = error.exit_code, error.problems
        except Exception as error:
            code, problems = 1, [f"{type(error).__name__}: {first_line(error)}"]
        print(short_line(f"failed: {line}"), *problems, sep="\n", file=sys.stderr)
        before = saved_lines.end_of(self._study, line)
        hosts = dict.fromkeys([*(before.failed_on if before else ()), socket.gethostname()])
        return code, End("failed", tuple(hosts), problems[0])

    def _read_list(self) -> None:
        """Read the study's list of lines, if it changed."""
        now = stamp(self._study / saved_lines.FILE)
        if now == self._listed:
            return
        new = [line for line in saved_lines.read(self._study) if line not in self._known]
        self._listed = now
        self._known.update(new)
        self._random.shuffle(new)  # workers that start together take different ones
        self._left += new

    def _is_settled(self, line: Line) -> bool:
        """Whether this worker has nothing to do for a line: another made it since it began, or it is left alone."""
        folder = saved_lines.folder_of(self._study, line)
        if len(lock.deaths(folder)) >= DEATHS:
            return True
        end, written = saved_lines.end_of(self._study, line), stamp(folder / END_FILE)
        if end is None or written is None:
            return False
        is_new = written[2] / 1e9 >= self._began
        if end.status == "done":
            return is_new
        return len(end.failed_on) >= HOSTS or (is_new and socket.gethostname() in end.failed_on)

    def _has_runs(self, line: Line, look: Callable[[str], bool]) -> bool:
        """Whether the runs that a line is made of have ended, well or not: of `score` one, of `sequence` none, else all
        of their study."""
        if line.source is None:
            return True
        if line.run is None:
            now = stamp(self._outputs / line.source / index.FILE)
            return self._whole.get(line.source, ()) == now or look(line.source)
        if line.run not in self._ended:
            look(line.source)
        return line.run in self._ended

    def _look(self, study: str) -> bool:
        """Whether all cells of a study have ended; which ones have is kept."""
        now = stamp(self._outputs / study / index.FILE)
        cells = status.cells_if_any(self._outputs, study)
        ended = {cell.folder for cell in cells if cell.state in ENDED}
        self._ended |= ended
        self._running -= {study}
        if any(cell.state == "running" for cell in cells):
            self._running.add(study)
        if not cells or len(ended) < len(cells):  # a line may be kept before the first cell of its study is listed
            return False
        self._whole[study] = now
        return True


def lines_of(outputs: Path, study: str) -> list[LineStatus]:
    """How the lines of a study stand, in the order in which they were saved.

    Raises:
        DataError: the list of lines cannot be read.
    """
    return [_status(outputs / study, line) for line in saved_lines.read(outputs / study)]


def _status(study: Path, line: Line) -> LineStatus:
    folder, end = saved_lines.folder_of(study, line), saved_lines.end_of(study, line)
    if lock.alive(held := folder / lock.FILE):
        return LineStatus(line, "running", worker=lock.owner(held), age_s=lock.age(held))
    alone = "left alone until the line is saved again"
    if len(dead := lock.deaths(folder)) >= DEATHS:
        return LineStatus(line, "failed", f"its workers died: {', '.join(map(str, dead))} ({alone})")
    if end is None:
        return LineStatus(line, "open")
    if end.status == "done" or len(end.failed_on) < HOSTS:
        return LineStatus(line, end.status, end.reason)
    return LineStatus(line, "failed", f"{end.reason} (failed on {', '.join(end.failed_on)}; {alone})")


def is_any_left(outputs: Path, lines: Sequence[LineStatus]) -> bool:
    """Whether a line is open that nobody comes to: a runner of its study's last cells goes on with it."""
    sources = {one.line.source for one in lines if one.state == "open"}
    cells = (status.cells_if_any(outputs, source) if source else [] for source in sources)
    return not all(any(cell.state == "running" for cell in of_one) for of_one in cells)


def by_state(lines: Sequence[LineStatus]) -> dict[str, int]:
    """How many lines are in each state."""
    numbers = {"done": 0, "running": 0, "failed": 0, "open": 0}
    for line in lines:
        numbers[line.state] += 1
    return numbers


def in_words(lines: Sequence[LineStatus]) -> str:
    """The same for a person."""
    parts = [f"{number} {state}" for state, number in by_state(lines).items() if number or state == "done"]
    return f"{quantity(len(lines), 'line')} of artefacts: {', '.join(parts)}"
