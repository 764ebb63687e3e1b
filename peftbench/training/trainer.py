"""The training loop. It steps what a tuner offers and never asks which method it runs."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn

from peftbench.backbone.model import Model
from peftbench.backbone.prefix import Prefix
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.config.spec import Task
from peftbench.data.batches import Batch, cut
from peftbench.data.joint import order_of
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import Diverged
from peftbench.ground.machine import keep_freed_memory, process_state, settled_clock
from peftbench.methods.base import Training, Tuner
from peftbench.training import randomness
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.evaluation import Evaluator
from peftbench.training.fit import Fit, Watcher
from peftbench.training.flops import Kind, Passes, kind_of
from peftbench.training.forward import Forward
from peftbench.training.meter import Meter
from peftbench.training.objective import Objective, own_loss
from peftbench.training.optimization import Optimization
from peftbench.training.selection import Selection
from peftbench.training.stopping import Stop


class Trainer:
    """One model, one tuner, one protocol. Rows of a global batch are shared out over processes and accumulated parts.

    Attributes:
        fit: what training left so far.
        evaluator: predicts and scores with the model as it is.
        passes: what the steps so far cost in floating-point operations.
    """

    def __init__(
        self,
        model: Model,
        tuner: Tuner,
        protocol: TrainingProtocol,
        task: Task,
        train: Tokens | None,
        scored: Mapping[str, Tokens],
        choosing: str,
        seed: int,
        *,
        objective: Objective | None = None,
        batches: Callable[[int], list[np.ndarray]] | None = None,
        watchers: Sequence[Watcher] = (),
        log_every: int = 10,
        checkpoints: Checkpoints | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Args:
        model, tuner: the method is attached.
        train: rows to train on; None: only evaluate.
        scored: splits that are scored, by name.
        choosing: name of the metric that selects.
        seed: of data order and dropout.
        objective: what training makes small; None: the task's loss.
        batches: numbers of the rows of every batch of an epoch; None: all rows, in the order of the seed's stream,
            of several tasks as `order_of` has it.
        watchers: told how it goes.
        log_every: optimizer steps between two calls of `Watcher.step`.
        checkpoints: where the state of training is kept, and taken up from; None: nowhere.
        stop: whether a signal asks to leave.
        """
        self.state = process_state()
        keep_freed_memory()
        self.model, self.tuner, self.protocol = model, tuner, protocol
        self.train, self.scored, self.seed = train, scored, seed
        self.watchers, self.fit = watchers, Fit()
        self._choosing, self._log_every, self.checkpoints = choosing, log_every, checkpoints
        self._stop, self._batches = Stop() if stop is None else stop, batches
        self._objective = own_loss(task, None if train is None else train.mix) if objective is None else objective
        model.module.to(self.state.device)
        for parameter in tuner.trainables().values():
            parameter.data = parameter.data.to(self.state.device)
        self._optimization: Optimization | None = None
        prefix = Prefix(model, tuner.touched(), tuner.reads()) if protocol.keep_prefix else None
        self.forward = Forward(model, protocol.precision, self.state.device, prefix, protocol.gradient_checkpointing)
        self.evaluator = Evaluator(self.forward, task, protocol.eval_batch_size, self._stop.check)
        self._selection = Selection(protocol.selection, protocol.patience, model, tuner)
        self._meter, self.passes = Meter(self.fit, self.state.device), Passes()

    @property
    def optimization(self) -> Optimization:
        """What training steps, and how; there once it has begun."""
        assert self._optimization is not None, "training has not begun"
        return self._optimization

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What the optimizer steps, by name: the tuner's trainables and the head."""
        return self.optimization.parameters

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The tuner's own."""
        return self.optimization.optimizer

    @functools.cached_property
    def epoch_steps(self) -> int:
        """Optimizer steps of one pass over the training rows."""
        return len(self.order(0))

    def run(self) -> Fit:
        """Train by the protocol, evaluate when it says so, and leave the selected weights in the model.

        Raises:
            Diverged: a loss, a logit or a weight is no longer finite.
        """
        if self.train is None:
            self._evaluate(step=0, epoch=0.0)
            return self.fit
        kept = None if self.checkpoints is None else self.checkpoints.read()
        self.begin(self.protocol.max_steps or self.protocol.epochs * self.epoch_steps, kept)
        with self._stop.deferred():
            self._steps()
        self._selection.restore(self.fit)
        self._check_finite()
        return self.fit

    def _steps(self) -> None:
        """From the first step, or where a checkpoint left off, to the last."""
        batches = self.order(self.fit.steps // self.epoch_steps)
        while True:
            step = self.fit.steps
            if self._evaluation_due(step):
                self._keep()
                self._evaluate(step, step / self.epoch_steps)
            if step == self.optimization.steps or self._selection.out_of_patience(self.fit):
                return
            checkpoint_due = self.checkpoints is not None and self.checkpoints.due()
            if self._stop.asked or (checkpoint_due and self.state.num_processes == 1):
                self._keep()
                self._stop.check()
            if step % self.epoch_steps == 0:
                batches = self.order(step // self.epoch_steps)
            self.step(step, batches[step % self.epoch_steps])

    def begin(self, total: int, kept: Mapping[str, Any] | None = None) -> None:
        """Everything that comes before the first of `total` optimizer steps, or before the next after a checkpoint."""
        assert self.train is not None
        self.forward.run_prefix([self.train, *self.scored.values()], self.protocol.eval_batch_size)
        randomness.begin(self.model, self.seed)
        if kept is not None:
            self.tuner.load_state_dict(kept["tuner"])  # first: what trains may depend on it
        self._optimization = Optimization(self.model, self.tuner, self.protocol, total)
        if kept is not None:
            self._optimization.load_state_dict(kept)
            self.fit.load_state_dict(kept["fit"])
            self._selection.best = kept["best"]
            self._meter.load_state_dict(kept["meter"])
            self.passes.load_state_dict(kept["passes"])
        self._meter.restart()
        for watcher in self.watchers:
            watcher.begin(total, self.fit.steps)
        self.tuner.prepare(self.training(total))
        if kept is not None:  # what a tuner draws while it prepares was drawn before
            randomness.load_state_dict(self.model, kept)

    def training(self, total: int) -> Training:
        """What the tuner is told of a training of `total` optimizer steps."""
        return Training(total, self._passes, self._total_over_processes)

    def _keep(self) -> None:
        """Write a checkpoint: all that the next step depends on."""
        if self.checkpoints is None:
            return
        self._wait()
        random = randomness.state_dict(self.model)
        if not self.state.is_main_process:
            return
        self.checkpoints.write(
            {
                **self.optimization.state_dict(),
                "tuner": self.tuner.state_dict(),
                "fit": self.fit.state_dict(),
                "best": self._selection.best,
                "meter": self._meter.state_dict(),
                "passes": self.passes.state_dict(),
                **random,
            }
        )

    def order(self, epoch: int) -> list[np.ndarray]:
        """Numbers of the training rows of every batch of an epoch (from 0)."""
        assert self.train is not None
        if self._batches is not None:
            return self._batches(epoch)
        protocol = self.protocol
        return order_of(self.train, protocol.batch_size, protocol.bucketing, self.seed, epoch)

    def step(self, step: int, rows: np.ndarray) -> None:
        """One optimizer step on a global batch of rows."""
        started = time.perf_counter()
        self.model.module.train()
        if self._backward(step, rows):
            self._move(step)
        done = self.fit.steps = step + 1
        self.fit.train_s += time.perf_counter() - started
        if done % self._log_every == 0 or done == self.optimization.steps:
            self._wait()
            lr = self.protocol.lr * self.optimization.share(step)
            facts = self._meter.facts(done, lr, self._total_over_processes)
            for watcher in self.watchers:
                watcher.step(done, facts)

    def _wait(self) -> None:
        """Count as training what a GPU has still to do of the steps so far; not in every step, which would slow it."""
        started = time.perf_counter()
        self.fit.train_s += settled_clock(self.state.device) - started

    def _move(self, step: int) -> None:
        """Step along this process's gradients and the others'."""
        self._reduce_gradients()
        self.tuner.after_backward(step)
        if self.protocol.clip is not None:
            self._meter.norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.protocol.clip)
        self.optimization.step(step)
        if self.tuner.after_step(step):
            self._optimization = self.optimization.reshaped()
            self.passes.change()
        self.optimization.check()
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, step: int, rows: np.ndarray) -> bool:
        """Gradients of this process's part of the batch, and of the method's penalty; whether there are any."""
        parts = list(cut(rows, self.protocol.accumulation * self.state.num_processes))
        mine = parts[self.state.process_index :: self.state.num_processes]
        weight = 1.0 / len(rows)
        if not mine:  # fewer rows than processes: one more look at a row, for nothing, keeps the processes in step
            mine, weight = [rows[:1]], 0.0
        learned = False
        for i, part in enumerate(mine):
            batch, last = self._batch(part), i + 1 == len(mine)
            passed = functools.partial(self._backward_part, step, batch, weight, last)
            width = batch.inputs["input_ids"].shape[1]
            learned = self.passes.make(kind_of(batch, self.parameters.values()), width, passed) or learned
        return self.passes.make(Kind(), 0, self._backward_penalty) or learned

    def _backward_part(self, step: int, batch: Batch, weight: float, last: bool) -> bool:
        """Gradients of some rows, their loss times `weight`; whether there are any."""
        self._meter.saw(batch)
        logits = self._logits(batch)
        loss = self._objective.loss(logits, batch.labels, batch.rows) * weight
        self.tuner.before_backward(step, last)
        if loss.requires_grad:
            loss.backward()
        made_of = self._objective.parts(logits.detach(), batch.labels, batch.rows)
        self._meter.add(loss, {name: value * weight for name, value in made_of.items()})
        return loss.requires_grad

    def _backward_penalty(self) -> bool:
        penalty = self.tuner.penalty()
        if penalty is None:
            return False
        (penalty / self.state.num_processes).backward()
        self._meter.add_penalty(penalty)
        return True

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """The objective of some training rows, summed over them: a scalar."""
        batch = self._batch(rows)
        return self._objective.loss(self._logits(batch), batch.labels, rows)

    def _batch(self, rows: np.ndarray) -> Batch:
        """Some training rows."""
        assert self.train is not None
        return self.forward.batch(self.train, rows)

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits = self.forward.logits(batch)
        # An objective may pass over a batch; a model that cannot learn is a fault.
        if not logits.requires_grad:
            raise RuntimeError("nothing that trains reaches the logits: the run would learn nothing")
        return logits

    def _passes(self, count: int, size: int | None = None) -> Iterator[None]:
        """Run batches of training rows forward and backward without dropout; yields after each."""
        assert self.train is not None
        self.model.module.eval()
        order = order_of(self.train, size or self.protocol.batch_size, False, self.seed, epoch=0)
        for i in range(count):
            rows = order[i % len(order)]
            for part in list(cut(rows, self.state.num_processes))[self.state.process_index :: self.state.num_processes]:
                with self.forward.from_tokens():
                    (self.loss(part) / len(rows)).backward()
            yield
            self.model.module.zero_grad(set_to_none=True)

    def _total_over_processes(self, tensor: torch.Tensor) -> torch.Tensor:
        return reduce(tensor, reduction="sum") if self.state.num_processes > 1 else tensor

    def _reduce_gradients(self) -> None:
        """Sum gradients over processes: each has divided its loss by the size of the global batch."""
        if self.state.num_processes == 1:
            return
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self._total_over_processes(gradient)

    def _check_finite(self) -> None:
        broken = [name for name, p in self.parameters.items() if not bool(torch.isfinite(p).all())]
        if broken:
            raise Diverged(f"{broken[0]} is not finite after step {self.fit.steps}")

    def _evaluation_due(self, step: int) -> bool:
        if step == 0 or (self.fit.evaluations and self.fit.evaluations[-1].step == step):
            return False
        every = self.epoch_steps if self.protocol.evaluate_every == "epoch" else self.protocol.evaluate_every
        return step == self.optimization.steps or step % every == 0

    def _evaluate(self, step: int, epoch: float) -> None:
        self._wait()
        started = time.perf_counter()
        logits = {name: self.evaluator.predict(tokens) for name, tokens in self.scored.items()}
        for name, values in logits.items():
            if not np.isfinite(values).all():
                raise Diverged(f"the logits of {name} are not finite after step {step}")
        evaluation = self.evaluator.score(self.scored, logits, step, epoch, self._choosing)
        self._selection.see(self.fit, evaluation, logits)
        self.fit.eval_s += settled_clock(self.state.device) - started
        self._meter.restart()
        for watcher in self.watchers:
            watcher.evaluation(evaluation)
