"""An artefact: something made of finished runs, and recorded, found again and shown as a run is.

Its cell is the recipe on one task and data, of parents of one seed. Its record names the parents by the hashes of their
deltas, and counts while parents and rows are what they were; it is moved aside and made anew when they are not. One
runner makes it, by the lock of a cell. Predictions come first and the record last, so that an end in between loses no
more than the artefact that was being made.
"""

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.backbone.weights import beside
from peftbench.config import compose
from peftbench.config.fingerprint import digest
from peftbench.config.spec import Cell, ModelSpec, TaskSpec, TrackerSpec
from peftbench.data.rows import Rows
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground import escape
from peftbench.ground.errors import ConfigError, DataError, near, shown
from peftbench.ground.files import DELTA_FILE, RECORD_FILE, expanded
from peftbench.lifecycle.parents import Parent, one_seed
from peftbench.record import (
    SCHEMA,
    CellName,
    Counts,
    Git,
    Hardware,
    Hashes,
    Made,
    Memory,
    Record,
    Worker,
    changed_parents,
    finished_record,
    write_record,
)
from peftbench.runner import provenance
from peftbench.runner.delta import Delta
from peftbench.runner.recording import headline, keep_predictions, metrics, times_of
from peftbench.runner.run import Outcome, read_rows
from peftbench.runner.tracking import Stopwatch, follow_made
from peftbench.study import done
from peftbench.study.cell import Screen
from peftbench.study.done import InputHashes
from peftbench.study.lock import Elsewhere, Lock, forget_deaths, owner
from peftbench.training.fit import Fit, Scores

PLACE = ("data", "study", "outputs", "cache", "tracker")  # words that say where an artefact is kept, and who is told
WORDS = ("task", *PLACE)


@dataclass(frozen=True)
class Where:
    """The rows that an artefact is scored on, and where it is kept.

    Attributes:
        cell: gives task, data, cache; its model and protocol are the parents'.
        outputs: the folder of studies.
        tracker: who is told of it.
    """

    cell: Cell
    outputs: Path
    study: str
    tracker: TrackerSpec

    @property
    def task(self) -> TaskSpec:
        """The task that it is scored on."""
        return self.cell.task.parts[0]

    @property
    def rows(self) -> Rows:
        """The rows that are scored, or predicted where the task has no others."""
        return Rows(self.cell.data, replace(self.task, train=None), None, tested=not self.task.dev)


def where_of(words: Sequence[str], run: Parent, allowed: Sequence[str] = WORDS) -> Where:
    """Where an artefact of a run is scored and kept: as these words say, and else as the run was.

    Args:
        words: task=, data=, study=, outputs=, cache=, tracker= and keys of them.
        allowed: words and groups that may be among them.

    Raises:
        ConfigError: a word is none of these, or not possible, or the run learned several tasks and none is named.
    """
    typed = groups_of(words, allowed)
    start = f"init_from={escape.value(str(run.folder))}"  # a task without training rows asks for one
    cell = compose.cell_from([*words, start])
    if "task" not in typed:
        cell = replace(cell, task=run.one_task())
    if len(cell.task.parts) > 1:
        raise ConfigError(f"task={cell.task.name}: an artefact is scored on one task; name one of them")
    if "data" not in typed:
        cell = replace(cell, data=run.data)
    outputs = expanded(cell.outputs) if "outputs" in typed else run.outputs
    tracker = cell.tracker if "tracker" in typed else run.tracker
    return Where(cell, outputs, cell.study if "study" in typed else run.record.cell.study, tracker)


def groups_of(words: Sequence[str], allowed: Sequence[str] = WORDS) -> set[str]:
    """The words and groups that were typed, `data` of data.path=X.

    Raises:
        ConfigError: one is none of those that are allowed.
    """
    keys = [word.partition("=")[0].lstrip("+~") for word in words]
    if other := [key for key in keys if key.partition(".")[0] not in allowed]:
        raise ConfigError(f"{shown(other[0])}: not a word of an artefact; {near(other[0], allowed)}")
    return {key.partition(".")[0] for key in keys}


