"""One cell, end to end: plan, read the rows, load the backbone, attach the method, train, record."""

import functools
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from peftbench.backbone.model import Model, compute_precision, load
from peftbench.backbone.weights import weights_folder
from peftbench.config.spec import Cell
from peftbench.data.rows import rows_of
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens, tokenize, tokenizer_for
from peftbench.errors import BadInput, Diverged
from peftbench.files import DELTA_FILE, RECORD_FILE, keep_last, stamp, write_atomically
from peftbench.machine import process_state
from peftbench.record import (
    SCHEMA,
    CellName,
    Evaluation,
    Git,
    Hardware,
    Hashes,
    Headline,
    Memory,
    Metrics,
    Record,
    Search,
    Throughput,
    Times,
    write_record,
)
from peftbench.runner import budgets, deltas, provenance
from peftbench.runner.counts import Counts, count, counted_again, entries, plan
from peftbench.runner.tracking import MetricsFile, Stopwatch, bar, wandb_run
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Fit, Watcher
from peftbench.training.metrics import predict, standard_error
from peftbench.training.stopping import Stop
from peftbench.training.trainer import Trainer


@dataclass
class Outcome:
    """What a run came to: its record, where that lies, and the error that ended it, if any did."""

    record: Record
    path: Path
    error: Exception | None = None


@dataclass
class Work:
    """What is known of a run so far: its record is made of it, wherever the run ends."""

    counts: Counts
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    hashes: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    fit: Fit = field(default_factory=Fit)
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(Path(), {}, None))


def run(
    cell: Cell,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    search: Search | None = None,
    check: Callable[[], None] = lambda: None,
) -> Outcome:
    """Execute a cell and leave its record, also when training fails or diverges.

    Args:
        cell: what to run.
        config: the resolved configuration, as it goes into the record.
        overrides: what the user typed.
        search: how the learning rate was chosen; None: it is protocol.lr.
        check: called before anything is put in its place; what it raises ends the run without a record.

    Raises:
        ConfigError: the cell is not possible; nothing was written.
        DataError: rows or weights cannot be read; nothing was written.
    """
    watch, started = Stopwatch(), datetime.now(UTC)
    provenance.reset_peak_memory()
    work = Work(counts=plan(cell))
    folder, fingerprint = Path(cell.outputs).expanduser() / cell.folder, cell.fingerprint
    cell = budgets.resolve(cell)
    if search is not None:
        cell = replace(cell, protocol=replace(cell.protocol, lr=search.chosen))
    keep = functools.partial(keep_hydra_files, folder, config, overrides)
    status: Literal["done", "failed", "diverged"] = "done"
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

    record = Record(
        schema=SCHEMA,
        status=status,
        cell=cell_name(cell),
        fingerprint=fingerprint,
        headline=headline(cell, work.fit, work.tokens),
        metrics=metrics(cell, work.fit),
        counts=work.counts,
        budget={
            "name": cell.budget.name,
            "asked": cell.budget.entries,
            "used": work.counts.backbone,
            "left": None if cell.budget.entries is None else cell.budget.entries - work.counts.backbone,
            **work.facts,
        },
        time=times(work.fit, watch, started),
        memory=Memory(provenance.peak_memory_mb()),
        throughput=throughput(work.fit),
        hashes=Hashes(**work.hashes),
        versions=provenance.versions(),
        git=Git(**provenance.git()),
        hardware=Hardware(**provenance.hardware()),
        overrides=list(overrides),
        config=dict(config),
        error=None if error is None else "".join(traceback.format_exception(error)),
        search=search,
        drawn=work.drawn,
    )
    if process_state().is_main_process:
        check()
        write_record(record, folder)
        if status != "failed":  # a failure may pass, and the next try goes on from there
            work.checkpoints.remove()
    return Outcome(record, folder / RECORD_FILE, error)


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
    rows = read_rows(cell)
    weights = weights_folder(cell.model)
    work.tokens = tokens = tokenize_rows(cell, rows, weights)
    model, _ = load(cell.model, cell.task.num_labels, cell.seed)
    work.hashes, work.drawn = hashes_of(rows, tokens, model), sorted(model.drawn)
    before = entries(model)
    start = deltas.start_of(cell)
    tuner = deltas.start_from(cell, model, start)
    compute_precision(model, cell.protocol.precision, [*tuner.trainables().values(), *dict(model.head()).values()])
    work.counts = count(model, tuner, before)

    main = process_state().is_main_process  # the others compute with it; only the main process writes
    if main:
        keep()
    work.checkpoints = Checkpoints(folder, identity(cell, fingerprint, work.hashes), cell.checkpoint_every, check)
    trainer = Trainer(
        model=model,
        tuner=tuner,
        protocol=cell.protocol,
        task=cell.task,
        train=tokens.get("train"),
        scored={name: tokens[name] for name in tokens if name != "train" and tokens[name].labels is not None},
        choosing=choosing(cell),
        seed=cell.seed,
        log_every=cell.tracker.log_every,
        checkpoints=work.checkpoints,
        stop=stop,
    )
    work.fit = trainer.fit
    with watchers(cell, config, folder) as trainer.watchers:
        fit = trainer.run()
        delta = deltas.learned(cell, model, tuner, start)
        work.counts = counted_again(work.counts, model, tuner, delta.stored_bytes)
        work.facts = tuner.facts()
        unseen = {name: trainer.evaluator.predict(tokens[name]) for name in tokens if tokens[name].labels is None}
        if main:
            check()
            work.hashes["delta"] = delta.save(folder / DELTA_FILE)
            keep_predictions(cell, folder, tokens, {**fit.logits, **unseen})
        for watcher in trainer.watchers:
            watcher.end({**work.counts.as_dict(), cell.task.headline: headline(cell, fit, tokens).value})


