"""The training loop. It steps what a tuner offers and never asks which method it runs."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, reduce
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.backbone.prefix import Prefix
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.config.spec import TaskSpec
from peftbench.data.batches import collate, cut, epoch_order, evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.errors import Diverged
from peftbench.machine import keep_freed_memory, process_state
from peftbench.methods.base import Tuner
from peftbench.seeds import stream
from peftbench.training.checkpoint import Checkpoints
from peftbench.training.fit import Evaluation, Fit, Watcher
from peftbench.training.metrics import predict, score
from peftbench.training.stopping import Stop


@dataclass
class Trainer:
    """One model, one tuner, one protocol. Rows of a global batch are shared out over processes and accumulated parts.

    Attributes:
        train: rows to train on; None: only evaluate.
        scored: splits that are scored, by name.
        choosing: name of the metric that selects.
        log_every: optimizer steps between two calls of `Watcher.step`.
        checkpoints: where the state of training is kept, and taken up from; None: nowhere.
        stop: whether a signal asks to leave.
    """

    model: Model
    tuner: Tuner
    protocol: TrainingProtocol
    task: TaskSpec
    train: Tokens | None
    scored: Mapping[str, Tokens]
    choosing: str
    seed: int
    watchers: Sequence[Watcher] = ()
    log_every: int = 10
    checkpoints: Checkpoints | None = None
    stop: Stop = field(default_factory=Stop)

    def __post_init__(self) -> None:
        self.state = process_state()
        keep_freed_memory()
        self.model.module.to(self.state.device)
        for parameter in self.tuner.trainables().values():
            parameter.data = parameter.data.to(self.state.device)
        self.parameters = dict(self.tuner.trainables()) | dict(self.model.head())
        self.type_ids = getattr(self.model.module.config, "type_vocab_size", 0) > 1
        self.fit = Fit()
        self._best: dict[str, torch.Tensor] | None = None
        self.prefix = Prefix(self.model, self.tuner.touched()) if self.protocol.keep_prefix else None

    def run(self) -> Fit:
        """Train by the protocol, evaluate when it says so, and leave the selected weights in the model.

        Raises:
            Diverged: the loss is no longer finite.
        """
        if self.train is None:
            self._evaluate(step=0, epoch=0.0)
            return self.fit
        order = self._order(self.train)
        self._epoch_steps = len(order(0))
        kept = None if self.checkpoints is None else self.checkpoints.read()
        optimizer = self.begin(self.protocol.max_steps or self.protocol.epochs * self._epoch_steps, kept)
        with self.stop.deferred():
            self._steps(order, optimizer)
        self._restore_best()
        return self.fit

    def _steps(self, order: Callable[[int], list[np.ndarray]], optimizer: torch.optim.Optimizer) -> None:
        """From the first step, or where a checkpoint left off, to the last."""
        batches = order(self.fit.steps // self._epoch_steps)
        while True:
            step = self.fit.steps
            if self._evaluation_due(step):
                self._keep(optimizer)
                self._evaluate(step, step / self._epoch_steps)
            if step == self._total or self._out_of_patience():
                return
            if self.stop.asked or (self.checkpoints and self.checkpoints.due() and self.state.num_processes == 1):
                self._keep(optimizer)
                self.stop.check()
            if step % self._epoch_steps == 0:
                batches = order(step // self._epoch_steps)
            self.step(step, batches[step % self._epoch_steps], optimizer)

    def begin(self, total: int, kept: Mapping[str, Any] | None = None) -> torch.optim.Optimizer:
        """Everything that comes before the first of `total` optimizer steps, or before the next after a checkpoint."""
        self._total = total
        if self.prefix is not None:
            self._run_prefix(self.prefix)
        dropout = stream(self.seed, "dropout") + self.state.process_index
        torch.manual_seed(dropout)
        self.model.noise.seed(dropout)
        optimizer = self._optimizer()
        if kept is not None:
            self._take_up(kept, optimizer)
        for watcher in self.watchers:
            watcher.begin(total, self.fit.steps)
        self.tuner.prepare(total, self._passes)
        if kept is not None:  # what a tuner draws while it prepares was drawn before
            self.model.noise.load_state_dict(kept["noise"][self.state.process_index])
            torch.set_rng_state(kept["random"][self.state.process_index])
            if self.state.device.type == "cuda":
                torch.cuda.set_rng_state(kept["cuda"][self.state.process_index])
        return optimizer

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint: all that the next step depends on."""
        if self.checkpoints is None:
            return
        on_gpu = self.state.device.type == "cuda"
        mine = [(self.model.noise.state_dict(), torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None)]
        everyones = gather_object(mine) if self.state.num_processes > 1 else mine
        noise, random, cuda = zip(*everyones, strict=True)
        if not self.state.is_main_process:
            return
        self.checkpoints.write(
            {
                "parameters": {name: p.detach() for name, p in self.parameters.items()},
                "optimizer": optimizer.state_dict(),
                "tuner": self.tuner.state_dict(),
                "fit": self.fit.state_dict(),
                "best": self._best,
                "log": (self._losses, self._logged_at, self._norm, self._seen_tokens),
                "noise": noise,
                "random": random,
                "cuda": cuda,
            }
        )

    def _take_up(self, kept: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(kept["parameters"][name])
        optimizer.load_state_dict(kept["optimizer"])
        self.tuner.load_state_dict(kept["tuner"])
        self.fit.load_state_dict(kept["fit"])
        self._best = kept["best"]
        losses, self._logged_at, self._norm, self._seen_tokens = kept["log"]
        self._losses = losses.to(self.state.device)

    def _order(self, train: Tokens) -> Callable[[int], list[np.ndarray]]:
        lengths = train.lengths

        def order(epoch: int) -> list[np.ndarray]:
            return epoch_order(lengths, self.protocol.batch_size, self.protocol.bucketing, self.seed, epoch)

        return order

    def _optimizer(self) -> torch.optim.Optimizer:
        head = dict(self.model.head())
        groups: list[dict[str, Any]] = []
        for in_head, lr in ((False, self.protocol.lr), (True, self.protocol.head_lr or self.protocol.lr)):
            for decays, weight_decay in ((True, self.protocol.weight_decay), (False, 0.0)):
                named = [p for n, p in self.parameters.items() if (n in head, _decays(n)) == (in_head, decays)]
                groups += [{"params": named, "weight_decay": weight_decay, "lr": lr}] if named else []
        self._peaks = [group["lr"] for group in groups]
        self._losses = torch.zeros((), device=self.state.device)
        self._since, self._logged_at, self._norm = time.perf_counter(), 0, torch.zeros(())
        self._seen_tokens = 0
        return self.tuner.optimizer(
            groups,
            lr=self.protocol.lr,
            betas=self.protocol.betas,
            eps=self.protocol.eps,
            fused=True,
        )

    def step(self, step: int, rows: np.ndarray, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step on a global batch of rows."""
        started = time.perf_counter()
        self.model.module.train()
        assert self.train is not None
        parts = list(cut(rows, self.protocol.accumulation * self.state.num_processes))
        mine = parts[self.state.process_index :: self.state.num_processes]
        weight = 1.0 / len(rows)
        if not mine:  # fewer rows than processes: one more look at a row, for nothing, keeps the processes in step
            mine, weight = [rows[:1]], 0.0
        for i, part in enumerate(mine):
            loss = self._loss(self.train, part) * weight
            self.tuner.before_backward(step, last=i + 1 == len(mine))
            loss.backward()
            self._losses += loss.detach()
        self._reduce_gradients()
        self.tuner.after_backward(step)
        if self.protocol.clip is not None:
            self._norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.protocol.clip)
        factor = lr_factor(step, self._total, self.protocol.warmup, self.protocol.schedule)
        for group, peak in zip(optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.step()
        self.tuner.after_step(step)
        optimizer.zero_grad(set_to_none=True)
        self.fit.steps = step + 1
        self.fit.train_s += time.perf_counter() - started
        if (step + 1) % self.log_every == 0 or step + 1 == self._total:
            self._log(step + 1, self.protocol.lr * factor)

    def _run_prefix(self, prefix: Prefix) -> None:
        """Run the frozen first layers on every row that is trained on or scored more than once."""
        with self._autocast():
            for tokens in (self.train, *self.scored.values()):
                assert tokens is not None
                prefix.keep(tokens, evaluation_order(tokens.lengths, self.protocol.eval_batch_size), self._collate)

    def _logits(self, tokens: Tokens, rows: np.ndarray, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self._autocast():
            if self.prefix is None:
                return self.model.forward(batch)
            with self.prefix.standing_in(tokens, rows, batch["attention_mask"]):
                return self.model.forward(batch)

    def _loss(self, tokens: Tokens, rows: np.ndarray) -> torch.Tensor:
        """Summed loss of some rows: cross entropy, or squared error for a regression."""
        batch = self._collate(tokens, rows)
        logits = self._logits(tokens, rows, batch)
        if self.task.labels is None:
            return functional.mse_loss(logits[:, 0], batch["labels"], reduction="sum")
        return functional.cross_entropy(logits, batch["labels"], reduction="sum")

    def _passes(self, count: int) -> Iterator[None]:
        """Run batches of training rows forward and backward without dropout; yields after each."""
        assert self.train is not None
        self.model.module.eval()
        order = epoch_order(self.train.lengths, self.protocol.batch_size, False, self.seed, epoch=0)
        for i in range(count):
            rows = order[i % len(order)]
            for part in list(cut(rows, self.state.num_processes))[self.state.process_index :: self.state.num_processes]:
                (self._loss(self.train, part) / len(rows)).backward()
            yield
            self.model.module.zero_grad(set_to_none=True)

    def _collate(self, tokens: Tokens, rows: np.ndarray) -> dict[str, torch.Tensor]:
        batch = collate(tokens, rows, self.type_ids)
        if self.model.module.training:
            real = int(tokens.lengths[rows].sum())
            self.fit.tokens += real
            self.fit.padded += batch["input_ids"].numel() - real
        return {key: value.to(self.state.device, non_blocking=True) for key, value in batch.items()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.protocol.precision == "bf16")

    def _reduce_gradients(self) -> None:
        """Sum gradients over processes: each has divided its loss by the size of the global batch."""
        if self.state.num_processes == 1:
            return
        for parameter in self.parameters.values():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = reduce(gradient, reduction="sum")

    def _log(self, step: int, lr: float) -> None:
        count = step - self._logged_at
        losses = reduce(self._losses, reduction="sum") if self.state.num_processes > 1 else self._losses
        loss = losses.item() / count
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} after step {step}")
        seconds = max(time.perf_counter() - self._since, 1e-9)
        facts = {
            "loss": loss,
            "lr": lr,
            "grad_norm": float(self._norm),
            "tokens_per_s": (self.fit.tokens - self._seen_tokens) / seconds,
        }
        self._losses.zero_()
        self._since, self._logged_at, self._seen_tokens = time.perf_counter(), step, self.fit.tokens
        for watcher in self.watchers:
            watcher.step(step, facts)

    def _evaluation_due(self, step: int) -> bool:
        if step == 0 or (self.fit.evaluations and self.fit.evaluations[-1].step == step):
            return False
        every = self._epoch_steps if self.protocol.evaluate_every == "epoch" else self.protocol.evaluate_every
        return step == self._total or step % every == 0

    def _evaluate(self, step: int, epoch: float) -> None:
        started = time.perf_counter()
        logits = {name: self.predict(tokens) for name, tokens in self.scored.items()}
        metrics, collapsed = self._score(logits)
        evaluation = Evaluation(step, epoch, metrics, collapsed, metrics.get(self.choosing, math.nan))
        self.fit.evaluations.append(evaluation)
        self._select(evaluation, logits)
        self.fit.eval_s += time.perf_counter() - started
        self._since = time.perf_counter()
        for watcher in self.watchers:
            watcher.evaluation(evaluation)

    def _score(self, logits: Mapping[str, np.ndarray]) -> tuple[dict[str, float], bool]:
        metrics: dict[str, float] = {}
        collapsed = False
        for name, tokens in self.scored.items():
            if tokens.labels is None:
                continue
            found = score(self.task.metrics, predict(logits[name]), tokens.labels)
            collapsed = collapsed or found.collapsed
            names = {metric: key for key, (split, metric) in self.task.scored().items() if split == name}
            metrics |= {names.get(metric, f"{metric}_{name}"): value for metric, value in found.values.items()}
        return metrics, collapsed

    def _select(self, evaluation: Evaluation, logits: dict[str, np.ndarray]) -> None:
        """Keep this evaluation if the selection rule prefers it to the one kept so far."""
        index = len(self.fit.evaluations) - 1
        if self.protocol.selection != "last" and index > 0:
            if not evaluation.chosen_by > self.fit.evaluations[self.fit.selected].chosen_by:
                return
        self.fit.selected, self.fit.logits = index, logits
        if self.protocol.selection != "last":
            learned = dict(self.tuner.delta()) | {f"head.{name}": p for name, p in self.model.head()}
            self._best = {name: tensor.detach().clone() for name, tensor in learned.items()}

    def _out_of_patience(self) -> bool:
        if self.protocol.patience is None or not self.fit.evaluations:
            return False
        values = [evaluation.chosen_by for evaluation in self.fit.evaluations]
        return len(values) - 1 - int(np.argmax(values)) >= self.protocol.patience

    def _restore_best(self) -> None:
        if self._best is None or self.fit.selected == len(self.fit.evaluations) - 1:
            return
        self.tuner.load_delta({k: v for k, v in self._best.items() if not k.startswith("head.")})
        with torch.no_grad():
            for name, parameter in self.model.head():
                parameter.copy_(self._best[f"head.{name}"])

    def predict(self, tokens: Tokens) -> np.ndarray:
        """Logits (rows, labels) fp32 of a split, in the order of its rows."""
        self.model.module.eval()
        batches = evaluation_order(tokens.lengths, self.protocol.eval_batch_size)
        mine = batches[self.state.process_index :: self.state.num_processes]
        found = []
        with torch.inference_mode():
            for rows in mine:
                self.stop.check()
                found.append((rows, self._logits(tokens, rows, self._collate(tokens, rows))))
        pieces = [(rows, logits.cpu().numpy()) for rows, logits in found]
        if self.state.num_processes > 1:
            pieces = gather_object(pieces)
        out = np.empty((len(tokens), self.task.num_labels), dtype=np.float32)
        for rows, logits in pieces:
            out[rows] = logits
        return out


def lr_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """Learning rate of optimizer step `step` (from 0) as a share of the peak.

    It rises over the first `warmup` share of the steps; then it stays (constant) or falls to 0 at `total`.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    left = (total - step) / max(1, total - rising)
    return left if schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def _decays(name: str) -> bool:
    return not (name.endswith(".bias") or "norm" in name.lower())
