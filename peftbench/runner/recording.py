"""What a run leaves beside its delta: the record, made of what is known of it, and the files that people read."""

import math
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from peftbench.backbone.model import Model
from peftbench.backbone.weights import beside
from peftbench.config.spec import Budget, Cell, Task
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground.files import write_atomically
from peftbench.record import (
    SCHEMA,
    Attention,
    CellName,
    Counts,
    Energy,
    Evaluation,
    Flops,
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
    Worker,
)
from peftbench.runner import provenance
from peftbench.runner.delta import DeltaFacts, LearnedFor, LearnedOn
from peftbench.runner.tracking import Stopwatch
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Fit
from peftbench.training.metrics import predict, standard_error

Status = Literal["done", "failed", "diverged"]


@dataclass
class Work:
    """What is known of a run so far: its record is made of it, wherever the run ends."""

    counts: Counts
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    hashes: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)
    attention: Attention | None = None
    flops: Flops | None = None
    energy: Energy | None = None
    fit: Fit = field(default_factory=Fit)
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(Path(), {}, None))

    @property
    def labels(self) -> dict[str, np.ndarray | None]:
        """Class ids or scores of every split; None where they are not public."""
        return {name: tokens.labels for name, tokens in self.tokens.items()}


@dataclass(frozen=True)
class Asked:
    """How a run was asked for.

    Attributes:
        config: the resolved configuration, as it goes into the record.
        overrides: what the user typed.
        search: how the learning rate or strata were chosen; None: they are the cell's own.
        failed_on: hosts on which the cell failed before.
        fingerprint: of the cell before its budget became a number and a search chose.
        row: see `parents.row_of`.
    """

    config: Mapping[str, Any]
    overrides: Sequence[str]
    search: Search | None
    failed_on: Sequence[str]
    fingerprint: str
    row: str | None


@dataclass(frozen=True)
class Ending:
    """How a run ended, and the error that ended it, if any did."""

    status: Status
    error: Exception | None = None

    @property
    def traceback(self) -> str | None:
        """The error with where it was raised."""
        return None if self.error is None else "".join(traceback.format_exception(self.error))

    def failed_on(self, before: Sequence[str]) -> list[str]:
        """Hosts on which the cell failed, this time included unless a disk or the network did, which is not its fault;
        none where it ended well."""
        if self.error is None:
            return []
        here = [] if isinstance(self.error, OSError) else [socket.gethostname()]
        return list(dict.fromkeys([*before, *here]))


def record_of(cell: Cell, asked: Asked, work: Work, ending: Ending, times: Times) -> Record:
    """The record of a run that ended: everything that is known about it.

    Args:
        cell: as it was run, with its budget as a number and the learning rate that was chosen.
    """
    return Record(
        schema=SCHEMA,
        status=ending.status,
        cell=cell_name(cell),
        fingerprint=asked.fingerprint,
        headline=headline(cell.task, work.fit, work.labels),
        metrics=metrics(work.fit, cell.protocol.selection),
        counts=work.counts,
        budget=budget_facts(cell.budget, work),
        time=times,
        memory=Memory(provenance.peak_memory_mb()),
        throughput=throughput(work.fit),
        hashes=Hashes(**work.hashes),
        versions=provenance.versions(),
        git=Git(**provenance.git()),
        hardware=Hardware(**provenance.hardware()),
        overrides=list(asked.overrides),
        config=dict(asked.config),
        error=ending.traceback,
        search=asked.search,
        drawn=work.drawn,
        attention=work.attention,
        worker=Worker(socket.gethostname(), os.getpid()),
        failed_on=ending.failed_on(asked.failed_on),
        row=asked.row,
        flops=work.flops,
        energy=work.energy,
    )


def budget_facts(budget: Budget, work: Work) -> dict[str, Any]:
    """What was asked for, what trains of the backbone, and what the method tells of how that was spent."""
    used = work.counts.backbone
    left = None if budget.entries is None else budget.entries - used
    return {"name": budget.name, "asked": budget.entries, "used": used, "left": left, **work.facts}


