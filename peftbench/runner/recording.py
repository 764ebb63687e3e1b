"""What a run leaves beside its delta: the record, made of what is known of it, and the files that people read."""

import math
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from peftbench.backbone.model import Model
from peftbench.backbone.weights import beside
from peftbench.config.parents import parents
from peftbench.config.spec import Cell, Task
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground.files import expanded, place, write_atomically
from peftbench.record import (
    SCHEMA,
    Attention,
    CellName,
    Counts,
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
    Worker,
)
from peftbench.runner import provenance
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
    fit: Fit = field(default_factory=Fit)
    checkpoints: Checkpoints = field(default_factory=lambda: Checkpoints(Path(), {}, None))

    @property
    def labels(self) -> dict[str, np.ndarray | None]:
        """Class ids or scores of every split; None where they are not public."""
        return {name: tokens.labels for name, tokens in self.tokens.items()}


def record_of(
    cell: Cell,
    work: Work,
    status: Status,
    error: str | None,
    *,
    fingerprint: str,
    row: str | None,
    times: Times,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    search: Search | None,
    failed_on: Sequence[str],
) -> Record:
    """The record of a run that ended: everything that is known about it.

    Args:
        cell: as it was run, with its budget as a number and the learning rate that was chosen.
        fingerprint: of the cell as it was asked for.
        row: see `parents.row_of`.
        failed_on: hosts on which it failed, this time included.
    """
    return Record(
        schema=SCHEMA,
        status=status,
        cell=cell_name(cell),
        fingerprint=fingerprint,
        headline=headline(cell.task, work.fit, work.labels),
        metrics=metrics(work.fit, cell.protocol.selection),
        counts=work.counts,
        budget={
            "name": cell.budget.name,
            "asked": cell.budget.entries,
            "used": work.counts.backbone,
            "left": None if cell.budget.entries is None else cell.budget.entries - work.counts.backbone,
            **work.facts,
        },
        time=times,
        memory=Memory(provenance.peak_memory_mb()),
        throughput=throughput(work.fit),
        hashes=Hashes(**work.hashes),
        versions=provenance.versions(),
        git=Git(**provenance.git()),
        hardware=Hardware(**provenance.hardware()),
        overrides=list(overrides),
        config=dict(config),
        error=error,
        search=search,
        drawn=work.drawn,
        attention=work.attention,
        worker=Worker(socket.gethostname(), os.getpid()),
        failed_on=list(dict.fromkeys(failed_on)),
        row=row,
    )


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


def hashes_of(cell: Cell, rows: Mapping[str, Split], tokens: Mapping[str, Tokens], model: Model) -> dict[str, Any]:
    """Hashes of what the run was made from."""
    made_of = parents(cell).values() if cell.objective.updates else ()
    return {
        "parents": {place(folder, expanded(cell.outputs)): sha256 for folder, sha256 in made_of},
        "data": {name: split.sha256 for name, split in rows.items()},
        "tokenizer": next((split.tokenizer for split in tokens.values()), None),
        "weights": model.weights_sha256,
        "beside": beside(cell.model.weights),
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
        text = yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        write_atomically(folder / ".hydra" / f"{name}.yaml", text.encode())


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
        labels, names = known[split], task.task_of(split).labels
        lines = ["\t".join(["index", "prediction", "label", *(names or ["score"])])]
        for i, (row, prediction) in enumerate(zip(values, predict(values), strict=True)):
            shown = names[int(prediction)] if names else f"{prediction:.4f}"
            label = "" if labels is None else names[int(labels[i])] if names else f"{labels[i]:.3f}"
            lines.append("\t".join([str(i), shown, label, *(f"{logit:.5f}" for logit in row)]))
        write_atomically(folder / "predictions" / f"{split}.tsv", ("\n".join(lines) + "\n").encode(), check)
