"""AdaLoRA: low-rank terms whose ranks are allocated while training (Zhang et al. 2023, arXiv 2303.10512)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from peftbench.backbone.dropout import Dropout
from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, InnerShare, NotNegative, Positive, Share, Whole
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError, DataError
from peftbench.methods.base import Training, entries_by_place, narrowed, same_names
from peftbench.methods.dial import turned
from peftbench.methods.lora import LoRALinear, LoRATuner
from peftbench.methods.maps import packed, unpacked, wrap

Steps = Whole | InnerShare
MOMENTS = 10  # of training, at which the ranks are noted for the record
KEPT = "kept"  # of every matrix, which triplets are there: one bit each, the first in the highest place


class AdaLoRALinear(LoRALinear):
    """A linear map with a term of triplets: W x + b + s B (E * A x), s = alpha / (rank + 1e-5): equation 3.

    `lora_A` (rank, in) and `lora_B` (out, rank) start at N(0, 0.02^2), `lora_E` (rank, 1) at zero. In training every
    triplet takes part, so that one whose E was set to zero can grow again; at rest only those in `kept` (rank,) do.
    The scale keeps the initial rank for ever, as the released code does.
    """

    factors = ("lora_A", "lora_E", "lora_B")
    kept: torch.Tensor

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: nn.Module) -> None:
        super().__init__(base, rank, alpha, dropout)
        device = base.weight.device
        self.scaling = alpha / (rank + 1e-5)
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=device))
        nn.init.normal_(self.lora_A, std=0.02)
        nn.init.normal_(self.lora_B, std=0.02)
        self.register_buffer(KEPT, torch.ones(rank, dtype=torch.bool, device=device), persistent=False)

    def scale(self) -> torch.Tensor:
        """(rank,)."""
        values = self.scaling * self.lora_E.squeeze(1)
        return values if self.training else values * self.kept

    def update(self) -> torch.Tensor:
        """The term of the triplets that are kept, as a matrix (out, in)."""
        values = self.scaling * self.lora_E.squeeze(1) * self.kept
        return ((self.lora_B * values) @ self.lora_A).detach()


@dataclass(frozen=True)
class Schedule:
    """How many triplets each optimizer step (from 0) may leave, and when the others' E is set to zero.

    Attributes:
        steps: of the whole run, T.
        initial: t_i, after which triplets are taken away; final: t_f, the steps at the end without any change.
        every: steps between two masks, Delta_T.
        triplets: at the start, b_0; target: at the end, b_T.
    """

    steps: int
    initial: int
    final: int
    every: int
    triplets: int
    target: int

    def budget(self, step: int) -> int:
        """b(t): the cubic fall of appendix A, rounded down, with the exponent's base as the released code has it."""
        left, falling = self.steps - self.final - step, self.steps - self.final - self.initial
        if step <= self.initial:
            return self.triplets
        if left <= 0:
            return self.target
        return self.target + (self.triplets - self.target) * left**3 // falling**3

    def masks(self, step: int) -> bool:
        """Whether E is masked after this step."""
        return step > self.initial and (step >= self.steps - self.final or step % self.every == 0)

    def moves(self, step: int) -> bool:
        """Whether the pattern may still change after this step."""
        return step <= self.steps - self.final