def headline(task: Task, fit: Fit, labels: Mapping[str, np.ndarray | None]) -> Headline:
    """The headline metric of the selected evaluation, with its standard error over the rows it was scored on.

    Of a mean over tasks the errors are independent, as their rows are.
    """
    name = task.headline
    if not fit.logits or name not in fit.evaluations[fit.selected].metrics:
        return Headline(name, None, None)
    errors = []
    for split, plain in task.headlines():
        known = labels[split]
        assert known is not None
        errors.append(standard_error(plain, predict(fit.logits[split]), known))
    return Headline(name, fit.evaluations[fit.selected].metrics[name], math.hypot(*errors) / len(errors))


def metrics(fit: Fit, selection: str) -> Metrics:
    """All evaluations as the record holds them."""
    evaluations = [Evaluation(**asdict(evaluation)) for evaluation in fit.evaluations]
    selected = evaluations[fit.selected] if fit.logits else None
    return Metrics(selected, evaluations, selection, bool(selected and selected.collapsed))


def times_of(fit: Fit, watch: Stopwatch, started: datetime) -> Times:
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
    """Training speed, and how much of what was computed was padding; nothing where no step was finished."""
    if not fit.steps or not fit.train_s:
        return None
    return Throughput(
        tokens_per_s=round(fit.tokens / fit.train_s, 1),
        steps_per_s=round(fit.steps / fit.train_s, 3),
        padding_share=round(fit.padded / max(1, fit.tokens + fit.padded), 4),
    )


def hashes_of(
    parents: Mapping[str, str], rows: Mapping[str, Split], tokens: Mapping[str, Tokens], model: Model, weights: str
) -> dict[str, Any]:
    """Hashes of what a run was made from.

    Args:
        parents: those of the deltas that an update is made of, by the folders of their runs.
        weights: the word or the folder that the model's came from.
    """
    return {
        "parents": dict(parents),
        "data": {name: split.sha256 for name, split in rows.items()},
        "tokenizer": next((split.tokenizer for split in tokens.values()), None),
        "weights": model.weights_sha256,
        "beside": beside(weights),
    }


def delta_facts(cell: Cell, model: Model) -> DeltaFacts:
    """What is needed to use a delta that the cell's run learned on this model."""
    return DeltaFacts(
        method=cell.method,
        scope=cell.scope,
        budget=cell.budget,
        model=LearnedOn(cell.model.name, model.weights_sha256),
        task=LearnedFor(cell.task.name, cell.task.num_labels),
        fingerprint=cell.fingerprint,
        seed=cell.seed,
    )


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


def keep_hydra_files(
    folder: Path, config: Mapping[str, Any], overrides: Sequence[str], check: Callable[[], None]
) -> None:
    """Write `.hydra/config.yaml` and `.hydra/overrides.yaml`, as Hydra does for its own folders."""
    for name, content in (("config", dict(config)), ("overrides", list(overrides))):
        text = yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        write_atomically(folder / ".hydra" / f"{name}.yaml", text.encode(), check)


def keep_predictions(
    folder: Path,
    task: Task,
    logits: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray | None],
    check: Callable[[], None],
) -> None:
    """Write predictions/<split>.tsv: index, prediction, label (empty where not public), one logit per label.

    Args:
        folder: the run's own.
        task: gives the names of classes.
        logits: (rows, labels) of every split.
        known: class ids or scores (rows,) of every split; None where they are not public.
        check: as of `write_atomically`.
    """
    for split, values in logits.items():
        keep_split(folder, split, task.task_of(split).labels, values, known[split], check)


def keep_split(
    folder: Path,
    split: str,
    names: Sequence[str] | None,
    logits: np.ndarray,
    labels: np.ndarray | None,
    check: Callable[[], None],
) -> None:
    """Write one of these files.

    Args:
        names: of the classes; None: scores.
        logits: (rows, classes), or (rows, 1).
        labels: class ids or scores (rows,); None where they are not public.
    """
    lines = ["\t".join(["index", "prediction", "label", *(names or ["score"])])]
    for i, (row, prediction) in enumerate(zip(logits, predict(logits), strict=True)):
        shown = names[int(prediction)] if names else f"{prediction:.4f}"
        label = "" if labels is None else names[int(labels[i])] if names else f"{labels[i]:.3f}"
        lines.append("\t".join([str(i), shown, label, *(f"{logit:.5f}" for logit in row)]))
    write_atomically(folder / "predictions" / f"{split}.tsv", ("\n".join(lines) + "\n").encode(), check)
