"""Command lines of artefacts that a study keeps for its workers, and how each of them ended."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from peftbench.ground import escape, untrusted
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import END_FILE, write_atomically
from peftbench.study import index, lock

FILE = "artefacts.json"
ENDS = ".artefacts"  # a folder for every line: its lock, and how it ended
MOST_LINES = 10_000
MOST_WORDS = 100
LONGEST_WORD = 10_000  # characters
LONGEST_END = 64 << 10  # bytes
OF_A_RUN = ("score", "edit")  # commands that take a run's folder before their words
COMMANDS = ("merge", "port", "sequence", *OF_A_RUN)
SEED = re.compile(r"/(split\d+-)?seed\d+\Z")


@dataclass(frozen=True)
class Line:
    """What a worker makes.

    Attributes:
        words: the command and its words, but for outputs=, which every machine has its own of. Where the command takes
            a run, it comes second, by its folder under the outputs.
    """

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def key(self) -> str:
        """The same for the same words."""
        return hashlib.sha256(json.dumps(self.words).encode()).hexdigest()[:16]

    @property
    def named(self) -> str | None:
        """The folder of the run that the command takes; None: it takes none."""
        return self.words[1] if self.words[0] in OF_A_RUN else None

    @property
    def source(self) -> str | None:
        """The study of the runs that it is made of; None: it is made of none."""
        if self.words[0] == "sequence":
            return None
        if self.named is not None:
            return self.named.partition("/")[0]
        return next(word.partition("=")[2] for word in self.words if word.startswith("from="))

    @property
    def run(self) -> str | None:
        """The folder of the one run that it is made of; None: any runs of the study may be."""
        return self.named if self.words[0] == "score" else None

    def arguments(self, outputs: Path) -> list[str]:
        """What the command is given where the studies lie in `outputs`."""
        run = [] if self.named is None else [str(outputs / self.named)]
        return [*run, *self.words[1 + len(run) :], f"outputs={escape.value(str(outputs))}"]


@dataclass(frozen=True)
class End:
    """How a line ended the last time.

    Attributes:
        failed_on: hosts on which it failed since it last went well.
        reason: why it failed.
    """

    status: Literal["done", "failed"]
    failed_on: tuple[str, ...] = ()
    reason: str | None = None


def placed(words: Sequence[str], study: str, outputs: Path) -> tuple[Path, str, Line]:
    """A command line as a study keeps it, after the folder of studies and the study.

    Args:
        words: the command and its words.
        study: the artefacts' own, where the words say which.
        outputs: the folder of studies.
    """
    line = Line(tuple(word for word in words if not word.startswith("outputs=")))
    named = any(word.startswith("study=") for word in words)
    return outputs, study if named else line.source or study, line


def read(study: Path) -> list[Line]:
    """The lines of a study, in the order in which they were added.

    Raises:
        DataError: its file cannot be read, or holds what no line can be.
    """
    file = index.read_list(study / FILE, _file(), "a list of artefacts' lines")
    lines = [] if file is None else list(dict.fromkeys(map(Line, file.lines)))
    for line in lines:
        if (problem := _problem(line)) is not None:
            raise DataError(f"{study / FILE}: {shown(line)}: {problem}")
    return lines


def add(study: Path, lines: Sequence[Line]) -> list[Line]:
    """Add lines to a study; gives those that it did not have. One that it had and that failed is open again.

    Raises:
        ConfigError: a line cannot be kept, there are too many, or the folder cannot be written.
        DataError: as `read`.
    """
    for line in lines:
        if (problem := _problem(line)) is not None:
            raise ConfigError(f"{shown(line)}: {problem}")
    with _writing(study):
        new = _add(study, lines)
        for line in lines:
            _open_again(study, line)
        return new


def united(studies: Iterable[Path]) -> dict[Line, End | None]:
    """The lines of several folders of one study, and how each ended: well, where it did anywhere, or else it failed on
    the hosts of all.

    Raises:
        DataError: as `read`.
    """
    ends: dict[Line, End | None] = {}
    for study in studies:
        for line in read(study):
            one, other = ends.get(line), end_of(study, line)
            if one is None or (other is not None and other.status == "done"):
                ends[line] = other
            elif one.status == "failed" and other is not None:
                ends[line] = replace(one, failed_on=tuple(dict.fromkeys([*one.failed_on, *other.failed_on])))
    return ends


def keep(study: Path, ends: Mapping[Line, End | None]) -> None:
    """Keep lines and how they ended elsewhere. Of one that a worker has, it will say itself.

    Raises:
        ConfigError, DataError: as `add`.
    """
    if not ends:
        return
    with _writing(study):
        _add(study, list(ends))
        for line, end in ends.items():
            if end is not None and end != end_of(study, line):
                with lock.Lock(folder_of(study, line)) as held:
                    if held.held:
                        write_end(study, line, end, held.check)


@contextmanager
def _writing(study: Path) -> Iterator[None]:
    """Within, no other runner changes the study's lists.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        with index.alone(study):
            yield
    except OSError as error:
        raise ConfigError(f"outputs={study.parent}: {study} cannot be written ({error.strerror})") from None