def identity(cell: Cell, fingerprint: str, hashes: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint must have been made by to be taken up."""
    state = process_state()
    return {
        "cell": [fingerprint, cell.seed, cell.protocol.lr],
        "data": hashes["data"],
        "weights": hashes["weights"],
        "tokenizer": hashes["tokenizer"],
        "versions": provenance.versions(),
        "device": [state.device.type, state.num_processes],
    }


def _rows_asked_for(cell: Cell) -> Hashable:
    rows = rows_of(cell)
    return repr(rows), *rows.stamps()


@keep_last(identity=_rows_asked_for)
def read_rows(cell: Cell) -> Mapping[str, Split]:
    """The rows of every split that the cell needs: train, perhaps a held-out part of it, dev, perhaps test."""
    return rows_of(cell).read()


def _tokens_asked_for(cell: Cell, rows: Mapping[str, Split], weights: Path | None) -> Hashable:
    tokenizer = repr(cell.model) if weights is None else tuple(stamp(path) for path in sorted(weights.iterdir()))
    return tokenizer, *((name, split.sha256) for name, split in rows.items()), cell.protocol.max_length, cell.cache


@keep_last(identity=_tokens_asked_for)
def tokenize_rows(cell: Cell, rows: Mapping[str, Split], weights: Path | None) -> Mapping[str, Tokens]:
    """Token ids of every split, from the cache where they were made before."""
    tokenizer = tokenizer_for(cell.model, weights)
    cache = Path(cell.cache).expanduser()
    return {name: tokenize(split, tokenizer, cell.protocol.max_length, cache) for name, split in rows.items()}


@contextmanager
def watchers(cell: Cell, config: Mapping[str, Any], folder: Path) -> Iterator[list[Watcher]]:
    """Those who follow the run: metrics.jsonl, a progress bar, W&B. Only the main process has any."""
    with ExitStack() as stack:
        found: list[Watcher] = []
        if process_state().is_main_process:
            found.append(stack.enter_context(MetricsFile(folder / "metrics.jsonl")))
            found += stack.enter_context(bar(f"{cell.task.name} {cell.method.name} seed {cell.seed}", cell.progress))
            found += stack.enter_context(wandb_run(cell, config, folder))
        yield found


def choosing(cell: Cell) -> str:
    """The metric that the selection rule looks at."""
    if cell.protocol.selection != "held_out":
        return cell.task.headline
    return f"{cell.task.plain_headline}_held_out"


def headline(cell: Cell, fit: Fit, tokens: Mapping[str, Tokens]) -> Headline:
    """The headline metric of the selected evaluation, with its standard error over the rows it was scored on."""
    name = cell.task.headline
    if not fit.logits or name not in fit.evaluations[fit.selected].metrics:
        return Headline(name, None, None)
    split, plain = cell.task.scored()[name]
    labels = tokens[split].labels
    assert labels is not None
    error = standard_error(plain, predict(fit.logits[split]), labels)
    return Headline(name, fit.evaluations[fit.selected].metrics[name], error)


def metrics(cell: Cell, fit: Fit) -> Metrics:
    """All evaluations as the record holds them."""
    found = [Evaluation(**asdict(evaluation)) for evaluation in fit.evaluations]
    selected = found[fit.selected] if fit.logits else None
    return Metrics(selected, found, cell.protocol.selection, bool(selected and selected.collapsed))


def times(fit: Fit, watch: Stopwatch, started: datetime) -> Times:
    """Seconds by phase; what is neither training nor evaluation is set-up: reading, tokenising, loading, writing."""
    total = round(watch.seconds() + fit.earlier_s, 3)
    train, evaluation = round(fit.train_s, 3), round(fit.eval_s, 3)
    return Times(
        total_s=total,
        train_s=train,
        eval_s=evaluation,
        setup_s=round(total - train - evaluation, 3),
        started=started.isoformat(timespec="seconds"),
        ended=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def throughput(fit: Fit) -> Throughput | None:
    """Training speed, and how much of what was computed was padding; nothing where nothing was trained."""
    if not fit.tokens:
        return None
    seconds = max(fit.train_s, 1e-9)
    return Throughput(
        tokens_per_s=round(fit.tokens / seconds, 1),
        steps_per_s=round(fit.steps / seconds, 3),
        padding_share=round(fit.padded / max(1, fit.tokens + fit.padded), 4),
    )


def hashes_of(rows: Mapping[str, Split], tokens: Mapping[str, Tokens], model: Model) -> dict[str, Any]:
    """Hashes of what the run was made from."""
    return {
        "data": {name: split.sha256 for name, split in rows.items()},
        "tokenizer": next((split.tokenizer for split in tokens.values()), None),
        "weights": model.weights_sha256,
    }


def cell_name(cell: Cell) -> CellName:
    """The words that name the cell."""
    return CellName(
        cell.task.name,
        cell.method.name,
        cell.model.name,
        cell.data.name,
        cell.budget.name,
        cell.seed,
        cell.study,
    )


def keep_hydra_files(folder: Path, config: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Write `.hydra/config.yaml` and `.hydra/overrides.yaml`, as Hydra does for its own folders."""
    for name, content in (("config", dict(config)), ("overrides", list(overrides))):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_atomically(folder / ".hydra" / f"{name}.yaml", text.encode())


def keep_predictions(cell: Cell, folder: Path, tokens: Mapping[str, Tokens], logits: Mapping[str, np.ndarray]) -> None:
    """Write predictions/<split>.tsv: index, prediction, label (empty where not public), one logit per label."""
    names = cell.task.labels
    for split, values in logits.items():
        labels = tokens[split].labels
        lines = ["\t".join(["index", "prediction", "label", *(names or ["score"])])]
        for i, (row, prediction) in enumerate(zip(values, predict(values), strict=True)):
            shown = names[int(prediction)] if names else f"{prediction:.4f}"
            label = "" if labels is None else names[int(labels[i])] if names else f"{labels[i]:.3f}"
            lines.append("\t".join([str(i), shown, label, *(f"{logit:.5f}" for logit in row)]))
        write_atomically(folder / "predictions" / f"{split}.tsv", ("\n".join(lines) + "\n").encode())