class AdaLoRATuner(LoRATuner):
    """The triplets of all wrapped maps, ranked together.

    After every step those that would stay if training ended now are marked as kept: what is evaluated, selected by its
    score, stored or merged has exactly the target's number of triplets, whenever training ends.
    """

    def __init__(self, model: Model, wrapped: Mapping[str, AdaLoRALinear], method: "AdaLoRA") -> None:
        super().__init__(model, wrapped)
        self.layers, self._method = dict(wrapped), method
        self._triplets = method.rank * len(self.layers)
        self._target = method.triplets_kept(len(self.layers))
        self._schedule: Schedule | None = None
        self._sensitivity: list[torch.Tensor] = []  # of every entry, in the order of the trainables
        self._uncertainty: list[torch.Tensor] = []
        self._pruned = False
        self._moments: list[tuple[int, list[int]]] = []  # (step, rank of every map)

    def check_steps(self, steps: int) -> None:
        """See `Tuner`.

        Raises:
            ConfigError: the schedule does not fit into so many steps, or another method steps single entries of these.
        """
        self._method.schedule(steps, self._triplets, self._target)
        if not all(parameter.requires_grad for parameter in self.trainables().values()):
            raise ConfigError("method.inner: AdaLoRA ranks its triplets by every entry's gradient; it must train alone")

    def prepare(self, training: Training) -> None:
        """Lay the schedule over training."""
        self._schedule = self._method.schedule(training.steps, self._triplets, self._target)

    def penalty(self) -> torch.Tensor | None:
        """gamma times the mean, over all A and B, of |F F^T - 1|_F: unsquared, as the released code has it (eq. 4)."""
        if self._method.orthogonality == 0:
            return None
        factors = [factor for layer in self.layers.values() for factor in (layer.lora_A, layer.lora_B.t())]
        by_width: dict[int, list[torch.Tensor]] = {}
        for factor in factors:
            by_width.setdefault(factor.shape[1], []).append(factor)
        norms = []
        for same in by_width.values():
            stacked = torch.stack(same)
            identity = torch.eye(stacked.shape[1], device=stacked.device)
            norms.append(torch.linalg.matrix_norm(stacked @ stacked.mT - identity).sum())
        return self._method.orthogonality * torch.stack(norms).sum() / len(factors)

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Update the importance, mark what would stay, and mask E where the schedule says so."""
        schedule = self._schedule
        assert schedule is not None
        if schedule.target == schedule.triplets:
            return False
        if schedule.moves(step):
            if step < schedule.steps - schedule.final:
                self._update_importance()
            order = self._scores().argsort(descending=True, stable=True)  # ties by position
            self._mark(order[: schedule.target])
            pattern = self._pattern(order[: schedule.budget(step)])
            if schedule.masks(step):
                self._mask(pattern)
        else:
            pattern = [layer.kept for layer in self.layers.values()]
            self._mask(pattern)
        if step * MOMENTS // schedule.steps != (step - 1) * MOMENTS // schedule.steps:
            self._moments.append((step, [int(kept.sum()) for kept in pattern]))
        return False

    def _update_importance(self) -> None:
        """Equations 8 to 10, from the stepped weight and the clipped gradient; none without a gradient."""
        parameters: list[torch.Tensor] = list(self.trainables().values())
        if not self._sensitivity:
            self._sensitivity = [torch.zeros_like(parameter) for parameter in parameters]
            self._uncertainty = [torch.zeros_like(parameter) for parameter in parameters]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters
        ]
        now = torch._foreach_mul(parameters, gradients)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(self._sensitivity, now, 1 - self._method.beta1)
        torch._foreach_sub_(now, self._sensitivity)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(self._uncertainty, now, 1 - self._method.beta2)

    def _scores(self) -> torch.Tensor:
        """Equation 7 of every triplet, in the order of the layers (triplets,)."""
        scores = torch._foreach_mul(self._sensitivity, self._uncertainty)
        parts = zip(scores[0::3], scores[1::3], scores[2::3], strict=True)
        return torch.cat([e.squeeze(1) + (a.mean(1) + b.mean(0)) for a, e, b in parts])

    def _pattern(self, chosen: torch.Tensor) -> list[torch.Tensor]:
        """The numbers of triplets as a pattern of every layer (rank,) bool."""
        flat = torch.zeros(self._triplets, dtype=torch.bool, device=chosen.device)
        flat[chosen] = True
        return list(flat.split(self._method.rank))

    def _mark(self, chosen: torch.Tensor) -> None:
        self._pruned = True
        for layer, kept in zip(self.layers.values(), self._pattern(chosen), strict=True):
            layer.kept.copy_(kept)

    def _mask(self, pattern: list[torch.Tensor]) -> None:
        for layer, kept in zip(self.layers.values(), pattern, strict=True):
            layer.lora_E.mul_(kept.unsqueeze(1))

    def delta(self) -> Mapping[str, torch.Tensor]:
        """The triplets that are kept, and which ones they are."""
        tensors = {}
        for name, layer in self.layers.items():
            kept = layer.kept
            tensors[f"{name}.lora_A"] = layer.lora_A.detach()[kept]
            tensors[f"{name}.lora_E"] = layer.lora_E.detach()[kept]
            tensors[f"{name}.lora_B"] = layer.lora_B.detach()[:, kept]
            tensors[f"{name}.{KEPT}"] = packed(kept)
        return tensors

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`; what is not kept gets an E of zero."""
        same_names(
            [f"{name}.{part}" for name, layer in self.layers.items() for part in (*layer.factors, KEPT)], tensors
        )
        for name, layer in self.layers.items():
            kept = unpacked(f"{name}.{KEPT}", tensors, self._method.rank)
            for factor in layer.factors:
                _put_triplets(f"{name}.{factor}", tensors, getattr(layer, factor), kept)
            with torch.no_grad():
                layer.lora_E[~kept] = 0.0
            layer.kept.copy_(kept)
        self._pruned = True

    def kept(self) -> int:
        """Entries of the triplets that are kept; before training as many as equal ranks would have."""
        if not self._pruned:
            return super().kept() * self._target // self._triplets
        ranks = zip(self._ranks(), self.layers.values(), strict=True)
        return sum(rank * _entries_of_one(layer) for rank, layer in ranks)

    def kept_bounds(self) -> tuple[int, int]:
        """With the target's triplets in the smallest maps first, and in the largest first."""
        sizes = sorted(_entries_of_one(layer) for layer in self.layers.values() for _ in range(self._method.rank))
        return sum(sizes[: self._target]), sum(sizes[-self._target :])

    def facts(self) -> dict[str, Any]:
        """Triplets at the start and at the end, the rank that each linear map was left with, and where the entries of
        those lay that the schedule left at ten moments."""
        triplets = {"initial": self._triplets, "target": self._target, "kept": sum(self._ranks())}
        return {
            "triplets": triplets,
            "ranks": dict(zip(self.wrapped, self._ranks(), strict=True)),
            **self._entries(self._ranks()),
            "over_time": [{"step": step, **self._entries(ranks)} for step, ranks in self._moments],
        }

    def _entries(self, ranks: list[int]) -> dict[str, dict[str, int]]:
        entries = zip(self.layers.items(), ranks, strict=True)
        return entries_by_place(self._model, {name: rank * _entries_of_one(layer) for (name, layer), rank in entries})

    def _ranks(self) -> list[int]:
        return [int(layer.kept.sum()) for layer in self.layers.values()]

    def state_dict(self) -> dict[str, Any]:
        """The running importance of every entry, and the pattern."""
        return {
            "sensitivity": self._sensitivity,
            "uncertainty": self._uncertainty,
            "kept": [layer.kept for layer in self.layers.values()],
            "pruned": self._pruned,
            "moments": list(self._moments),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        device = next(iter(self.trainables().values())).device
        self._sensitivity = [tensor.to(device) for tensor in state["sensitivity"]]
        self._uncertainty = [tensor.to(device) for tensor in state["uncertainty"]]
        for layer, kept in zip(self.layers.values(), state["kept"], strict=True):
            layer.kept.copy_(kept)
        self._pruned = bool(state["pruned"])
        self._moments = [(int(step), list(ranks)) for step, ranks in state["moments"]]


def _entries_of_one(layer: AdaLoRALinear) -> int:
    return layer.in_features + layer.out_features + 1


def _put_triplets(name: str, tensors: Mapping[str, torch.Tensor], factor: nn.Parameter, kept: torch.Tensor) -> None:
    """Put the stored part of a factor in its place; what is pruned keeps its A and B, so that it could grow again."""
    dim, shape = int(name.endswith("lora_B")), list(factor.shape)
    shape[dim] = int(kept.sum())
    if list(tensors[name].shape) != shape:
        raise DataError(f"the delta does not fit: {name} is {tuple(tensors[name].shape)}, here {tuple(shape)}")
    with torch.no_grad():
        places = kept.nonzero().squeeze(1).to(factor.device)
        factor.index_copy_(dim, places, tensors[name].to(factor))


@dataclass(frozen=True)
class AdaLoRA:
    """Triplets (a column of B, an entry of E, a row of A) beside frozen maps; the least important are pruned.

    Attributes:
        rank: of every map at the start.
        target_rank: the mean over maps at the end; None: two thirds of all triplets stay.
        orthogonality: gamma, the weight of the penalty.
        beta1, beta2: decay of the running importance and of its uncertainty.
        initial, final, every: optimizer steps, or shares of all: see `Schedule`.
    """

    rank: Count = 12
    target_rank: Count | None = None
    alpha: Positive = 16
    dropout: Share = 0.0
    kinds: tuple[Kind, ...] | None = ("query", "key", "value", "attention_output", "intermediate", "output")
    orthogonality: NotNegative = 0.1
    beta1: InnerShare = 0.85
    beta2: InnerShare = 0.85
    initial: Steps = 0.15
    final: Steps = 0.45
    every: Count | InnerShare = 0.002
    dial: ClassVar[str | None] = "rank"

    def attach(self, model: Model, scope: Scope) -> AdaLoRATuner:
        """See `Method`.

        Triplets are named "<linear map>.lora_A", "<linear map>.lora_E" and "<linear map>.lora_B".
        """
        if self.target_rank is not None and self.target_rank > self.rank:
            raise ConfigError(f"method.target_rank={self.target_rank}: above the initial rank, which is {self.rank}")
        if all(isinstance(share, float) for share in (self.initial, self.final)) and self.initial + self.final >= 1:
            raise ConfigError(f"method.initial={self.initial}, method.final={self.final}: no step is left between them")
        wrapped = wrap(
            model,
            narrowed(scope, self.kinds),
            lambda base: AdaLoRALinear(base, self.rank, self.alpha, Dropout(self.dropout, model.noise)),
        )
        return AdaLoRATuner(model, wrapped, self)

    def within(self, model: Model, scope: Scope, entries: int) -> "AdaLoRA":
        """See `Method`: the budget is what trains, so the initial rank is turned; the target stays."""
        free = replace(self, target_rank=None)
        return replace(turned(free, "rank", model, scope, entries), target_rank=self.target_rank)

    def triplets_kept(self, maps: int) -> int:
        """b_T, over so many linear maps: at least one."""
        if self.target_rank is None:
            return max(1, 2 * maps * self.rank // 3)
        return maps * self.target_rank

    def schedule(self, steps: int, triplets: int, target: int) -> Schedule:
        """The schedule over so many optimizer steps.

        Raises:
            ConfigError: no step is left between the first steps and the last.
        """
        initial, final = (round(steps * at) if isinstance(at, float) else at for at in (self.initial, self.final))
        every = max(1, round(steps * self.every)) if isinstance(self.every, float) else self.every
        if initial + final >= steps:
            keys = f"method.initial={self.initial}, method.final={self.final}"
            raise ConfigError(f"{keys}: {initial:,} + {final:,} steps; the run has {steps:,}, one must lie between")
        return Schedule(steps, initial, final, every, triplets, target)
