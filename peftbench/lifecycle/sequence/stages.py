"""The stages of a sequence: a learner learns one, is scored on every task so far, and can be taken up after it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from peftbench.backbone.model import compute_precision, load_model
from peftbench.backbone.weights import weights_folder
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground.machine import process_state, settled_clock
from peftbench.lifecycle.sequence.classes import Classes, capped, classes_of, stages_of
from peftbench.lifecycle.sequence.encoder import Encoder, Pooled, tensors_sha256
from peftbench.lifecycle.sequence.fitting import Fitting
from peftbench.lifecycle.sequence.job import Job
from peftbench.lifecycle.sequence.keys import MosKeys, SimpleCilKeys, WholeKeys
from peftbench.lifecycle.sequence.learners import Answer, Aper, Finetune, Joint, Learner, Oracle, SimpleCil
from peftbench.lifecycle.sequence.matrix import TaskScores, scored
from peftbench.lifecycle.sequence.mos import Mos
from peftbench.lifecycle.sequence.side_adapters import SideAdapters
from peftbench.runner.run import Tokenizing, tokenize_rows
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.forward import Forward

TRAINED: dict[str, Callable[[Fitting], Learner]] = {
    "finetune": Finetune,
    "joint": Joint,
    "oracle": Oracle,
    "aper": Aper,
}
Told = Callable[[int, int, Mapping[str, TaskScores]], None]  # a stage (from 1) of so many was scored


@dataclass
class Progress:
    """What is known of a sequence after some of its stages.

    Attributes:
        stages: task -> its scores, after each.
        stored: bytes of what the learner keeps, after each.
        unchanged: whether every evaluation left every tensor as it was, by their hash.
        train_s, eval_s: seconds, those included that were spent before a checkpoint was taken up (earlier_s).
    """

    stages: list[dict[str, TaskScores]] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    unchanged: bool = True
    train_s: float = 0.0
    eval_s: float = 0.0
    earlier_s: float = 0.0

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up its own fields as plain data."""
        vars(self).update(state)
        self.stages = [{task: TaskScores(**one) for task, one in stage.items()} for stage in state["stages"]]
        self.earlier_s = self.train_s + self.eval_s


class Stages:
    """A job's stages, everything loaded that they need.

    Attributes:
        tokens: of every split that is trained on or scored.
        learner, encoder: as they are after the stages so far.
    """

    def __init__(self, job: Job, rows: Mapping[str, Split]) -> None:
        """Args:
        rows: train and dev of every task.

        Raises:
            ConfigError: the backbone is not possible.
            DataError: weights cannot be read.
        """
        cell = job.cell
        self._job, parts = job, cell.task.parts
        self._names = [one.name for one in parts]
        self._dev = {task: split for task, (split, _) in zip(self._names, cell.task.headlines(), strict=True)}
        wanted = {*cell.task.trained, *self._dev.values()}
        read = {name: split for name, split in capped(rows, job.tasks.cap).items() if name in wanted}
        weights = weights_folder(cell.model)
        how = Tokenizing(cell.model, weights, cell.protocol.max_length, cell.cache)
        self.tokens: Mapping[str, Tokens] = tokenize_rows(read, how)
        self.classes = classes_of(parts)
        self.encoder = encoder_of(job)
        self.learner = learner_of(job, self.encoder, self.classes)
        order = [self._names.index(task) for task in job.order]
        train = [self.tokens[name] for name in cell.task.trained]
        self._stages = stages_of(order, train, self.classes, self.learner.together)

    def run(self, checkpoints: Checkpoints, told: Told) -> tuple[Progress, dict[str, Answer]]:
        """Learn and score what is left of the stages; the answers are those after the last one.

        Args:
            checkpoints: hold the state after each stage but the last.
            told: called after each stage.

        Raises:
            ConfigError: training diverges.
        """
        progress, answers = Progress(), dict[str, Answer]()
        if (kept := checkpoints.read()) is not None:
            progress.load_state_dict(kept["progress"])
            self.learner.load_state_dict(kept["learner"])
        for stage in self._stages[len(progress.stages) :]:
            began = settled_clock(process_state().device)
            self.learner.learn(stage)
            learned = settled_clock(process_state().device)
            seen = self._job.order if self.learner.together else self._job.order[: stage.number + 1]
            before = self._sha256()
            answers = {task: self.learner.answer(self.dev(task), self._names.index(task)) for task in seen}
            progress.unchanged &= before == self._sha256()
            progress.stages.append({task: self._scored(task, answer) for task, answer in answers.items()})
            progress.stored.append(sum(tensor.nbytes for tensor in _tensors(self.learner.state_dict())))
            progress.train_s += learned - began
            progress.eval_s += settled_clock(process_state().device) - learned
            if stage is not self._stages[-1]:  # after the last one comes the record
                checkpoints.write({"progress": asdict(progress), "learner": self.learner.state_dict()})
            told(stage.number + 1, len(self._stages), progress.stages[-1])
        return progress, answers

    def dev(self, task: str) -> Tokens:
        """The rows that a task is scored on: those of its headline metric."""
        return self.tokens[self._dev[task]]

    def labels(self, task: str) -> np.ndarray:
        """Their classes (rows,)."""
        return np.asarray(self.dev(task).labels) + self.classes.of([self._names.index(task)])[0]

    def _scored(self, task: str, answer: Answer) -> TaskScores:
        number = self._names.index(task)
        return scored(answer.scores, self.labels(task), self.classes.of([number]), number, answer.retrieved)

    def _sha256(self) -> str:
        every = [self.learner.state_dict(), dict(self.encoder.model.module.named_parameters())]
        return tensors_sha256(_tensors(every))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def encoder_of(job: Job) -> Encoder:
    """The job's backbone, frozen, with adapters beside its layers where the learner trains some.

    Raises:
        ConfigError, DataError: as `load_model`.
    """
    cell, keys = job.cell, job.keys
    model, _ = load_model(cell.model, 1, cell.seed, Pooled(how=keys.feature))
    model.module.requires_grad_(False)
    whole = isinstance(keys, WholeKeys) and keys.trains == "all"
    beside = None if isinstance(keys, SimpleCilKeys) or whole else SideAdapters(model, keys.scale, keys.dropout)
    precision = cell.protocol.precision
    compute_precision(model, precision, [weight for _, weight in model.backbone()] if whole else [])
    forward = Forward(model, precision, process_state().device)
    return Encoder(model, forward, beside, cell.protocol.eval_batch_size, frozen=not whole)


def learner_of(job: Job, encoder: Encoder, classes: Classes) -> Learner:
    """The job's learner, before its first stage."""
    cell, keys = job.cell, job.keys
    if isinstance(keys, SimpleCilKeys):
        return SimpleCil(encoder, classes.count)
    fitting = Fitting(encoder, classes, keys, cell.protocol.bucketing, cell.seed)
    return Mos(fitting, keys) if isinstance(keys, MosKeys) else TRAINED[job.learner](fitting)
