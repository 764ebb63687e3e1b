"""A study's open cells as one worker sees them: the next one is claimed by its lock, so workers need no driver.

What is expected to take longest comes first, by what earlier cells took; equals come in another order for every worker.
The list is read once, and again where it has changed. To claim a cell, its own folder and lock are looked at, and those
of cells before it that others have; what was looked at is not looked at again before a round through all is over.
"""

import random
import socket
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from peftbench.config import compose
from peftbench.config.build import Plain
from peftbench.config.validate import is_known, targets
from peftbench.ground import escape
from peftbench.ground.errors import BadInput, DataError, shown
from peftbench.ground.files import RECORD_FILE, stamp
from peftbench.study import done, index, lock, sweep
from peftbench.study.cell_state import CellStates
from peftbench.study.estimates import Estimates
from peftbench.study.index import Parent, Planned, kind_of
from peftbench.study.lock import Lock
from peftbench.study.sweep import Sweep

MOST_TRIES = 3  # of a cell by one worker: what it cannot run is left to others
ROUND = 60.0  # seconds after which the longest come first again, with those that others had: they may have died


class Unwritable(BadInput):
    """The folder cannot be written now; a moment later it may."""


class Queue:
    """The cells of a study that are still open.

    Attributes:
        cells: all that the study lists, by their folders.
        tries: folder -> how often this worker has taken it and it is still open.
    """

    def __init__(self, outputs: Path, study: str, known: Collection[str] = ()) -> None:
        """Args:
        known: classes outside this package that cells may name.
        """
        self.outputs, self.study, self._classes = outputs, study, known
        self.cells: dict[str, Planned] = {}
        self._by_words: dict[str, Planned] = {}
        self._names: dict[str, Planned] = {}  # cells by every folder that names them
        self._states = CellStates(outputs, study)
        self._took: dict[str, float] = {}  # seconds of finished cells
        self._kinds: dict[str, list[str]] = {}
        self._next: deque[str] = deque()  # of this round, the longest first
        self._seen: list[str] = []  # looked at in this round; some of them are still open
        self._before: set[str] = set()  # those that were done when this worker came
        self.tries: dict[str, int] = {}
        self._claimed: Lock | None = None  # the last one
        self._random = random.Random()  # its own: a run seeds the one that all share
        self._listed: object = None
        self._began = self._now = lock.clock_of(outputs / study)
        self._round = 0.0
        self._read_list()

    def take(self) -> tuple[Planned, Lock] | None:
        """The next open cell and its lock, which is held; None: no cell is open.

        Raises:
            Unwritable: its folder cannot be written.
            BadInput: cells whose start has come are not possible.
        """
        self._read_list()
        if time.monotonic() - self._round < ROUND and (taken := self._take_of_round()) is not None:
            return taken
        self._begin_round()
        return self._take_of_round()

    def let_go(self) -> None:
        """Release what was taken last, wherever a signal or an error came since."""
        if self._claimed is not None:
            self._claimed.release()
            self._claimed = None

    def waits(self) -> bool:
        """Whether a cell that `take` did not give may yet be had: another runner has it, or the one it starts from."""
        left = [self.cells[folder] for folder in self._seen if self._is_open(folder)]
        return any(self._is_taken(one.folder) for cell in left for one in [cell, *self._parents(cell).values()])

    def plain(self, planned: Planned) -> Plain:
        """A cell as plain data, with the outputs of this machine: the list may have been made on another.

        Raises:
            ConfigError: its words cannot be composed.
            DataError: they name a class that nobody here vouches for.
        """
        plain = compose.plain(planned.overrides, self.outputs)
        like = [] if plain.like is None else [str(plain.like["target"])]
        unknown = [name for name in (*targets([plain.raw, plain.like]), *like) if not is_known(name, self._classes)]
        if unknown:
            where = "--searchpath DIR says where yours are named"
            raise DataError(f"{planned.folder}: {shown(unknown[0])} is none of this package's classes; {where}")
        return plain

    def sweep(self) -> Sweep:
        """All cells, as a sweep that was asked for."""
        self._read_list()
        unfinished = [cell for folder, cell in self.cells.items() if folder not in self._before]
        return Sweep(self.outputs, self.study, list(self.cells.values()), [], unfinished)

    def _take_of_round(self) -> tuple[Planned, Lock] | None:
        """The first of this round that can be had. Last come cells whose search another runner makes now, and those of
        an owner elsewhere who was heard too long ago: to take one of these is to wait for another heartbeat."""
        later: list[str] = []
        while self._next:
            folder = self._next.popleft()
            if not self._is_open(folder):
                continue
            self._seen.append(folder)
            if self._is_taken(folder) or not self._can_start(folder):
                continue
            if self._is_searched_for(folder) or lock.is_late(self.outputs / folder / lock.FILE, self._now):
                later.append(folder)
            elif (claimed := self._claim(folder)) is not None:
                return self.cells[folder], claimed
        tried = ((folder, self._claim(folder)) for folder in later)
        return next(((self.cells[folder], claimed) for folder, claimed in tried if claimed is not None), None)

    def _claim(self, folder: str) -> Lock | None:
        """The lock of a cell, if it is to be had and the cell is still open.

        Raises:
            Unwritable: the folder cannot be written.
        """
        self._claimed = claimed = Lock(self.outputs / folder)
        claimed.take()
        if claimed.held and self._is_open(folder):
            self.tries[folder] = self.tries.get(folder, 0) + 1
            return claimed
        claimed.release()
        if claimed.refused:
            raise Unwritable(f"{self.outputs / folder}: cannot be written ({claimed.refused})")
        return None

    def _begin_round(self) -> None:
        """Look at all cells again that may be open, those first that are expected to take longest."""
        self._round, self._now = time.monotonic(), lock.clock_of(self.outputs / self.study)
        still_open = [folder for folder in self._seen if self._is_open(folder)]
        estimates = Estimates(self._took.items())
        again = [*self._next, *still_open]
        again.sort(key=lambda folder: estimates.seconds(folder) or 0.0, reverse=True)
        self._next, self._seen = deque(again), []

    def _read_list(self) -> None:
        """Read the study's list, if it changed."""
        now = stamp(self.outputs / self.study / index.FILE)
        if now == self._listed:
            return
        self._listed = now
        self._by_words |= index.read(self.outputs / self.study)
        listed = {cell.folder: cell for cell in self._by_words.values()}
        new = [folder for folder in listed if folder not in self.cells]
        self.cells, self._names = listed, index.names(listed.values())
        for folder in new:
            self._kinds.setdefault(kind_of(folder), []).append(folder)
        done_before = {folder for folder in new if self._status(folder) == "done"}
        self._before |= done_before
        others = [folder for folder in new if folder not in done_before]
        self._random.shuffle(others)
        self._next += others
        self._states.keep()
        self._begin_round()

    def _is_open(self, folder: str) -> bool:
        """Whether a cell is to be run by this worker, as its record is now."""
        if folder not in self.cells or self.tries.get(folder, 0) >= MOST_TRIES:
            return False
        status = self._status(folder)
        if status in ("done", "quarantined", "deadly", "unreadable"):
            return False
        return status is None or not self._failed_here(folder)

    def _failed_here(self, folder: str) -> bool:
        """Whether a cell failed on this host since this worker began: another host may try it."""
        path = self.outputs / folder / RECORD_FILE
        try:
            hosts = self._states.glance(path).failed_on
            return socket.gethostname() in hosts and path.stat().st_mtime >= self._began
        except (OSError, DataError):
            return False

    def _status(self, folder: str) -> str | None:
        try:
            state = self._states.state(self.cells[folder])
        except DataError:
            return "unreadable"
        if state.status == "done" and state.seen.seconds is not None:
            self._took[folder] = state.seen.seconds
        return state.status

    def _is_taken(self, folder: str) -> bool:
        """Whether another runner has a cell, by the folder's clock when the round began."""
        path = self.outputs / folder / lock.FILE
        return path.exists() and lock.alive(path, self._now)

    def _parents(self, cell: Planned) -> dict[Parent, Planned]:
        """The cells of the study that this one starts from or is taught by."""
        return {key: self._names[name] for key, name in cell.after.items() if name in self._names}

    def _can_start(self, folder: str) -> bool:
        """Whether the cells that this one starts from are done. Where a cell lies follows from what it starts from, so
        what was listed before that was there is listed again.

        Raises:
            BadInput: what is listed again is not possible.
        """
        cell = self.cells[folder]
        parents = self._parents(cell)
        if any(self._status(parent.folder) != "done" for parent in parents.values()):
            return False
        if not parents or (cell.reads is not None and done.still_starts_from(cell.reads)):
            return True
        changed = {words: other for words, other in self._by_words.items() if other.after == cell.after}
        lines = {words: self._starting_from(parents, other) for words, other in changed.items()}
        try:
            for words, other in changed.items():
                self.plain(replace(other, overrides=lines[words]))
            sweep.list_again(self.outputs, self.study, lines)
        except BadInput:
            self.tries |= {other.folder: MOST_TRIES for other in changed.values()}
            raise
        self._read_list()
        return folder in self.cells

    def _starting_from(self, parents: Mapping[Parent, Planned], cell: Planned) -> list[str]:
        """The words of a cell, with the folders that its parents have by now."""
        moved = {key: one.folder for key, one in parents.items() if one.folder != cell.after[key]}
        words = [word for word in cell.overrides if word.partition("=")[0].lstrip("+") not in moved]
        whole = self.outputs.resolve()  # other workers may run in other folders
        return [*words, *(f"{key}={escape.value(str(whole / folder))}" for key, folder in moved.items())]

    def _is_searched_for(self, folder: str) -> bool:
        """Whether a cell needs a search that a runner makes now for another seed of it."""
        if not self.cells[folder].searches:
            return False
        seeds = self._kinds[kind_of(folder)]
        return any(map(self._is_taken, seeds)) and not any(self._status(other) == "done" for other in seeds)