@dataclass(frozen=True)
class Recipe:
    """What an artefact is.

    Attributes:
        by: the command that makes it.
        name: its row of the table.
        keys: its settings.
        parents: in the order in which they matter.
        words: the command line that makes it.
        model: the backbone that it stands on; None: that of the first parent.
    """

    by: str
    name: str
    keys: Mapping[str, Any]
    parents: Sequence[Parent]
    words: Sequence[str]
    model: ModelSpec | None = None

    @property
    def backbone(self) -> ModelSpec:
        """What it stands on."""
        return self.model or self.parents[0].model


@dataclass(frozen=True)
class Result:
    """An artefact that was made and has predicted.

    Attributes:
        scores: on every metric; None where labels are not public.
        logits: (rows, labels) of every split.
        tokens: of the same splits.
        counts: entries that were trained for it, or that it changed.
        facts: what was seen on the way.
        weights: hash of the backbone's weights.
        delta: what later runs and commands take up, where there is such a thing.
    """

    scores: Scores | None
    logits: Mapping[str, np.ndarray]
    tokens: Mapping[str, Tokens]
    counts: Counts | None
    weights: str | None
    facts: dict[str, Any] = field(default_factory=dict)
    delta: Delta | None = None


def settle(recipe: Recipe, where: Where, make: Callable[[Mapping[str, Split]], Result], screen: Screen) -> int:
    """Make an artefact unless its record is there; returns the exit code.

    Args:
        make: makes and scores it, on these rows.
        screen: told how it goes.

    Raises:
        ConfigError: it is not possible, or its folder cannot be written.
        DataError: parents or rows cannot be read, or a parent changed while it was being made.
    """
    folder = folder_of(recipe, where)

    def record(check: Callable[[], None]) -> Record:
        watch, started = Stopwatch(), datetime.now(UTC)
        provenance.reset_peak_memory()
        rows = read_rows(where.rows)
        result = make(rows)
        delta = None if result.delta is None else result.delta.save(folder / DELTA_FILE, check)
        made = _record(recipe, where, result, rows, watch, started, delta)
        if changed := changed_parents(made.hashes, where.outputs):
            raise DataError(f"{changed[0]}: was run again while an artefact was made of it; the same command goes on")
        labels = {name: tokens.labels for name, tokens in result.tokens.items()}
        keep_predictions(folder, where.task, result.logits, labels, check)
        return made

    return settled(folder, lambda: inputs_of(recipe, where), record, screen, where.tracker)


def settled(
    folder: Path,
    inputs: Callable[[], InputHashes],
    make: Callable[[Callable[[], None]], Record],
    screen: Screen,
    tracker: TrackerSpec,
) -> int:
    """Make what a folder lacks and keep its record, as its only runner; returns the exit code.

    Args:
        folder: STUDY/CELL/SEED under the folder of studies.
        inputs: what it would be made of now; a record of anything else is moved aside.
        make: makes it and leaves all files but the record, which it gives; told what to call before each is written.
        screen, tracker: told how it goes, and what came of it.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: what it would be made of cannot be read.
    """
    with Lock(folder) as lock:
        if done.has_result(folder):
            place, need = done.find(folder, now := inputs())
            if need == "nothing" and (record := finished_record(place / RECORD_FILE)) is not None:
                screen.already_done(record, place / RECORD_FILE)
                return 0
        if lock.refused:
            raise ConfigError(f"outputs={folder.parents[2]}: {folder} cannot be written ({lock.refused})")
        if not lock.held:
            screen.elsewhere(folder, owner(lock.path))
            return Elsewhere.exit_code
        if done.has_result(folder):
            done.make_way(folder, now)
        record = make(lock.check)
        write_record(record, folder, lock.check)
        done.remove_checkpoint(folder)
        forget_deaths(folder)
        follow_made(tracker, folder, record)
    screen.ended(Outcome(record, folder / RECORD_FILE))
    return 0


