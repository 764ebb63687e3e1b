"""The runs that an artefact is made of: finished, with what they learned, of one seed and one backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peftbench.config.few_labels import PromptSpec
from peftbench.config.recorded import part
from peftbench.config.spec import DataSpec, ModelSpec, Task, TaskSpec, TrackerSpec
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import RECORD_FILE, place
from peftbench.record import Record, read_record
from peftbench.runner.deltas import model_spec
from peftbench.runner.readouts import asked, one_task, readout_spec, task_of


@dataclass(frozen=True)
class Parent:
    """A finished run.

    Attributes:
        folder: where its record and delta lie.
        delta: the hash of its delta.
    """

    folder: Path
    record: Record
    delta: str

    def place(self, outputs: Path) -> str:
        """Its folder as an artefact's record names it."""
        return place(self.folder, outputs)

    @property
    def trained_by(self) -> str:
        """What its row of an artefact is called by: its method, and its budget where it had one."""
        cell = self.record.cell
        return cell.method if cell.budget == "none" else f"{cell.method} {cell.budget}"

    @property
    def model(self) -> ModelSpec:
        """Its backbone."""
        return model_spec(self.record)

    @property
    def task(self) -> Task:
        """The task that it was trained for."""
        return task_of(self.record)

    def one_task(self, word: str | None = None) -> TaskSpec:
        """That task, or the named one of several.

        Raises:
            ConfigError: it was not trained for it, or for several and none is named.
        """
        return one_task(self.record, word, self.folder)

    @property
    def data(self) -> DataSpec:
        """Where its rows came from."""
        return part(self.record, DataSpec, "data")

    @property
    def outputs(self) -> Path:
        """The folder of studies that it lies in."""
        return self.folder.resolve().parents[2]

    @property
    def prompt(self) -> PromptSpec | None:
        """The prompt that it puts rows into; None: it reads them as they are."""
        return asked(readout_spec(self.record), self.task)

    @property
    def is_plain(self) -> bool:
        """Whether it is a classifier of all labels."""
        return readout_spec(self.record).kind == "classifier" and not self.record.few

    @property
    def protocol(self) -> TrainingProtocol:
        """How it was trained."""
        return part(self.record, TrainingProtocol, "protocol")

    @property
    def tracker(self) -> TrackerSpec:
        """Who followed it; nobody, where this version or machine has no such tracker."""
        try:
            return part(self.record, TrackerSpec, "tracker")
        except DataError:
            return TrackerSpec(mode="disabled")


def check_plain(run: Parent, done: str) -> None:
    """Refuse a run that is no classifier of all labels.

    Args:
        done: what is done with runs, in a word.

    Raises:
        ConfigError: it was read by a prompt, or had few labels.
    """
    if not run.is_plain:
        raise ConfigError(f"{run.folder}: a run of few labels or with a prompt; classifiers are {done}")


def parent(folder: Path) -> Parent:
    """The finished run in a folder.

    Raises:
        DataError: there is none, it did not end well, or it is an artefact that holds no delta.
    """
    record = read_record(folder / RECORD_FILE)
    if record.status != "done":
        raise DataError(f"{folder}: that run {record.status}; an artefact is made of finished runs")
    if record.hashes.delta is None:
        raise DataError(f"{folder}: holds no delta; an artefact is made of runs that learned one")
    return Parent(folder, record, record.hashes.delta)


def one_seed(parents: Sequence[Parent]) -> int:
    """The seed of all of them.

    Raises:
        ConfigError: they have several.
    """
    seeds = sorted({one.record.cell.seed for one in parents})
    if len(seeds) > 1:
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: the runs of one artefact are of one seed")
    return seeds[0]
