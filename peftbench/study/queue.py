"""A study's open cells as one worker sees them: the next one is claimed by its lock, so workers need no driver.

What is expected to take longest comes first, by what earlier cells took; equals come in another order for every worker.
"""

import itertools
import random
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path

from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import RECORD_FILE, stamp
from peftbench.study import index, lock
from peftbench.study.index import Planned, kind_of
from peftbench.study.lock import Lock
from peftbench.study.standing import Standings
from peftbench.study.sweep import Sweep

MOST_TRIES = 3  # of a cell by one worker: what it cannot run is left to others


class Unwritable(Exception):
    """The folder cannot be written now; a moment later it may."""


class Queue:
    """The cells of a study that are still open.

    Attributes:
        cells: all that the study lists, by their folders.
    """

    def __init__(self, outputs: Path, study: str) -> None:
        """Raises:
        ConfigError: the study has no list of cells.
        """
        self.outputs, self.study = outputs, study
        self.cells: dict[str, Planned] = {}
        self._standings = Standings(outputs, study)
        self._took: dict[str, float] = {}  # seconds of finished cells
        self._sorted_by = 0  # how many of them the order follows from
        self._kinds: dict[str, list[str]] = {}
        self._open: list[str] = []
        self._before: set[str] = set()  # those that were done when this worker came
        self._tries: dict[str, int] = {}
        self._listed: object = None
        self._began = self._now = lock.clock_of(outputs / study)
        self._read_list()
        if not self.cells:
            raise ConfigError(f"study {study}: no list of cells under {outputs}; peftbench plan ... --save makes it")

    def take(self) -> tuple[Planned, Lock] | None:
        """The next open cell and its lock, which is held; None: no cell is open.

        Raises:
            Unwritable: its folder cannot be written.
        """
        self._read_list()
        self._now = lock.clock_of(self.outputs / self.study)
        later: list[str] = []
        for folder in itertools.chain(self._candidates(later), later):
            claimed = Lock(self.outputs / folder).take()
            if claimed.held and self._is_open(folder):
                self._tries[folder] = self._tries.get(folder, 0) + 1
                return self.cells[folder], claimed
            claimed.release()
            if claimed.refused:
                raise Unwritable(f"{self.outputs / folder}: cannot be written ({claimed.refused})")
        return None

    def sweep(self) -> Sweep:
        """All cells, as a sweep that was asked for."""
        self._read_list()
        unfinished = [cell for folder, cell in self.cells.items() if folder not in self._before]
        return Sweep(self.outputs, self.study, list(self.cells.values()), [], unfinished)

    def _candidates(self, later: list[str]) -> Iterator[str]:
        """Folders of cells that nobody seems to have; `later`: of those whose search another runner makes now."""
        self._sort()
        for folder in list(self._open):
            if not self._is_open(folder):
                self._open.remove(folder)
            elif self._is_taken(folder):
                continue
            elif self._is_searched_for(folder):
                later.append(folder)
            else:
                yield folder

    def _read_list(self) -> None:
        """Read the study's list, if it changed."""
        now = stamp(self.outputs / self.study / index.FILE)
        if now == self._listed:
            return
        self._listed = now
        listed = {cell.folder: cell for cell in index.read(self.outputs / self.study).values()}
        new = listed.keys() - self.cells.keys()
        self.cells |= listed
        for folder in new:
            self._kinds.setdefault(kind_of(folder), []).append(folder)
        self._before |= {folder for folder in new if self._status(folder) == "done"}
        self._open += [folder for folder in new if self._is_open(folder)]
        random.shuffle(self._open)
        self._standings.keep()
        self._sorted_by = 0

    def _sort(self) -> None:
        """The longest first, if more is known by now."""
        if self._sorted_by == len(self._took):
            return
        self._sorted_by = len(self._took)
        known: dict[str, list[float]] = {}
        for folder, seconds in self._took.items():
            known.setdefault(kind_of(folder), []).append(seconds)
        guesses = {name: statistics.median(values) for name, values in known.items()}
        of_others = statistics.median(self._took.values())
        self._open.sort(key=lambda folder: guesses.get(kind_of(folder), of_others), reverse=True)

    def _is_open(self, folder: str) -> bool:
        """Whether a cell is to be run by this worker, as its record is now."""
        status = self._status(folder)
        if status in ("done", "quarantined", "unreadable") or self._tries.get(folder, 0) >= MOST_TRIES:
            return False
        return status is None or not self._failed_here(folder)

    def _failed_here(self, folder: str) -> bool:
        """Whether a cell failed on this host since this worker began: another host may try it."""
        path = self.outputs / folder / RECORD_FILE
        try:
            hosts = self._standings.glance(path).failed_on
            return socket.gethostname() in hosts and path.stat().st_mtime >= self._began
        except (OSError, DataError):
            return False

    def _status(self, folder: str) -> str | None:
        try:
            standing = self._standings.standing(self.cells[folder])
        except DataError:
            return "unreadable"
        if standing.status == "done" and standing.seen.seconds is not None:
            self._took[folder] = standing.seen.seconds
        return standing.status

    def _is_taken(self, folder: str) -> bool:
        path = self.outputs / folder / lock.FILE
        return path.exists() and lock.alive(path, self._now)

    def _is_searched_for(self, folder: str) -> bool:
        """Whether a cell needs a search that a runner makes now for another seed of it."""
        if not self.cells[folder].searches:
            return False
        seeds = self._kinds[kind_of(folder)]
        return any(map(self._is_taken, seeds)) and not any(self._status(other) == "done" for other in seeds)
