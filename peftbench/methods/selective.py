"""Selective fine-tuning: single entries train, chosen once or step by step.

Random masking (Xu and Zhang 2024, arXiv 2405.02596), PaFi (Liao et al. 2023), Fish mask (Sung et al. 2021), D3 and
ID3 (Agarwal et al. 2024, arXiv 2408.14470), and the same on the factors of another method, are yaml files of one class.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, NotNegative, Positive, Within
from peftbench.config.spec import Kind, MethodSpec, Scope
from peftbench.config.validate import make_method
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import Training, Tuner, decays_by_name, entries_by_place, narrowed, require
from peftbench.methods.wrapper import WrapperTuner
from peftbench.sparse.adam import EntryAdamW, ValuesAdamW
from peftbench.sparse.gradients import watch_bias, watch_dense, watch_weight
from peftbench.sparse.schedule import Shape, unmasked
from peftbench.sparse.scores import RANDOM, SCORES, Best, ScoreName
from peftbench.sparse.select import gradient_ids, random_ids, weight_ids
from peftbench.sparse.store import SparseStore

MOMENTS = 10  # of training, at which the record says what was chosen by then


@dataclass(frozen=True)
class Selective:
    """A score, a moment, and candidates: the backbone, or the trainables of an inner method.

    Attributes:
        score: random, or a word of `sparse.scores`: magnitude | fisher | d3 | ...
        when: "start", or "steps": after step t of T exactly round(budget t / T) entries are unmasked, for good.
        schedule, every, steps: how they are unmasked (see `sparse.schedule`), and in how many steps, after which none
            joins; steps None: all of training.
        eps, exp: of the score (d3).
        threshold: only entries whose score exceeds so many times the mean score of the candidates that do not train
            yet; the budget, or the schedule's share of it, is then a ceiling. None: the budget is met exactly.
        batches: batches whose gradients a score looks at before training.
        per_tensor, structured: of random (see `sparse.select.random_ids`).
        adam: "shared": one step counter, as the published code; "entry": every entry from its own unmasking on.
        kinds: candidates among the backbone's standard kinds; None: all of them.
        inner: a method (its `_target_` and keys) whose trainables are the candidates instead.
        entries: how many entries train: the budget.
    """

    score: ScoreName
    when: Literal["start", "steps"] = "start"
    schedule: Shape = "uniform"
    every: Count = 1
    steps: Count | None = None
    eps: Positive = 0.1
    exp: NotNegative = 1.0
    threshold: NotNegative | None = None
    batches: Count = 16
    per_tensor: bool = True
    structured: bool = False
    adam: Literal["shared", "entry"] = "entry"
    kinds: tuple[Kind, ...] | None = None
    inner: Within | None = None
    entries: Count | None = None
    dial: ClassVar[str | None] = "entries"

    def __post_init__(self) -> None:
        if self.when == "steps" and self._gradient != "mean":
            raise ValueError("when=steps needs a score of gradients, as d3 is one")
        if self.threshold is not None and self.score == RANDOM:
            raise ValueError(f"threshold={self.threshold:g} needs a score, and random has none")

    @property
    def _gradient(self) -> str:
        return SCORES[self.score].gradient if self.score in SCORES else "none"

    def rank(self, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The scores of a tensor's entries (see `sparse.scores.Score`)."""
        return SCORES[self.score].rank(gradient, weight, self.eps, self.exp)

    def within(self, model: Model, scope: Scope, entries: int) -> "Selective":
        """See `Method`: the budget is met to the entry."""
        return replace(self, entries=entries)

    def attach(self, model: Model, scope: Scope) -> "SelectiveTuner":
        """See `Method`."""
        if self.entries is None:
            raise ConfigError(
                "method: a selective method needs a budget: budget=<entries>, budget.fraction=<share of the backbone> "
                "or budget.like=<method>"
            )
        inner = None if self.inner is None else self._inner(self.inner, model, scope)
        if inner is not None:
            candidates = dict(inner.trainables())
            for parameter in candidates.values():
                parameter.requires_grad_(False)
        else:
            candidates = dict(model.within(narrowed(scope, self.kinds)))
        require(candidates, "no candidate entry", narrowed(scope, self.kinds))
        store = SparseStore(candidates, self.entries, grows=self.when == "steps")
        if self.when == "start" and not store.values.is_meta:
            if self.score == RANDOM:
                store.add(random_ids(store, self.per_tensor, self.structured))
            elif self._gradient == "none":
                store.add(weight_ids(store, self.rank, self.threshold))
        return SelectiveTuner(self, model, store, inner)

    def _inner(self, raw: Mapping[str, Any], model: Model, scope: Scope) -> Tuner:
        """The inner method, attached.

        Raises:
            ConfigError: some of its trainables are closed at first; entries could be chosen among them too early.
        """
        inner: Tuner = make_method(MethodSpec.from_keys("inner", raw)).attach(model, scope)
        if closed := [name for name, p in inner.trainables().items() if not p.requires_grad]:
            raise ConfigError(f"method.inner: {closed[0]} joins during training; candidates must be there at its start")
        return inner


