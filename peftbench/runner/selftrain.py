"""A run as a teacher and its students, one phase after the other, each the teacher of the next (LiST)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from peftbench.backbone.model import Model
from peftbench.config.few_labels import SelfTrain
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.data.batches import epoch_order
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError
from peftbench.ground.machine import process_state
from peftbench.ground.seeds import stream
from peftbench.methods.base import Tuner
from peftbench.runner.recording import Work
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Fit, Scores, Watcher
from peftbench.training.forward import Forward
from peftbench.training.objective import Objective
from peftbench.training.selftraining import MetaWeights, Reads, SelfTraining, trained
from peftbench.training.trainer import Trainer

NO_FORWARD_MODE = re.compile("setup_context|forward AD|jvp")  # in what torch says of a function that has none


@dataclass(frozen=True)
class Phase:
    """What a phase of training is made of: its protocol, rows, their batches and the loss; None: a trainer's own."""

    protocol: TrainingProtocol
    rows: Tokens | None
    batches: Callable[[int], list[np.ndarray]] | None = None
    objective: Objective | None = None


class Learners:
    """Makes the trainer of every phase of a run, and what it trains.

    Attributes:
        last: the trainer that was made last, with its model and tuner.
    """

    def __init__(
        self,
        fresh: Callable[[], tuple[Model, Tuner]],
        make: Callable[[Model, Tuner, Phase, Checkpoints], Trainer],
        last: Trainer,
    ) -> None:
        """Args:
        fresh: makes a model as training begins with it, its method attached.
        make: makes the trainer of a phase.
        last: one of a fresh model.
        """
        self.last, self._fresh, self._make, self._used = last, fresh, make, False

    def next(self, phase: Phase, fresh: bool, checkpoints: Checkpoints) -> Trainer:
        """The trainer of a phase; its model is fresh, or the last phase's."""
        model, tuner = self._fresh() if fresh and self._used else (self.last.model, self.last.tuner)
        self._used = True
        self.last = self._make(model, tuner, phase, checkpoints)
        return self.last


