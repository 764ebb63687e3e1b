"""How the cells of a study stand by their records, each read once, and again only where its file has changed.

What was read is kept in the study's folder. Whatever is wrong with that file, the records themselves are read.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from peftbench.ground import untrusted
from peftbench.ground.errors import BadInput
from peftbench.ground.files import RECORD_FILE, YOUNG, write_atomically
from peftbench.record import Glance, Hashes, changed_parents, glance
from peftbench.study import done, lock
from peftbench.study.done import InputHashes, Need, Reads
from peftbench.study.index import Planned
from peftbench.study.owners import Owner

FILE = ".records.json"
MOST_BYTES = 64 << 20  # of that file: a record has 150
HOSTS = 2  # on which a cell fails before it is left alone
DEATHS = 3  # of runners of a cell, after which workers leave it alone: whoever gives the command himself tries it again
ASIDE = re.compile(r"((?:split\d+-)?seed\d+)-[0-9a-f]{8}")

Stamp = tuple[int, int, int, int]
Place = Annotated[int, Field(ge=0)]
_Line = tuple[Stamp, str | None, float | None, float | None, list[str], Place]


@dataclass(frozen=True)
class CellState:
    """Where a cell's result lies, what is seen of its record, and what the cell needs.

    Attributes:
        need: None: what the cell reads is not known, or cannot be read.
        changed: the runs of an artefact that have learned something else since it was made.
        deaths: the runners that died with the cell, where it needs something.
    """

    folder: Path
    seen: Glance
    need: Need | None
    changed: Sequence[str] = ()
    deaths: Sequence[Owner] = ()

    @property
    def status(self) -> str | None:
        """How its record stands: "done" only where nothing is to be run for the cell; "quarantined" after failures on
        several hosts, "deadly" after several deaths of its runners.
        """
        if self.need == "nothing":
            return "done"
        if self.is_quarantined:
            return "quarantined"
        if self.is_deadly:
            return "deadly"
        return None if self.seen.status == "done" else self.seen.status

    @property
    def is_quarantined(self) -> bool:
        """Whether the cell failed on so many hosts that somebody has to ask for it."""
        return self.seen.status in ("failed", "diverged") and len(self.seen.failed_on) >= HOSTS

    @property
    def is_deadly(self) -> bool:
        """Whether so many runners died with the cell that no worker takes it again."""
        return len(self.deaths) >= DEATHS


@dataclass(frozen=True)
class _Kept:
    """Of every record that was read: its file's stamp, status, seconds, MiB, hosts, and the place of its hashes."""

    made_of: list[Hashes] = field(default_factory=list)
    records: dict[str, _Line] = field(default_factory=dict)


class CellStates:
    """One look at a study's cells, which `keep` lets the next look profit from."""

    def __init__(self, outputs: Path, study: str) -> None:
        self.outputs, self.study = outputs, study
        self._path = outputs / study / FILE
        self._study = f"{outputs / study}{os.sep}"
        self._known = _read(self._path)
        self._fresh: dict[str, tuple[Stamp, Glance]] = {}
        self._inputs: Callable[[Reads], InputHashes | None] = done.once_each(_inputs)
        self._beside = functools.cache(_beside)
        self._glance_at_parent = functools.cache(glance)  # what is kept of a record does not say what it learned

    def state(self, cell: Planned) -> CellState:
        """How a cell stands.

        Raises:
            DataError: its record is there and cannot be read.
        """
        folder = self.outputs / cell.folder
        inputs = None if cell.reads is None else self._inputs(cell.reads)
        if inputs is None:
            seen = self.glance(folder / RECORD_FILE)
            changed = changed_parents(seen.hashes, self.outputs, self._glance_at_parent)
            deaths = [] if seen.status == "done" and not changed else lock.deaths(folder)
            return CellState(folder, seen, "run" if changed else None, changed, deaths)
        result, need = done.find(folder, inputs, self.glance, lambda one: self._beside(one.parent).get(one.name, []))
        return CellState(
            result, self.glance(result / RECORD_FILE), need, deaths=[] if need == "nothing" else lock.deaths(folder)
        )

    def status(self, cell: Planned) -> str | None:
        """Its state's.

        Raises:
            DataError: as `state`.
        """
        return self.state(cell).status

    def glance(self, path: Path) -> Glance:
        """As `record.glance`, without reading what has not changed since it was read.

        Raises:
            DataError: as there.
        """
        name = str(path).removeprefix(self._study)
        try:
            now = _stamp(os.stat(path))
        except OSError:
            return glance(path)
        for known in (self._fresh, self._known):
            if name in known and known[name][0] == now:
                return known[name][1]
        seen = glance(path)
        self._fresh[name] = now, replace(seen, hashes=replace(seen.hashes, delta=None))
        return seen

    def keep(self) -> None:
        """Write down what was read, for the next look; where that is not possible, it is read again."""
        settled = {name: entry for name, entry in self._fresh.items() if time.time() - max(entry[0][1:3]) / 1e9 > YOUNG}
        if not settled:
            return
        made_of: list[Hashes] = []
        place: dict[str, int] = {}
        records = {}
        for name, (stamp, seen) in {**_read(self._path), **settled}.items():
            if (key := repr(seen.hashes)) not in place:
                place[key] = len(made_of)
                made_of.append(seen.hashes)
            records[name] = stamp, seen.status, seen.seconds, seen.peak_mb, seen.failed_on, place[key]
        with suppress(OSError):
            write_atomically(self._path, _adapter().dump_json(_Kept(made_of, records)))


def _inputs(reads: Reads) -> InputHashes | None:
    """The hashes of what a cell would read; None: it cannot be read, which its run will say."""
    try:
        return done.hash_inputs(reads)
    except BadInput:
        return None


def _beside(parent: Path) -> dict[str, list[Path]]:
    """Of every cell in a folder, the results that were moved out of the way of its own."""
    moved: dict[str, list[Path]] = {}
    with suppress(OSError):
        for name in sorted(os.listdir(parent)):
            if match := ASIDE.fullmatch(name):
                moved.setdefault(match[1], []).append(parent / name)
    return moved


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _read(path: Path) -> dict[str, tuple[Stamp, Glance]]:
    try:
        content = untrusted.read_bytes(path, MOST_BYTES)
        untrusted.check_number(content)
        kept = _adapter().validate_json(content, strict=True)
        return {
            name: (stamp, Glance(status, kept.made_of[place], seconds, peak_mb, hosts))
            for name, (stamp, status, seconds, peak_mb, hosts, place) in kept.records.items()
        }
    except (OSError, ValueError, IndexError):
        return {}


@functools.cache
def _adapter() -> TypeAdapter[_Kept]:
    return TypeAdapter(_Kept)
