"""A run as a teacher and its students, one phase after the other, each the teacher of the next (LiST)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from peftbench.backbone.model import Model, load_model
from peftbench.backbone.readout import Readout
from peftbench.config.spec import Cell
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.data.batches import epoch_order
from peftbench.data.rows import POOL
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError
from peftbench.ground.machine import process_state
from peftbench.ground.seeds import stream
from peftbench.methods.base import Tuner
from peftbench.runner import deltas
from peftbench.runner.delta import Delta
from peftbench.runner.recording import Work
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Fit, Scores, Watcher
from peftbench.training.objective import Objective
from peftbench.training.selftraining import MetaWeights, Reads, SelfTraining, trained
from peftbench.training.trainer import Trainer

Objecting = Callable[[Callable[[], Trainer]], Objective | None]  # an objective of the trainer that will use it


@dataclass(frozen=True)
class Phase:
    """What a phase trains with: its protocol, rows, their batches and the loss; None: a trainer's own."""

    protocol: TrainingProtocol
    rows: Tokens
    batches: Callable[[int], list[np.ndarray]] | None = None
    objective: Objecting = lambda trainer: None


class Learners:
    """Makes the model, with its method attached, of every phase of a run, and what trains it.

    Attributes:
        last: the trainer that was made last, with its model and tuner.
    """

    def __init__(
        self, cell: Cell, readout: Readout, start: Delta | None, make: Callable[..., Trainer], last: Trainer
    ) -> None:
        """Args:
        make: makes a trainer of a model, a tuner, a protocol, and what differs between phases.
        last: one of the fresh model.
        """
        self.cell, self.last = cell, last
        self._readout, self._start, self._make, self._used = readout, start, make, False

    def next(self, phase: Phase, fresh: bool, checkpoints: Checkpoints) -> Trainer:
        """The trainer of a phase; its model is fresh, or the last phase's."""
        model, tuner = self.last.model, self.last.tuner
        if fresh and self._used:
            model, _ = load_model(self.cell.model, self.cell.task.num_labels, self.cell.seed, self._readout)
            tuner = deltas.attached(self.cell, model, self._start)
        self._used = True
        objective = phase.objective(lambda: self.last)
        self.last = self._make(
            model, tuner, phase.protocol, train=phase.rows, batches=phase.batches, objective=objective,
            checkpoints=checkpoints,
        )  # fmt: skip
        return self.last


