"""The commands as functions, for a notebook or another program: see `peftbench`."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.config import compose, userfiles
from peftbench.ground import environment
from peftbench.ground.files import expanded
from peftbench.record import Counts, Record, Search
from peftbench.study.cell import settle
from peftbench.study.lock import Elsewhere

if TYPE_CHECKING:
    from peftbench.report.records import Study
    from peftbench.runner.run import Outcome

environment.prepare()  # of threads: before torch is imported


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        record: everything that is known about it; `record.headline.value` is its score in [-1, 1].
        folder: where the record, the delta and the predictions lie.
    """

    record: Record
    folder: Path


def run(*words: str) -> Result:
    """Run one cell, or find it finished, as `peftbench run` does.

    Args:
        words: the overrides, e.g. "task=rte", "method=lora", "protocol.lr=1e-3".

    Raises:
        ConfigError: the words describe no cell that is possible.
        DataError: rows or weights cannot be read.
        BadInput: another runner has the cell.
        Exception: whatever ended the training; `Diverged` where a loss was not finite. The record says so too.
    """
    listener = _Listener()
    settle(compose.plain(words), [compose.longhand(word) for word in words], listener)
    assert listener.result is not None
    return listener.result


def count(*words: str) -> Counts:
    """How many entries would train, without loading weights, as `peftbench count` does.

    Raises:
        ConfigError: the words describe no cell that is possible.
    """
    from peftbench.runner.counts import count_cell

    return count_cell(compose.cell_from(words))


def load_study(study: str | Path, model: str = "all") -> "Study":
    """The records of a study.

    Args:
        study: its folder, or its name where it lies under ./outputs.
        model: only this backbone, or "all".

    Raises:
        ConfigError: there is no such study, or no record in it.
    """
    from peftbench.report import records

    folder = expanded(study)
    outputs = Path("outputs") if folder.name == str(study) else folder.parent
    return records.read_study(outputs, folder.name, model)


def apply(run: str | Path, output: str | Path, searchpath: str | Path | None = None, task: str | None = None) -> Path:
    """Write a finished run's model, its delta merged in, as `AutoModelForSequenceClassification.from_pretrained` loads
    it; returns that folder.

    Args:
        run: the run's folder.
        output: the folder to write.
        searchpath: folder of your own configuration, where the run's method is none of this package's.
        task: whose head it gets, where the run learned several together.

    Raises:
        ConfigError: its method cannot be merged (adapters), or it learned several tasks and none is named.
        DataError: the run cannot be read.
    """
    from peftbench.runner.apply import write_model

    known = set() if searchpath is None else userfiles.classes(Path(searchpath))
    note = write_model(Path(run), Path(output), known, task)
    if note:
        warnings.warn(note, stacklevel=2)
    return Path(output)


class _Listener:
    """Told how a cell goes, in the place of a terminal."""

    result: Result | None = None

    def already_done(self, record: Record, path: Path) -> None:
        """The cell has a finished record."""
        self.result = Result(record, path.parent)

    def predicted(self, record: Record, path: Path) -> None:
        """The cell has a finished record, and what it learned has predicted the test rows."""
        self.result = Result(record, path.parent)

    def searched(self, search: Search) -> None:
        """The learning rate was chosen; the record says how."""

    def elsewhere(self, folder: Path, owner: str) -> None:
        """Another runner has the cell."""
        raise Elsewhere(f"{folder}: {owner} is running it")

    def ended(self, outcome: "Outcome") -> None:
        """The run ended."""
        if outcome.error is not None:
            raise outcome.error
        self.result = Result(outcome.record, outcome.path.parent)