class SelectiveTuner(WrapperTuner):
    """The chosen entries as one flat parameter; the model's own tensors stay frozen and get the values written in.

    Attributes:
        method: the recipe.
        store: the chosen entries.
    """

    _training: Training

    def __init__(self, method: Selective, model: Model, store: SparseStore, inner: Tuner | None) -> None:
        super().__init__([] if inner is None else [inner])
        self.method, self._model, self.store = method, model, store
        self._decaying = [(decays_by_name if inner is None else inner.decays)(name) for name in store.names]
        self._hooks: list[RemovableHandle] = []
        self._more_parts = False  # another part of this step's batch is to come
        self._staged = torch.zeros(0)  # while growing: gradients at the chosen entries
        self._best = Best(0)
        self._total, self._step = 0, 0  # steps that may unmask entries; the present step
        self._done = 0  # steps whose entries are chosen
        self._growth: list[tuple[int, int]] = []  # (step, entries chosen once it was done), where the number changed

    @property
    def _growing(self) -> bool:
        return self.method.when == "steps" and self.store.used < self.store.budget and self._done < self._total

    def trainables(self) -> Mapping[str, nn.Parameter]:
        """The values."""
        return {"values": self.store.values}

    def touched(self) -> Iterable[str]:
        """The tensors that entries are chosen from."""
        return self.store.names

    def decays(self, name: str) -> bool:
        """Whether all candidates decay; where only some do, `optimizer` sees to it."""
        return all(self._decaying)

    def optimizer(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """AdamW; where entries join during training and each is to be corrected by its own age, our own."""
        partly = any(self._decaying) and not all(self._decaying)
        decay = functools.partial(self._decay, settings["weight_decay"]) if partly else None
        if self.method.when == "steps" and self.method.adam == "entry":
            return EntryAdamW(groups, self.store.values, self._ages, decay, **settings)
        return ValuesAdamW(groups, self.store.values, decay, **settings)

    def _decay(self, weight_decay: float, lr: float) -> None:
        """Decay the values whose tensors may, as AdamW does before its own step."""
        for i, decays in enumerate(self._decaying):
            if decays:
                self.store.values.data[self.store.places(i)] *= 1 - lr * weight_decay

    def prepare(self, training: Training) -> None:
        """Choose what needs gradients to be chosen, and watch for the gradients of what is."""
        super().prepare(training)
        self._training = training
        self.store.to(self.store.tensors[0].device)
        self._total = min(self.method.steps or training.steps, training.steps)
        if self.method.when == "start" and self.store.used == 0:
            self.store.add(self._by_gradients())
        if self._growing and self.store.used and not self._growth:
            self._growth.append((0, self.store.used))  # chosen by the run that this one goes on from
        self.store.write_back()  # after a resume the values came with the trainables
        self._watch()

    def before_backward(self, step: int, last: bool) -> None:
        """Gradients of the last part complete the step's."""
        super().before_backward(step, last)
        self._step, self._more_parts = step, not last
        if self._growing:
            goal = unmasked(self.store.budget, self._total, step + 1, self.method.schedule, self.method.every)
            if self._best.count == 0 and self._staged.numel() == 0:
                self._best = Best(max(0, goal - self.store.used), self.method.threshold)
                self._staged = torch.zeros_like(self.store.values)
        elif self.store.values.grad is None:
            self.store.values.grad = torch.zeros_like(self.store.values)

    def after_backward(self, step: int) -> None:
        """While growing: unmask the best of this step, and hand the gradients to the optimizer.

        Raises:
            ConfigError: no score exceeds the threshold when the first entries are due.
        """
        super().after_backward(step)
        growing, self._done = self._growing, step + 1
        if not growing:
            return
        self._best.cut(required=self.store.used == 0)
        ids, gradients = self._filled(self._best)
        if ids.numel():
            places = self.store.add(ids.int())
            self._staged[places] = gradients
            self._growth.append((step, self.store.used))
        self.store.values.grad = self._staged
        self._staged, self._best = torch.zeros(0), Best(0)
        if not self._growing:
            self._watch()  # nothing is scored any more, so no dense gradient is needed

    def after_step(self, step: int) -> bool:
        """Write the values into the weights.

        Raises:
            ConfigError: the inner method trains other parameters from now on, which are no candidates.
        """
        if super().after_step(step):
            raise ConfigError("method.inner: it replaces parameters during training; its entries cannot be selected")
        self.store.write_back()
        return False

    def delta(self) -> Mapping[str, torch.Tensor]:
        """Index and values of every tensor that has chosen entries."""
        return self.store.tensors_by_name()

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        self.store.load(tensors)
        self._growth = [(step, count) for step, count in self._growth if count <= self.store.used]

    def untrained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The same entries with what the candidates hold there."""
        return self.store.untouched(tensors)

    def merge(self) -> None:
        """The values are in the weights already; an inner method folds its own in."""
        for hook in self._hooks:
            hook.remove()
        super().merge()

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The chosen entries' change, zero elsewhere; or what an inner method makes of its own."""
        if self.parts:
            yield from super().update(before)
            return
        for name, tensor in zip(self.store.names, self.store.tensors, strict=True):
            yield name, tensor.detach().float() - before[name].to(tensor.device).float()

    def kept(self) -> int:
        """What was chosen, and before training the budget."""
        return self.store.used if self._total > 0 else self.store.budget

    def kept_bounds(self) -> tuple[int, int]:
        """The budget; under a threshold at least one entry. While growing maybe none: what counts may be early."""
        if self.method.when == "steps":
            return 0, self.store.budget
        return 1 if self.method.threshold is not None else self.store.budget, self.store.budget

    def facts(self) -> dict[str, Any]:
        """Entries by kind and layer, the growth over steps, and what was chosen by when (ten moments, the ends too)."""
        last = len(self._growth) - 1
        moments = sorted({round(i * last / (MOMENTS - 1)) for i in range(MOMENTS)}) if self._growth else []
        over_time = [{"step": step, **self._by_place(count)} for step, count in (self._growth[i] for i in moments)]
        ends = self._by_place(self.store.used)
        own = {"chosen": self.store.used, **ends, "growth": list(self._growth), "over_time": over_time}
        return {**super().facts(), **own}

    def _by_place(self, first: int) -> dict[str, dict[str, int]]:
        """How many of the entries chosen first lie in each kind, layer, and both."""
        return entries_by_place(self._model, dict(zip(self.store.names, self.store.counts(first), strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Ids in the order in which they were chosen, the growth so far, and the steps that it took."""
        growth = {"growth": list(self._growth), "done": self._done}
        return {**super().state_dict(), "ids": self.store.ids, **growth}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state; the values themselves come with the trainables."""
        super().load_state_dict(state)
        self.store.restore(state["ids"])
        self._growth = [(int(step), int(count)) for step, count in state["growth"]]
        self._done = int(state["done"])

    def _ages(self) -> torch.Tensor:
        """Steps that every entry has been trained for, the present one included."""
        ages = torch.ones_like(self.store.values)
        before = 0
        for step, count in self._growth:
            ages[before:count] = self._step - step + 1
            before = count
        return ages

    def _watch(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for i, tensor in enumerate(self.store.tensors):
            tensor.requires_grad_(False)
            if self._growing:
                self._hooks.append(watch_dense(tensor, self._score(i), lambda: self._more_parts))
            elif self.store.part(i)[1].numel():
                self._hooks.append(self._watch_chosen(i))

    def _watch_chosen(self, i: int) -> RemovableHandle:
        store, name = self.store, self.store.names[i]

        def take(gradient: torch.Tensor) -> None:
            assert store.values.grad is not None
            store.values.grad[store.places(i)] += gradient

        owner, part = self._model.module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(owner, nn.Linear):
            return {"weight": watch_weight, "bias": watch_bias}[part](owner, lambda: store.part(i)[1], take)
        return watch_dense(
            store.tensors[i], lambda dense: take(dense.reshape(-1)[store.part(i)[1]].float()), lambda: False
        )

    def _score(self, i: int) -> Any:
        store, method = self.store, self.method

        def receive(gradient: torch.Tensor) -> None:
            gradient = self._training.total(gradient)
            flat = gradient.reshape(-1)
            places, index = store.part(i)
            self._staged[places] = flat[index].float()
            if self._best.count:
                scores = method.rank(gradient, store.tensors[i]).view(-1)
                scores[index] = -torch.inf
                self._best.offer(scores, store.offsets[i], flat)

        return receive

    def _filled(self, best: Best) -> tuple[torch.Tensor, torch.Tensor]:
        """The best entries; where too few have a gradient (unused tensors), others by rising id with gradient 0.

        Not so under a threshold: they do not exceed it.
        """
        device = self.store.values.device
        ids = torch.zeros(0, dtype=torch.int64, device=device) if best.ids is None else best.ids
        gradients = torch.zeros(0, device=device) if best.extra is None else best.extra
        if self.method.threshold is None and (missing := best.count - ids.numel()) > 0:
            free = torch.ones(self.store.total, dtype=torch.bool, device=device)
            free[self.store.ids.long()] = False
            free[ids] = False
            ids = torch.cat([ids, free.nonzero().squeeze(1)[:missing]])
            gradients = torch.cat([gradients, torch.zeros(missing, device=device)])
        return ids, gradients

    def _by_gradients(self) -> torch.Tensor:
        method, training = self.method, self._training
        squared = SCORES[method.score].gradient == "squares"
        return gradient_ids(
            self.store, training.passes, method.batches, training.total, squared, method.rank, method.threshold
        )
