"""One cell, end to end: plan, read the rows, load the backbone, attach the method, train, record."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.backbone.model import Model
from peftbench.backbone.weights import weights_folder, weights_sha256
from peftbench.config.few_labels import PromptSpec
from peftbench.config.fingerprint import digest
from peftbench.config.parents import check_unchanged, parents, parents_of_update, row_of
from peftbench.config.spec import Cell, ModelSpec, Task, TrackerSpec
from peftbench.config.validate import classes_of
from peftbench.data.joint import joined
from peftbench.data.rows import POOL, Rows, rows_of
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens, tokenize
from peftbench.ground.errors import BadInput, ConfigError, Diverged
from peftbench.ground.files import (
    DELTA_FILE,
    METRICS_FILE,
    RECORD_FILE,
    cache_folder,
    expanded,
    keep_last,
    place,
    stamp,
)
from peftbench.ground.machine import process_state
from peftbench.methods.base import Tuner
from peftbench.record import Record, Search, write_record
from peftbench.runner import budgets, deltas, flops, objectives, provenance, readouts, selftrain
from peftbench.runner.chosen import chosen
from peftbench.runner.counts import count_resolved, count_trained, counted_again, entries
from peftbench.runner.delta import Delta, LearnedOn
from peftbench.runner.energy import Meter
from peftbench.runner.learner import Learner
from peftbench.runner.recording import (
    Asked,
    Ending,
    Work,
    cell_name,
    delta_facts,
    hashes_of,
    headline,
    keep_hydra_files,
    keep_predictions,
    record_of,
    times_of,
)
from peftbench.runner.tracking import TRACKERS, MetricsFile, Stopwatch, bar, described
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Watcher
from peftbench.training.objective import Objective
from peftbench.training.stopping import Stop
from peftbench.training.trainer import Trainer


@dataclass
class Outcome:
    """What a run came to: its record, where that lies, and the error that ended it, if any did."""

    record: Record
    path: Path
    error: Exception | None = None


def run(
    cell: Cell,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    search: Search | None = None,
    check: Callable[[], None] = lambda: None,
    failed_on: Sequence[str] = (),
) -> Outcome:
    """Execute a cell and leave its record, also when training fails or diverges.

    Args:
        cell: what to run.
        config, overrides, search, failed_on: see `Asked`.
        check: called before anything is put in its place; what it raises ends the run without a record.

    Raises:
        ConfigError: the cell is not possible; nothing was written.
        DataError: rows or weights cannot be read; nothing was written.
    """
    watch, started = Stopwatch(), datetime.now(UTC)
    provenance.reset_peak_memory()
    folder = expanded(cell.outputs) / cell.folder
    asked = Asked(config, overrides, search, failed_on, cell.fingerprint, row_of(cell))
    cell = budgets.resolve(cell)
    work = Work(counts=count_resolved(cell))
    cell = chosen(cell, search)
    with Meter() as meter:
        ending = ending_of(lambda stop: Run(cell, asked, folder, work, stop, check).execute())
        work.energy = meter.energy()
    first = min(started, work.checkpoints.started)
    record = record_of(cell, asked, work, ending, times_of(work.fit, watch, first))
    if process_state().is_main_process:
        write_record(record, folder, check)
        if ending.status != "failed":  # a failure may pass, and the next try goes on from there
            work.checkpoints.remove()
    return Outcome(record, folder / RECORD_FILE, ending.error)


def ending_of(execute: Callable[[Stop], None]) -> Ending:
    """How it ends; a signal and a wrong input, of which there is no record, are raised."""
    try:
        with Stop() as stop:
            execute(stop)
    except BadInput:
        raise
    except Diverged as error:
        return Ending("diverged", error)
    except Exception as error:  # the record keeps whatever went wrong; the sweep goes on
        return Ending("failed", error)
    return Ending("done")


@dataclass(frozen=True)
class Run:
    """One run of a cell: its phases, in the order in which `execute` goes through them.

    Attributes:
        cell: with its budget as a number and what a search chose.
        folder: the cell's own.
        work: what is known of the run so far; every phase tells it.
        stop: whether a signal asks to leave.
        check: called before anything is put in its place.
    """

    cell: Cell
    asked: Asked
    folder: Path
    work: Work
    stop: Stop
    check: Callable[[], None]

    def execute(self) -> None:
        """Read, load, train, and keep what was learned."""
        start = self.start()
        rows = self.read()
        weights = weights_folder(self.cell.model)
        self.work.tokens = tokens_of(rows, tokenizing(self.cell, weights), self.cell.task)
        learner = learner_of(self.cell, weights, start)
        objective = objective_of(self.cell, self.work.tokens.get("train"), self.stop.check)
        model, tuner = self.load(learner, rows)
        self.prepare()
        phase = selftrain.Phase(self.cell.protocol, self.work.tokens.get("train"), objective=objective)
        trainer = self.trainer(model, tuner, phase, self.work.checkpoints)
        with self.followed() as following:
            trainer = self.train(trainer, learner, following)
            self.keep(trainer, start)
            for watcher in following:
                watcher.end(self.summary())

    def start(self) -> Delta | None:
        """The delta that training starts from; what can be refused before any cost is refused."""
        cell = self.cell
        start = deltas.start_of(cell.init_from, cell.task, classes_of(cell.method))
        if len(cell.task.parts) > 1 and process_state().num_processes > 1:
            raise ConfigError("task=joint: one process trains; several are not supported")
        if start is not None:
            deltas.check_backbone(start, LearnedOn(cell.model.name, weights_sha256(cell.model)))
        check_unchanged(parents(cell))  # once `start` is read: a run that changes later did not give it
        objectives.check(parents_of_update(cell), cell.protocol.max_length)
        return start

    def read(self) -> Mapping[str, Split]:
        """Every split's rows; a method that cannot train for as many steps as they make is refused."""
        cell = self.cell
        rows = read_rows(rows_of(cell))
        if sizes := [len(rows[name]) for name in cell.task.trained]:
            for steps in selftrain.lengths(cell.selftrain, cell.protocol, *sizes):
                count_resolved(cell, steps)
        return rows

    def load(self, learner: Learner, rows: Mapping[str, Split]) -> tuple[Model, Tuner]:
        """The model with its method attached, counted; `rows` are what the tokens were made of."""
        cell, work = self.cell, self.work
        model = learner.load()
        outputs = expanded(cell.outputs)
        taught_by = {place(folder, outputs): sha256 for folder, sha256 in parents_of_update(cell).values()}
        work.hashes = hashes_of(taught_by, rows, work.tokens, model, cell.model.weights)
        work.drawn, work.attention = sorted(model.drawn), model.attention(process_state().device)
        before = entries(model)
        work.flops = flops.of_backbone(model, work.tokens)
        tuner = learner.attach(model)
        work.counts = count_trained(model, tuner, before)
        labelled, precision = work.tokens.get("train"), cell.protocol.precision
        selftrain.try_weights(cell.selftrain, cell.method.name, model, tuner, labelled, precision)
        return model, tuner

    def prepare(self) -> None:
        """The first files, and the checkpoints; of several processes the main one alone writes."""
        cell, asked = self.cell, self.asked
        if process_state().is_main_process:
            keep_hydra_files(self.folder, asked.config, asked.overrides, self.check)
        searched = [cell.protocol.lr, cell.protocol.head_lr, digest(cell.method.meaning)]  # the last: of strata
        made_by = identity([asked.fingerprint, cell.seed, *searched], self.work.hashes)
        self.work.checkpoints = Checkpoints(self.folder, made_by, cell.checkpoint_every, self.check)

    def trainer(self, model: Model, tuner: Tuner, phase: selftrain.Phase, checkpoints: Checkpoints) -> Trainer:
        """What trains this model in a phase."""
        cell, tokens = self.cell, self.work.tokens
        return Trainer(
            model,
            tuner,
            phase.protocol,
            cell.task,
            phase.rows,
            {name: tokens[name] for name in tokens if name != "train" and tokens[name].labels is not None},
            choosing(cell.task, cell.protocol.selection),
            cell.seed,
            objective=phase.objective,
            batches=phase.batches,
            log_every=cell.tracker.log_every,
            checkpoints=checkpoints,
            stop=self.stop,
        )

    def followed(self) -> AbstractContextManager[list[Watcher]]:
        """Those who follow the run."""
        cell, asked = self.cell, self.asked
        title = f"{cell.task.name} {cell.method.name} seed {cell.seed}" if cell.progress else None
        config = {**asked.config, "fingerprint": asked.fingerprint}
        told = described(cell_name(cell), cell.tracker.tags, config)
        return watchers(cell.tracker, self.folder, title, told, self.check)

    def train(self, trainer: Trainer, learner: Learner, watchers: Sequence[Watcher]) -> Trainer:
        """Train, in one phase or, with a teacher and its students, in several; gives the last trainer."""
        cell, work = self.cell, self.work
        if cell.selftrain.kind == "none":
            trainer.watchers, work.fit = watchers, trainer.fit
            trainer.run()
            return trainer
        labelled, pool = work.tokens["train"], work.tokens[POOL]
        sessions = selftrain.Sessions(cell.selftrain, cell.protocol, labelled, pool, cell.task.num_labels, cell.seed)
        learners = selftrain.Learners(learner.fresh, self.trainer, trainer)
        work.facts = {"phases": selftrain.train(learners, sessions, work, watchers)}
        return learners.last

    def keep(self, trainer: Trainer, start: Delta | None) -> None:
        """Keep what was learned, and predictions for rows without labels beside those of the selected evaluation."""
        cell, work, model, tuner = self.cell, self.work, trainer.model, trainer.tuner
        delta = deltas.learned(delta_facts(cell, model), model, tuner, start)
        work.counts = counted_again(work.counts, model, tuner, delta.stored_bytes)
        work.facts = {**tuner.facts(), **work.facts}
        unlabelled = [name for name, tokens in work.tokens.items() if tokens.labels is None and name != POOL]
        unseen = {name: trainer.evaluator.predict(work.tokens[name]) for name in unlabelled}
        if process_state().is_main_process:
            work.hashes["delta"] = delta.save(self.folder / DELTA_FILE, self.check)
            keep_predictions(self.folder, cell.task, {**work.fit.logits, **unseen}, work.labels, self.check)
        assert work.flops
        work.flops = flops.of_learned(work.flops, trainer, work.tokens, cell.selftrain.kind == "none")

    def summary(self) -> dict[str, Any]:
        """Final numbers by name, as watchers are told."""
        task, work = self.cell.task, self.work
        return {**work.counts.as_dict(), task.headline: headline(task, work.fit, work.labels).value}