def _add(study: Path, lines: Sequence[Line]) -> list[Line]:
    known = dict.fromkeys(read(study))
    new = [line for line in dict.fromkeys(lines) if line not in known]
    if len(known) + len(new) > MOST_LINES:
        raise ConfigError(f"{study / FILE}: a study keeps {MOST_LINES:,} lines at most")
    raw = {"schema": index.SCHEMA, "lines": [line.words for line in [*known, *new]]}
    if new:
        write_atomically(study / FILE, json.dumps(raw, ensure_ascii=False, indent=1).encode())
    return new


def folder_of(study: Path, line: Line) -> Path:
    """Where a line's lock and end lie."""
    return study / ENDS / line.key


def end_of(study: Path, line: Line) -> End | None:
    """How a line ended; None: it did not yet, or nobody can tell."""
    try:
        raw = untrusted.read_json(folder_of(study, line) / END_FILE, LONGEST_END)
        end: End = _end().validate_python(raw)
    except (OSError, ValueError):
        return None
    return end


def write_end(study: Path, line: Line, end: End, check: Callable[[], None]) -> None:
    """Keep how a line ended.

    Args:
        check: as of `write_atomically`.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomically(folder_of(study, line) / END_FILE, json.dumps(asdict(end), ensure_ascii=False).encode(), check)


def _open_again(study: Path, line: Line) -> None:
    """Forget how a line failed, and who died with it."""
    end = end_of(study, line)
    if end is not None and end.status == "failed":
        (folder_of(study, line) / END_FILE).unlink(missing_ok=True)
    lock.forget_deaths(folder_of(study, line))


def _problem(line: Line) -> str | None:
    """Why these words are no line that a worker takes."""
    command, *words = line.words
    if command not in COMMANDS:
        return f"{shown(command)} is none of {', '.join(COMMANDS)}"
    if wrong := [word for word in words if word.startswith(("-", "outputs=")) or not word.isprintable()]:
        return f"{shown(wrong[0])} cannot be kept in a list"
    if command in OF_A_RUN:
        is_run = index.is_inside(words[0], words[0].partition("/")[0]) and SEED.search(words[0])
        return None if is_run else "a run's folder, STUDY/CELL/SEED, must come first"
    if command == "sequence":
        return None
    sources = [word.partition("=")[2] for word in words if word.startswith("from=")]
    if len(sources) != 1 or sources[0] in ("", ".", "..") or "/" in sources[0]:
        return "from= must name one study"
    return None


_Word = Annotated[str, Field(max_length=LONGEST_WORD)]


@dataclass(frozen=True)
class _File:
    lines: Annotated[
        list[Annotated[tuple[_Word, ...], Field(min_length=2, max_length=MOST_WORDS)]], Field(max_length=MOST_LINES)
    ]
    schema: int = index.SCHEMA


@cache
def _file() -> TypeAdapter[_File]:
    return TypeAdapter(_File)


@cache
def _end() -> TypeAdapter[End]:
    return TypeAdapter(End)