def lengths(plan: SelfTrain, protocol: TrainingProtocol, *labelled: int) -> list[int]:
    """Optimizer steps of every phase: the teacher's by the protocol, then each session's; of every task's rows."""
    teacher = protocol.steps(*labelled)
    session = plan.steps + plan.epochs * -(-sum(labelled) // protocol.batch_size)
    return [teacher] if plan.kind == "none" else [teacher, *[session] * plan.sessions]


def check(plan: SelfTrain, method: str, model: Model, tuner: Tuner) -> None:
    """Refuse a method whose rows cannot be weighed, before any cost.

    Args:
        method: its name.

    Raises:
        ConfigError: what it trains is no parameter of the model.
    """
    if plan.weights == "meta":
        inside = trained(Reads(model), tuner)
        if len(inside) < len({id(p) for p in (*tuner.trainables().values(), *dict(model.head()).values())}):
            raise ConfigError(
                f"selftrain.weights=meta: method={method} trains entries apart from the model's parameters; "
                "give selftrain.weights=uniform"
            )


def try_weights(
    plan: SelfTrain, method: str, model: Model, tuner: Tuner, labelled: Tokens | None, precision: str
) -> None:
    """Weigh one row before anything is trained: a session would find out late that it cannot.

    Args:
        method: its name.
        labelled: the rows with labels; None: nothing trains.

    Raises:
        ConfigError: what the method runs has no forward mode (a function of autograd's own, as in peft's C3A).
    """
    if plan.kind == "none" or plan.weights == "uniform" or labelled is None:
        return
    forward = Forward(model, precision, process_state().device)
    row, taught = forward.batch(labelled, np.arange(1)), torch.ones(1, 1)
    try:
        MetaWeights(model, tuner, forward.autocast)(row, row, taught)
    except RuntimeError as error:
        if not NO_FORWARD_MODE.search(str(error)):
            raise
        raise ConfigError(
            f"selftrain.weights=meta: method={method} has a part that cannot be differentiated forwards; "
            "give selftrain.weights=uniform"
        ) from None


def train(learners: Learners, sessions: "Sessions", work: Work, watchers: Sequence[Watcher]) -> list[dict[str, Any]]:
    """Train the teacher by the protocol, then every session's student; a run that was stopped goes on in its phase.

    Args:
        work: its checkpoints are used, and it is told of the fit: all phases as one.

    Returns:
        Every phase's scores.

    Raises:
        ConfigError: several processes train together.
    """
    if process_state().num_processes > 1:
        raise ConfigError("selftrain=list: one process trains; several are not supported")
    kept = work.checkpoints.read() or {}
    first, fits = int(kept.get("phase", 0)), [_fit(raw) for raw in kept.get("fits", [])]
    steps, plan = sessions.lengths(), sessions.plan
    for number in range(first, plan.sessions + 1):
        phase, taught = sessions.of_teacher(), None
        if number:
            rows = sessions.drawn(number)
            taught = kept["taught"] if number == first else sessions.taught(learners.last, rows)
            phase = sessions.of_student(number, rows, taught, lambda: learners.last)
        checkpoints = Phases(work.checkpoints, number, [fit.state_dict() for fit in fits], taught)
        trainer = learners.next(phase, plan.fresh or number == first, checkpoints)
        trainer.watchers = [Later(watcher, sum(steps[:number]), sum(steps), number > first) for watcher in watchers]
        work.fit = trainer.fit
        fits.append(trainer.run())
        work.fit = _joined(fits)
    return [asdict(fit.evaluations[fit.selected]) for fit in fits]


@dataclass(frozen=True)
class Sessions:
    """What every phase of a run trains with: the teacher's, then those of its students, a session each.

    Attributes:
        protocol: the teacher's, and whatever of it a session shares.
        labelled: the rows with labels; pool: those without.
        classes: how many there are.
        seed: of the order of rows.
    """

    plan: SelfTrain
    protocol: TrainingProtocol
    labelled: Tokens
    pool: Tokens
    classes: int
    seed: int

    def lengths(self) -> list[int]:
        """Optimizer steps of every phase."""
        return lengths(self.plan, self.protocol, len(self.labelled))

    def of_teacher(self) -> Phase:
        """The first phase: training as the protocol says."""
        return Phase(self.protocol, self.labelled)

    def of_student(self, number: int, rows: np.ndarray, taught: np.ndarray, trainer: Callable[[], Trainer]) -> Phase:
        """A session: first the steps on rows without labels, each step's rows its own, then the labelled epochs.

        Args:
            number: of the session, from 1.
            rows: see `drawn`; taught: see `taught`.
            trainer: gives the session's own, once there is one.
        """
        plan, labelled, protocol = self.plan, self.labelled, self.protocol
        count, size = len(labelled), len(rows) // max(1, plan.steps)
        batches = [np.arange(count + step * size, count + (step + 1) * size) for step in range(plan.steps)]
        for epoch in range(plan.epochs):
            batches += epoch_order(labelled.lengths, protocol.batch_size, protocol.bucketing, self.seed, epoch)
        how = {"lr": plan.lr, "head_lr": None, "max_steps": len(batches), "warmup": 0.0, "schedule": "linear"}
        protocol = replace(protocol, **how, evaluate_every="epoch")  # type: ignore[arg-type]
        joined = labelled.followed_by(self.pool.taken(rows))
        return Phase(protocol, joined, lambda epoch: batches, self._objective(number, joined, taught, size, trainer))

    def _objective(
        self, number: int, joined: Tokens, taught: np.ndarray, size: int, trainer: Callable[[], Trainer]
    ) -> SelfTraining:
        """The session's loss; a step on rows without labels has so many (`size`)."""
        plan, count = self.plan, len(self.labelled)
        uniform = round(plan.meta_after * plan.steps)

        def weigh(rows: np.ndarray) -> torch.Tensor | None:
            step, one = (int(rows[0]) - count) // size, trainer()
            if plan.weights == "uniform" or step < uniform or not one.model.module.training:
                return None
            random = np.random.default_rng([stream(self.seed, "order"), number, step])
            known = one.forward.batch(joined, random.permutation(count)[: plan.meta_rows])
            others = one.forward.batch(joined, rows)
            return MetaWeights(one.model, one.tuner, one.forward.autocast)(known, others, objective.of(rows))

        objective = SelfTraining(count, taught, weigh)
        return objective

    def drawn(self, number: int) -> np.ndarray:
        """Numbers of the pool's rows that a session's steps see, one after another: the pool again and again."""
        plan, count = self.plan, len(self.pool)
        size, rows = min(plan.batch_size, count), np.empty(0, dtype=np.int64)
        random = np.random.default_rng([stream(self.seed, "order"), number])
        while len(rows) < plan.steps * size:
            rows = np.concatenate([rows, random.permutation(count)[: count // size * size]])
        return rows[: plan.steps * size]

    def taught(self, teacher: Trainer, rows: np.ndarray) -> np.ndarray:
        """The teacher's probabilities of rows of the pool (rows, classes) fp32; of hard labels all is one class's."""
        seen, place = np.unique(rows, return_inverse=True)
        if not len(seen):
            return np.empty((0, self.classes), dtype=np.float32)
        logits = teacher.evaluator.predict(self.pool.taken(seen))
        taught = softmax(logits, axis=1)
        if self.plan.labels == "hard":
            taught = np.eye(self.classes)[logits.argmax(axis=1)]
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