def learner_of(cell: Cell, weights: Path | None, start: Delta | None) -> Learner:
    """How the cell's run makes what it trains.

    Args:
        weights: the folder of its backbone's; None: random ones.
        start: the delta that it starts from.

    Raises:
        ConfigError, DataError: as `readouts.made`.
    """
    readout, labels = readouts.made(cell.readout, cell.task, cell.model, weights), cell.task.num_labels
    precision = cell.protocol.precision
    return Learner(cell.model, labels, readout, cell.attachment, start, cell.keeps_head, precision, cell.seed)


def objective_of(cell: Cell, train: Tokens | None, check: Callable[[], None] = lambda: None) -> Objective | None:
    """What the cell's training makes small; None: the task's own loss.

    Args:
        train: the rows that will train; runs that teach an update answer each of them now.
        check: called between batches of these; may raise to leave.

    Raises:
        DataError: a teacher cannot be read, or was run again since the cell was composed.
    """
    if not cell.objective.updates or train is None:
        return readouts.objective(cell.readout, cell.task)
    teaching = objectives.Teaching(train, cell.task, cell.protocol, classes_of(cell.method), check)
    objective = objectives.muscle(cell.objective, Path(str(cell.init_from)), teaching)
    check_unchanged(parents_of_update(cell))  # after they were read: minutes lie between the first look and that
    return objective


