"""One cell, end to end: plan, read the rows, load the backbone, attach the method, train, record."""

import functools
import socket
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftbench.backbone.model import load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config.few import PromptSpec
from peftbench.config.fingerprint import digest
from peftbench.config.parents import row_of
from peftbench.config.spec import Cell, ModelSpec, Task, TrackerSpec
from peftbench.data.joint import joined
from peftbench.data.rows import POOL, Rows, rows_of
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens, tokenize
from peftbench.ground.errors import BadInput, ConfigError, Diverged
from peftbench.ground.files import DELTA_FILE, RECORD_FILE, cache_folder, expanded, keep_last, stamp
from peftbench.ground.machine import process_state
from peftbench.record import Record, Search, write_record
from peftbench.runner import budgets, deltas, objectives, provenance, readouts, selftrain
from peftbench.runner.chosen import chosen
from peftbench.runner.counts import count_cell, count_trained, counted_again, entries
from peftbench.runner.recording import (
    Status,
    Work,
    hashes_of,
    headline,
    keep_hydra_files,
    keep_predictions,
    record_of,
    times_of,
)
from peftbench.runner.tracking import MetricsFile, Stopwatch, bar, described_to_wandb, wandb_run
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Watcher
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
        config: the resolved configuration, as it goes into the record.
        overrides: what the user typed.
        search: how the learning rate or strata were chosen; None: they are the cell's own.
        check: called before anything is put in its place; what it raises ends the run without a record.
        failed_on: hosts on which the cell failed before.

    Raises:
        ConfigError: the cell is not possible; nothing was written.
        DataError: rows or weights cannot be read; nothing was written.
    """
    watch, started = Stopwatch(), datetime.now(UTC)
    provenance.reset_peak_memory()
    folder, fingerprint, row = expanded(cell.outputs) / cell.folder, cell.fingerprint, row_of(cell)
    cell = budgets.resolve(cell)
    work = Work(counts=count_cell(cell))
    cell = chosen(cell, search)
    keep = functools.partial(keep_hydra_files, folder, config, overrides)
    status: Status = "done"
    error: Exception | None = None
    try:
        with Stop() as stop:
            execute(cell, config, folder, fingerprint, work, keep, stop, check)
    except BadInput:
        raise
    except Diverged as caught:
        status, error = "diverged", caught
    except Exception as caught:  # the record keeps whatever went wrong; the sweep goes on
        status, error = "failed", caught

    record = record_of(
        cell,
        work,
        status,
        None if error is None else "".join(traceback.format_exception(error)),
        fingerprint=fingerprint,
        row=row,
        times=times_of(work.fit, watch, started),
        config=config,
        overrides=overrides,
        search=search,
        failed_on=[] if error is None else [*failed_on, *_host_of_failure(error)],
    )
    if process_state().is_main_process:
        write_record(record, folder, check)
        if status != "failed":  # a failure may pass, and the next try goes on from there
            work.checkpoints.remove()
    return Outcome(record, folder / RECORD_FILE, error)


def _host_of_failure(error: Exception) -> list[str]:
    """This host, unless a disk or the network failed, which is not the cell's fault."""
    return [] if isinstance(error, OSError) else [socket.gethostname()]


def execute(
    cell: Cell,
    config: Mapping[str, Any],
    folder: Path,
    fingerprint: str,
    work: Work,
    keep: Callable[[], None],
    stop: Stop,
    check: Callable[[], None],
) -> None:
    """Load, attach, count, train, and keep what was learned; `work` is told as it goes."""
    start = deltas.start_of(cell)  # before any cost: it may be refused
    if len(cell.task.parts) > 1 and process_state().num_processes > 1:
        raise ConfigError("task=joint: one process trains; several are not supported")
    objectives.check(cell)
    rows = read_rows(rows_of(cell))
    if sizes := [len(rows[name]) for name in cell.task.trained]:
        for steps in selftrain.lengths(cell, *sizes):
            count_cell(cell, steps)
    weights = weights_folder(cell.model)
    work.tokens = tokens = tokens_of(rows, tokenizing(cell, weights), cell.task)
    readout = readouts.made(cell.readout, cell.task, cell.model, weights)
    objective = objectives.made(cell, tokens.get("train"), stop.check)
    model, _ = load_model(cell.model, cell.task.num_labels, cell.seed, readout)
    work.hashes, work.drawn = hashes_of(cell, rows, tokens, model), sorted(model.drawn)
    work.attention = model.attention()
    before = entries(model)
    tuner = deltas.attached(cell, model, start)
    work.counts = count_trained(model, tuner, before)

    main = process_state().is_main_process  # the others compute with it; only the main process writes
    if main:
        keep()
    searched = [cell.protocol.lr, cell.protocol.head_lr, digest(cell.method.meaning)]  # the last: of strata
    made_by = [fingerprint, cell.seed, *searched]
    work.checkpoints = Checkpoints(folder, identity(made_by, work.hashes), cell.checkpoint_every, check)
    make = functools.partial(
        Trainer,
        task=cell.task,
        scored={name: tokens[name] for name in tokens if name != "train" and tokens[name].labels is not None},
        choosing=choosing(cell.task, cell.protocol.selection),
        seed=cell.seed,
        log_every=cell.tracker.log_every,
        stop=stop,
    )
    trainer = make(model, tuner, cell.protocol, train=tokens.get("train"), objective=objective)
    title = f"{cell.task.name} {cell.method.name} seed {cell.seed}" if cell.progress else None
    described = described_to_wandb(cell, {**config, "fingerprint": fingerprint})
    phases: list[dict[str, Any]] = []
    with watchers(cell.tracker, folder, title, described) as following:
        if cell.selftrain.kind == "none":
            trainer.watchers, trainer.checkpoints, work.fit = following, work.checkpoints, trainer.fit
            fit = trainer.run()
        else:
            learners = selftrain.Learners(cell, readout, start, make, trainer)
            fit, phases = selftrain.train(learners, tokens, work, following)
            trainer = learners.last
        delta = deltas.learned(cell, trainer.model, trainer.tuner, start)
        work.counts = counted_again(work.counts, trainer.model, trainer.tuner, delta.stored_bytes)
        work.facts = {**trainer.tuner.facts(), **({"phases": phases} if phases else {})}
        asked = [name for name in tokens if tokens[name].labels is None and name != POOL]
        unseen = {name: trainer.evaluator.predict(tokens[name]) for name in asked}
        if main:
            work.hashes["delta"] = delta.save(folder / DELTA_FILE, check)
            keep_predictions(folder, cell.task, {**fit.logits, **unseen}, work.labels, check)
        for watcher in following:
            watcher.end({**work.counts.as_dict(), cell.task.headline: headline(cell.task, fit, work.labels).value})


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
    tracker: TrackerSpec, folder: Path, progress: str | None, described: Mapping[str, Any]
) -> Iterator[list[Watcher]]:
    """Those who follow a run: metrics.jsonl, a progress bar of this title, W&B. Only the main process has any."""
    with ExitStack() as stack:
        following: list[Watcher] = []
        if process_state().is_main_process:
            following.append(stack.enter_context(MetricsFile(folder / "metrics.jsonl")))
            following += stack.enter_context(bar(progress or "", show=progress is not None))
            following += stack.enter_context(wandb_run(tracker, folder, described))
        yield following


def choosing(task: Task, selection: str) -> str:
    """The metric that a selection rule looks at."""
    return task.headline if selection != "held_out" else f"{task.plain_headline}_held_out"
