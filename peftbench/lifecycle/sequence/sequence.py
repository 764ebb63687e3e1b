"""`peftbench sequence`: a learner on a sequence of tasks, recorded, found again, and taken up after its last stage."""

import math
import os
import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from peftbench.ground.machine import process_state
from peftbench.lifecycle.artefact import settled
from peftbench.lifecycle.sequence import matrix
from peftbench.lifecycle.sequence.job import Job
from peftbench.lifecycle.sequence.learners import Answer
from peftbench.lifecycle.sequence.matrix import TaskScores
from peftbench.lifecycle.sequence.stages import Progress, Stages
from peftbench.record import (
    SCHEMA,
    CellName,
    Counts,
    Git,
    Hardware,
    Hashes,
    Headline,
    Made,
    Memory,
    Record,
    Worker,
)
from peftbench.runner import provenance
from peftbench.runner.recording import hashes_of, keep_split, metrics, times_of
from peftbench.runner.run import identity, read_rows
from peftbench.runner.tracking import Stopwatch
from peftbench.study import cell as study_cell
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Fit, Scores
from peftbench.training.metrics import standard_error


class Screen(study_cell.Screen, Protocol):
    """Who tells a person how a sequence goes."""

    def stage(self, row: str, number: int, of: int, scores: Mapping[str, TaskScores]) -> None:
        """A stage, the `number`-th (from 1) of so many, was learned and scored."""
        ...


def sequence(job: Job, screen: Screen) -> int:
    """Run a job unless its record is there; one that was stopped goes on after its last stage. Gives the exit code.

    Raises:
        ConfigError: training diverges, or the folder cannot be written.
        DataError: rows or weights cannot be read.
    """

    def make(check: Callable[[], None]) -> Record:
        watch, started = Stopwatch(), datetime.now(UTC)
        provenance.reset_peak_memory()
        rows = read_rows(job.rows)
        stages = Stages(job, rows)
        hashes = hashes_of({}, rows, stages.tokens, stages.encoder.model, job.cell.model.weights)
        checkpoints = Checkpoints(job.folder, identity([job.fingerprint, job.cell.seed], hashes), 0.0, check)
        progress, answers = stages.run(checkpoints, lambda *said: screen.stage(job.row, *said))
        for task, answer in answers.items():
            keep_split(
                job.folder, stages.dev(task).name, stages.classes.names, answer.scores, stages.labels(task), check
            )
        return _record(job, stages, hashes, progress, answers, watch, min(started, checkpoints.started))

    return settled(job.folder, job.inputs, make, screen, job.cell.tracker)


def _record(
    job: Job,
    stages: Stages,
    hashes: Mapping[str, Any],
    progress: Progress,
    answers: Mapping[str, Answer],
    watch: Stopwatch,
    started: datetime,
) -> Record:
    cell, counts = job.cell, _counts(stages, progress)
    fit = _fit(progress, answers)
    errors = [standard_error("accuracy", one.scores.argmax(1), stages.labels(task)) for task, one in answers.items()]
    last = fit.evaluations[-1].metrics["last"]
    return Record(
        schema=SCHEMA,
        status="done",
        cell=CellName(cell.task.name, job.row, cell.model.name, cell.data.name, "none", cell.seed, cell.study),
        fingerprint=job.fingerprint,
        headline=Headline("last", last, math.hypot(*errors) / len(errors)),
        metrics=metrics(fit, "last"),
        counts=counts,
        budget={"name": "none", "asked": None, "used": counts.backbone, "left": None},
        time=times_of(fit, watch, started),
        memory=Memory(provenance.peak_memory_mb()),
        throughput=None,
        hashes=Hashes(**hashes),
        versions=provenance.versions(),
        git=Git(**provenance.git()),
        hardware=Hardware(**provenance.hardware()),
        worker=Worker(socket.gethostname(), os.getpid()),
        overrides=list(job.words),
        config={**job.config, "method": job.settings},
        drawn=sorted(stages.encoder.model.drawn),
        attention=stages.encoder.model.attention(process_state().device),
        made=Made("sequence", job.settings, facts_of(job, progress)),
    )


def facts_of(job: Job, progress: Progress) -> dict[str, Any]:
    """The task x stage matrices, task -> its score after every stage (None before its own), and what was stored."""

    def by_stage(score: str) -> dict[str, list[float | None]]:
        return {
            task: [getattr(stage[task], score) if task in stage else None for stage in progress.stages]
            for task in job.order
        }

    return {
        **{score: by_stage(score) for score in ("accuracy", "identified", "given_task", "retrieved")},
        "rows": {task: one.rows for task, one in progress.stages[-1].items()},
        "stored_bytes": progress.stored,
        "evaluation_changed_tensors": not progress.unchanged,
    }


def _fit(progress: Progress, answers: Mapping[str, Answer]) -> Fit:
    """An evaluation for each stage; the last one has the metrics of the whole sequence, too."""
    of_stages = [matrix.after(stage) for stage in progress.stages]
    of_stages[-1] = matrix.summary(progress.stages)
    said = np.concatenate([answer.scores.argmax(1) for answer in answers.values()])
    collapsed = [False] * (len(of_stages) - 1) + [bool((said == said[0]).all())]
    evaluations = [
        Scores(number, float(number), one, same, one["last"], math.nan)
        for number, (one, same) in enumerate(zip(of_stages, collapsed, strict=True), 1)
    ]
    logits = {task: answer.scores for task, answer in answers.items()}
    return Fit(
        evaluations, logits=logits, train_s=progress.train_s, eval_s=progress.eval_s, earlier_s=progress.earlier_s
    )


def _counts(stages: Stages, progress: Progress) -> Counts:
    """What trains beside the head at one time, and a linear map over all classes (nothing of a cosine classifier)."""
    learner, size = stages.learner, stages.encoder.size
    head = stages.classes.count * (size + 1) if learner.trained else 0
    backbone = sum(weight.numel() for _, weight in stages.encoder.model.backbone())
    return Counts(learner.trained, head, learner.trained + head, backbone + head, progress.stored[-1])