def identity(cell: Sequence[Any], hashes: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint must have been made by to be taken up: by this cell, of these rows and weights, here."""
    state = process_state()
    return {
        "cell": list(cell),
        "data": hashes["data"],
        "weights": hashes["weights"],
        "tokenizer": hashes["tokenizer"],
        "folder of weights": hashes["beside"],
        "versions": provenance.versions(),
        "device": [state.device.type, state.num_processes],
    }


def _stamped(rows: Rows) -> Hashable:
    return repr(rows), *rows.stamps()


@keep_last(identity=_stamped)
def read_rows(rows: Rows) -> Mapping[str, Split]:
    """Every split of these rows; what was read last is kept for the next cell of a sweep."""
    return rows.read()


@dataclass(frozen=True)
class Tokenizing:
    """How rows become token ids: by whose tokenizer, how many at most, where they are kept, and in which prompt."""

    model: ModelSpec
    weights: Path | None
    max_length: int
    cache: str
    prompt: PromptSpec | None = None


def tokenizing(cell: Cell, weights: Path | None) -> Tokenizing:
    """How a cell's rows become token ids; `weights` is the folder of its backbone's."""
    prompt = readouts.asked(cell.readout, cell.task)
    return Tokenizing(cell.model, weights, cell.protocol.max_length, cell.cache, prompt)


def _tokens_asked_for(rows: Mapping[str, Split], how: Tokenizing) -> Hashable:
    files = () if how.weights is None else tuple(stamp(path) for path in sorted(how.weights.iterdir()))
    return repr(how), files, *((name, split.sha256) for name, split in rows.items())


@keep_last(identity=_tokens_asked_for)
def tokenize_rows(rows: Mapping[str, Split], how: Tokenizing) -> Mapping[str, Tokens]:
    """Token ids of every split, from the cache where they were made before."""
    tokenizer = readouts.tokenizer(how.prompt, how.model, how.weights)
    cache = cache_folder(how.cache)
    return {name: tokenize(split, tokenizer, how.max_length, cache) for name, split in rows.items()}


def tokens_of(rows: Mapping[str, Split], how: Tokenizing, task: Task) -> Mapping[str, Tokens]:
    """Token ids of every split as a run of the task has them: the training rows of several tasks are one split."""
    return joined(tokenize_rows(rows, how), task)


@contextmanager
def watchers(
    tracker: TrackerSpec,
    folder: Path,
    progress: str | None,
    told: Mapping[str, Any],
    check: Callable[[], None],
) -> Iterator[list[Watcher]]:
    """Those who follow a run: metrics.jsonl, a bar of this title, a tracker. Only the main process has any."""
    with ExitStack() as stack:
        following: list[Watcher] = []
        if process_state().is_main_process:
            following.append(stack.enter_context(MetricsFile(folder / METRICS_FILE, check)))
            following += stack.enter_context(bar(progress or "", show=progress is not None))
            following += stack.enter_context(TRACKERS[tracker.kind](tracker, folder, told))
        yield following


def choosing(task: Task, selection: str) -> str:
    """The metric that a selection rule looks at."""
    return task.headline if selection != "held_out" else f"{task.plain_headline}_held_out"