def lengths(cell: Cell, *labelled: int) -> list[int]:
    """Optimizer steps of every phase: the teacher's by the protocol, then each session's; of every task's rows."""
    plan, teacher = cell.selftrain, cell.protocol.steps(*labelled)
    session = plan.steps + plan.epochs * -(-sum(labelled) // cell.protocol.batch_size)
    return [teacher] if plan.kind == "none" else [teacher, *[session] * plan.sessions]


def check(cell: Cell, model: Model, tuner: Tuner) -> None:
    """Refuse a method whose rows cannot be weighed, before any cost.

    Raises:
        ConfigError: what it trains is no parameter of the model.
    """
    if cell.selftrain.weights == "meta":
        inside = trained(Reads(model), tuner)
        if len(inside) < len({id(p) for p in (*tuner.trainables().values(), *dict(model.head()).values())}):
            raise ConfigError(
                f"selftrain.weights=meta: method={cell.method.name} trains entries apart from the model's parameters; "
                "give selftrain.weights=uniform"
            )


def train(
    learners: Learners, tokens: Mapping[str, Tokens], work: Work, watchers: Sequence[Watcher]
) -> tuple[Fit, list[dict[str, Any]]]:
    """Train the teacher by the protocol, then every session's student; a run that was stopped goes on in its phase.

    Args:
        tokens: of train, which holds the labelled rows, and of the pool.
        work: its checkpoints are used, and it is told of the fit.

    Returns:
        All phases as one fit, and every phase's scores.

    Raises:
        ConfigError: several processes train together.
    """
    if process_state().num_processes > 1:
        raise ConfigError("selftrain=list: one process trains; several are not supported")
    cell, plan = learners.cell, learners.cell.selftrain
    kept = work.checkpoints.read() or {}
    first, fits = int(kept.get("phase", 0)), [_fit(raw) for raw in kept.get("fits", [])]
    steps = lengths(cell, len(tokens["train"]))
    for number in range(first, plan.sessions + 1):
        phase, taught = Phase(cell.protocol, tokens["train"]), None
        if number:
            rows = _drawn(cell, tokens[POOL], number)
            taught = kept["taught"] if number == first else _taught(cell, learners.last, tokens[POOL], rows)
            phase = _session(cell, tokens, rows, taught, number)
        checkpoints = Phases(work.checkpoints, number, [fit.state_dict() for fit in fits], taught)
        trainer = learners.next(phase, plan.fresh or number == first, checkpoints)
        trainer.watchers = [Later(watcher, sum(steps[:number]), sum(steps), number > first) for watcher in watchers]
        work.fit = trainer.fit
        fits.append(trainer.run())
        work.fit = _joined(fits)
    return work.fit, [asdict(fit.evaluations[fit.selected]) for fit in fits]


def _session(cell: Cell, tokens: Mapping[str, Tokens], rows: np.ndarray, taught: np.ndarray, number: int) -> Phase:
    """A session: first the steps on rows without labels, each step's rows its own, then the labelled epochs."""
    plan, labelled = cell.selftrain, tokens["train"]
    count, size = len(labelled), len(rows) // max(1, plan.steps)
    batches = [np.arange(count + step * size, count + (step + 1) * size) for step in range(plan.steps)]
    for epoch in range(plan.epochs):
        batches += epoch_order(labelled.lengths, cell.protocol.batch_size, cell.protocol.bucketing, cell.seed, epoch)
    how = {"lr": plan.lr, "head_lr": None, "max_steps": len(batches), "warmup": 0.0, "schedule": "linear"}
    protocol = replace(cell.protocol, **how, evaluate_every="epoch")  # type: ignore[arg-type]
    joined = labelled.followed_by(tokens[POOL].taken(rows))
    objective = functools.partial(_objective, cell, joined, taught, number, size)
    return Phase(protocol, joined, lambda epoch: batches, objective)


def _objective(
    cell: Cell, joined: Tokens, taught: np.ndarray, number: int, size: int, trainer: Callable[[], Trainer]
) -> SelfTraining:
    """The session's loss; `trainer` is there when it is asked for."""
    plan, count = cell.selftrain, len(joined) - len(taught)
    uniform = round(plan.meta_after * plan.steps)

    def weigh(rows: np.ndarray) -> torch.Tensor | None:
        step, one = (int(rows[0]) - count) // size, trainer()
        if plan.weights == "uniform" or step < uniform or not one.model.module.training:
            return None
        random = np.random.default_rng([stream(cell.seed, "order"), number, step])
        known = one.forward.batch(joined, random.permutation(count)[: plan.meta_rows])
        others = one.forward.batch(joined, rows)
        return MetaWeights(one.model, one.tuner, one.forward.autocast)(known, others, objective.of(rows))

    objective = SelfTraining(count, taught, weigh)
    return objective


def _drawn(cell: Cell, pool: Tokens, number: int) -> np.ndarray:
    """Numbers of the pool's rows that a session's steps see, one after another: the pool again and again."""
    plan = cell.selftrain
    size, rows = min(plan.batch_size, len(pool)), np.empty(0, dtype=np.int64)
    random = np.random.default_rng([stream(cell.seed, "order"), number])
    while len(rows) < plan.steps * size:
        rows = np.concatenate([rows, random.permutation(len(pool))[: len(pool) // size * size]])
    return rows[: plan.steps * size]


def _taught(cell: Cell, teacher: Trainer, pool: Tokens, rows: np.ndarray) -> np.ndarray:
    """The teacher's probabilities of these rows (rows, classes) fp32; of hard labels all is one class's."""
    seen, place = np.unique(rows, return_inverse=True)
    if not len(seen):
        return np.empty((0, cell.task.num_labels), dtype=np.float32)
    logits = teacher.evaluator.predict(pool.taken(seen))
    taught = softmax(logits, axis=1)
    if cell.selftrain.labels == "hard":
        taught = np.eye(cell.task.num_labels)[logits.argmax(axis=1)]
    return np.ascontiguousarray(taught[place], dtype=np.float32)


class Phases(Checkpoints):
    """The run's checkpoints as one phase sees them: what is kept says which phase it is, and what came before."""

    def __init__(self, whole: Checkpoints, phase: int, fits: list[Any], taught: np.ndarray | None) -> None:
        self._whole, self._known = whole, {"phase": phase, "fits": fits, "taught": taught}

    def due(self) -> bool:
        """See `Checkpoints`."""
        return self._whole.due()

    def write(self, state: Mapping[str, Any]) -> None:
        """See `Checkpoints`."""
        self._whole.write({**self._known, "state": state})

    def read(self) -> dict[str, Any] | None:
        """The state of this phase."""
        kept = self._whole.read()
        return kept["state"] if kept and kept["phase"] == self._known["phase"] else None


@dataclass
class Later:
    """A watcher as a phase's trainer sees it: it follows all phases as one training.

    Attributes:
        before: optimizer steps of the phases before; total: of all.
        begun: whether it was told of the beginning.
    """

    watcher: Watcher
    before: int
    total: int
    begun: bool

    def begin(self, steps: int, done: int) -> None:
        """See `Watcher`."""
        if not self.begun:
            self.watcher.begin(self.total, self.before + done)

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self.watcher.step(self.before + step, facts)

    def evaluation(self, evaluation: Scores) -> None:
        """See `Watcher`."""
        self.watcher.evaluation(replace(evaluation, step=self.before + evaluation.step))

    def end(self, summary: Mapping[str, Any]) -> None:
        """See `Watcher`: the run has one end, of which it is told by itself."""


def _fit(raw: Mapping[str, Any]) -> Fit:
    fit = Fit()
    fit.load_state_dict(raw)
    return fit


def _joined(fits: Sequence[Fit]) -> Fit:
    """Phases as one fit: all evaluations in order, the last phase's selected one, everything else summed."""
    whole = Fit(selected=fits[-1].selected, logits=fits[-1].logits)
    for fit in fits:
        if fit is fits[-1] and fit.selected >= 0:
            whole.selected = len(whole.evaluations) + fit.selected
        whole.evaluations += [replace(one, step=whole.steps + one.step) for one in fit.evaluations]
        for key in ("steps", "train_s", "eval_s", "tokens", "padded", "earlier_s"):
            setattr(whole, key, getattr(whole, key) + getattr(fit, key))
    return whole