def folder_of(recipe: Recipe, where: Where) -> Path:
    """The artefact's own folder, which follows from recipe, task, data and the parents' cells alone."""
    name = recipe.backbone.name
    words = [where.task.name, *re.findall(r"[\w.]+", recipe.name), name, fingerprint(recipe, where)[:8]]
    return where.outputs / where.study / "-".join(words) / f"seed{one_seed(recipe.parents)}"


def fingerprint(recipe: Recipe, where: Where) -> str:
    """16 hexadecimal digits that change with whatever decides the score, the seed apart."""
    data = where.cell.data
    source = {"source": data.source, "revision": data.revision, "limit": data.limit}
    decides = {
        "by": recipe.by,
        "rows": 2,  # of train that refit, choose or probe are drawn; before version 0.5 they were the first
        "keys": dict(recipe.keys),
        "parents": [one.record.fingerprint for one in recipe.parents],
        "task": asdict(where.task),
        "data": {**source, "path": data.path} if data.source == "hub" else source,
    }
    if recipe.model is not None:
        decides["model"] = recipe.model.meaning
    return digest(decides)[:16]


def inputs_of(recipe: Recipe, where: Where) -> InputHashes:
    """Hashes of what an artefact would be made of now."""
    reads = done.Reads(where.rows, recipe.backbone.weights, None, None, where.cell.cache)
    parents = {one.place(where.outputs): one.delta for one in recipe.parents}
    return replace(done.hash_inputs(reads), parents=parents)


def _record(
    recipe: Recipe,
    where: Where,
    result: Result,
    rows: Mapping[str, Split],
    watch: Stopwatch,
    started: datetime,
    delta: str | None,
) -> Record:
    """The record of an artefact: the first parent's configuration on this task, data and backbone."""
    task, first = where.task, recipe.parents[0].record
    fit = Fit() if result.scores is None else Fit([result.scores], 0, dict(result.logits))
    labels = {name: tokens.labels for name, tokens in result.tokens.items()}
    return Record(
        schema=SCHEMA,
        status="done",
        cell=CellName(
            task.name, recipe.name, recipe.backbone.name, where.cell.data.name, "none", first.cell.seed, where.study
        ),
        fingerprint=fingerprint(recipe, where),
        headline=headline(task, fit, labels),
        metrics=metrics(fit, "last"),
        counts=result.counts,
        budget={"name": "none", "asked": None, "used": result.counts.backbone if result.counts else 0, "left": None},
        time=times_of(fit, watch, started),
        memory=Memory(provenance.peak_memory_mb()),
        throughput=None,
        hashes=Hashes(
            data={name: split.sha256 for name, split in rows.items()},
            weights=result.weights,
            tokenizer=next((tokens.tokenizer for tokens in result.tokens.values()), None),
            beside=beside(recipe.backbone.weights),
            delta=delta,
            parents={one.place(where.outputs): one.delta for one in recipe.parents},
        ),
        versions=provenance.versions(),
        git=Git(**provenance.git()),
        hardware=Hardware(**provenance.hardware()),
        worker=Worker(socket.gethostname(), os.getpid()),
        overrides=list(recipe.words),
        config=_config(recipe, task, where),
        made=Made(recipe.by, dict(recipe.keys), result.facts),
    )


def _config(recipe: Recipe, task: TaskSpec, where: Where) -> dict[str, Any]:
    own: dict[str, Any] = {"task": _part(task), "data": _part(where.cell.data), "tracker": _part(where.tracker)}
    own |= {"study": where.study, "init_from": None}
    if recipe.model is not None:
        own["model"] = _part(recipe.model)
    return {**recipe.parents[0].record.config, **own}


def _part(spec: Any) -> dict[str, Any]:
    return {key: _as_json(value) for key, value in asdict(spec).items() if key != "name"}


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
