"""Selective fine-tuning: single entries train, chosen once or step by step.

Random masking (Xu and Zhang 2024, arXiv 2405.02596), PaFi (Liao et al. 2023), Fish mask (Sung et al. 2021), D3 and
ID3 (Agarwal et al. 2024, arXiv 2408.14470), and the same on the factors of another method, are yaml files of one class.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from accelerate.utils import reduce
from pydantic import Field
from torch import nn
from torch.utils.hooks import RemovableHandle

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Count, Kind, MethodSpec, Scope
from peftbench.config.validate import make_method
from peftbench.errors import ConfigError
from peftbench.machine import process_state
from peftbench.methods.base import ParameterTuner, Tuner, narrowed, require
from peftbench.sparse.adam import EntryAdamW
from peftbench.sparse.gradients import watch_bias, watch_dense, watch_weight
from peftbench.sparse.schedule import Shape, unmasked
from peftbench.sparse.scores import Best, d3
from peftbench.sparse.select import Passes, gradient_ids, random_ids, smallest_ids
from peftbench.sparse.store import SparseStore


@dataclass(frozen=True)
class Selective:
    """A score, a moment, and candidates: the backbone, or the trainables of an inner method.

    Attributes:
        score: random | magnitude (the smallest) | fisher | d3, |gradient| / (|weight| + eps)^exp.
        when: "start", or "steps": after step t of T exactly round(budget t / T) entries are unmasked, for good.
        schedule, every, steps: how they are unmasked (see `sparse.schedule`); steps None: all of training.
        eps, exp: of d3.
        batches: batches whose gradients fisher and d3 look at before training.
        per_tensor, structured: of random (see `sparse.select.random_ids`).
        adam: "shared": one step counter, as the published code; "entry": every entry from its own unmasking on.
        kinds: candidates among the backbone's standard kinds; None: all of them.
        inner: a method (its `_target_` and keys) whose trainables are the candidates instead.
    """

    score: Literal["random", "magnitude", "fisher", "d3"]
    when: Literal["start", "steps"] = "start"
    schedule: Shape = "uniform"
    every: Count = 1
    steps: Count | None = None
    eps: Annotated[float, Field(gt=0)] = 0.1
    exp: float = 1.0
    batches: Count = 16
    per_tensor: bool = True
    structured: bool = False
    adam: Literal["shared", "entry"] = "entry"
    kinds: tuple[Kind, ...] | None = None
    inner: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.when == "steps" and self.score != "d3":
            raise ValueError("when=steps needs score=d3")

    def attach(self, model: Model, scope: Scope, budget: Budget) -> "SelectiveTuner":
        """See `Method`."""
        if budget.entries is None:
            raise ConfigError(
                "method: a selective method needs a budget: budget=<entries>, budget.fraction=<share of the backbone> "
                "or budget.like=<method>"
            )
        inner = None
        if self.inner is not None:
            arguments = {key: value for key, value in self.inner.items() if key != "_target_"}
            inner = make_method(MethodSpec("inner", str(self.inner.get("_target_")), arguments)).attach(
                model, scope, Budget()
            )
            candidates = dict(inner.trainables())
            for parameter in candidates.values():
                parameter.requires_grad_(False)
        else:
            candidates = dict(model.within(narrowed(scope, self.kinds)))
        require(candidates, "no candidate entry", narrowed(scope, self.kinds))
        store = SparseStore(candidates, budget.entries)
        if self.when == "start" and not store.values.is_meta:
            if self.score == "random":
                store.add(random_ids(store, self.per_tensor, self.structured))
            elif self.score == "magnitude":
                store.add(smallest_ids(store))
        return SelectiveTuner(self, model, store, inner)


class SelectiveTuner(ParameterTuner):
    """The chosen entries as one flat parameter; the model's own tensors stay frozen and get the values written in."""

    def __init__(self, method: Selective, model: Model, store: SparseStore, inner: Tuner | None) -> None:
        super().__init__({"values": store.values})
        self._method, self._model, self._inner, self.store = method, model, inner, store
        self._hooks: list[RemovableHandle] = []
        self._more_parts = False  # another part of this step's batch is to come
        self._staged = torch.zeros(0)  # while growing: gradients at the chosen entries
        self._best = Best(0)
        self._total, self._step = 0, 0
        self._growth: list[tuple[int, int]] = []  # (step, entries chosen once it was done), where the number changed

    @property
    def _growing(self) -> bool:
        return self._method.when == "steps" and self.store.used < self.store.budget

    def touched(self) -> Iterable[str]:
        """The tensors that entries are chosen from."""
        return self.store.names

    def optimizer(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """AdamW; where entries join during training and each is to be corrected by its own age, our own."""
        if self._method.when == "steps" and self._method.adam == "entry":
            return EntryAdamW(groups, self.store.values, self._ages, **settings)
        return super().optimizer(groups, **settings)

    def prepare(self, steps: int, passes: Passes) -> None:
        """Choose what needs gradients to be chosen, and watch for the gradients of what is."""
        self.store.to(self.store.tensors[0].device)
        self._total = min(self._method.steps or steps, steps)
        if self._method.when == "start" and self.store.used == 0:
            self.store.add(self._by_gradients(passes))
        self._watch()

    def before_backward(self, step: int, last: bool) -> None:
        """Gradients of the last part complete the step's."""
        self._step, self._more_parts = step, not last
        if self._growing:
            goal = unmasked(self.store.budget, self._total, step + 1, self._method.schedule, self._method.every)
            if self._best.count == 0 and self._staged.numel() == 0:
                self._best = Best(goal - self.store.used)
                self._staged = torch.zeros_like(self.store.values)
        elif self.store.values.grad is None:
            self.store.values.grad = torch.zeros_like(self.store.values)

    def after_backward(self, step: int) -> None:
        """While growing: unmask the best of this step, and hand the gradients to the optimizer."""
        if not self._growing:
            return
        ids, gradients = self._filled(self._best)
        if ids.numel():
            places = self.store.add(ids.int())
            self._staged[places] = gradients
            self._growth.append((step, self.store.used))
        self.store.values.grad = self._staged
        self._staged, self._best = torch.zeros(0), Best(0)
        if not self._growing:
            self._watch()  # nothing is scored any more, so no dense gradient is needed

    def after_step(self, step: int) -> None:
        """Write the values into the weights."""
        self.store.write_back()

    def delta(self) -> Mapping[str, torch.Tensor]:
        """Index and values of every tensor that has chosen entries."""
        return self.store.tensors_by_name()

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        self.store.load(tensors)

    def merge(self) -> None:
        """The values are in the weights already; an inner method folds its own in."""
        for hook in self._hooks:
            hook.remove()
        if self._inner is not None:
            self._inner.merge()

    def facts(self) -> dict[str, Any]:
        """Entries by kind and layer, the growth over steps, and what was chosen by when (ten moments)."""
        moments = self._growth[:: max(1, -(-len(self._growth) // 10))] if self._growth else []
        over_time = [{"step": step, **self._by_place(count)} for step, count in moments]
        ends = self._by_place(self.store.used)
        return {"chosen": self.store.used, **ends, "growth": list(self._growth), "over_time": over_time}

    def _by_place(self, first: int) -> dict[str, dict[str, int]]:
        """How many of the entries chosen first lie in each kind and layer."""
        kinds: dict[str, int] = {}
        layers: dict[str, int] = {}
        for name, count in zip(self.store.names, self.store.counts(first), strict=True):
            place = self._model.place(name)
            kind, layer = "+".join(sorted(place.kinds)), "none" if place.layer is None else str(place.layer)
            kinds[kind], layers[layer] = kinds.get(kind, 0) + count, layers.get(layer, 0) + count
        return {"by_kind": kinds, "by_layer": layers}

    def state_dict(self) -> dict[str, Any]:
        """Ids in the order in which they were chosen, and the growth so far."""
        return {"ids": self.store.ids, "growth": list(self._growth)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state; the values themselves come with the trainables."""
        self.store.restore(state["ids"])
        self.store.write_back()
        self._growth = [(int(step), int(count)) for step, count in state["growth"]]

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
        store, method = self.store, self._method

        def receive(gradient: torch.Tensor) -> None:
            gradient = _over_processes(gradient)
            flat = gradient.reshape(-1)
            places, index = store.part(i)
            self._staged[places] = flat[index].float()
            if self._best.count:
                scores = d3(gradient, store.tensors[i], method.eps, method.exp).view(-1)
                scores[index] = -torch.inf
                self._best.offer(scores, store.offsets[i], flat)

        return receive

    def _filled(self, best: Best) -> tuple[torch.Tensor, torch.Tensor]:
        """The best entries; where too few have a gradient (unused tensors), others by rising id with gradient 0."""
        device = self.store.values.device
        ids = torch.zeros(0, dtype=torch.int64, device=device) if best.ids is None else best.ids
        gradients = torch.zeros(0, device=device) if best.extra is None else best.extra
        if (missing := best.count - ids.numel()) > 0:
            free = torch.ones(self.store.total, dtype=torch.bool, device=device)
            free[self.store.ids.long()] = False
            free[ids] = False
            ids = torch.cat([ids, free.nonzero().squeeze(1)[:missing]])
            gradients = torch.cat([gradients, torch.zeros(missing, device=device)])
        return ids, gradients

    def _by_gradients(self, passes: Passes) -> torch.Tensor:
        method = self._method
        if method.score == "fisher":
            return gradient_ids(self.store, passes, method.batches, _over_processes, True, lambda total, weight: total)
        return gradient_ids(
            self.store,
            passes,
            method.batches,
            _over_processes,
            False,
            lambda total, weight: d3(total / method.batches, weight, method.eps, method.exp),
        )


def _over_processes(gradient: torch.Tensor) -> torch.Tensor:
    return reduce(gradient, reduction="sum") if process_state().num_processes > 1 else gradient
