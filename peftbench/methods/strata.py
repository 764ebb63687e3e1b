"""Layers in strata, each with methods of its own; SPAFIT (Arora and Wang 2024, arXiv 2405.00201) is a yaml of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Kind, MethodSpec, Scope
from peftbench.config.validate import make_method
from peftbench.errors import ConfigError, DataError
from peftbench.methods.base import Method, ParameterTuner, Tuner, narrowed
from peftbench.methods.bitfit import BitFit
from peftbench.methods.lora import LoRA


@dataclass(frozen=True)
class Stratum:
    """Layers up to `last` (from zero, included; the layer after the stratum below is the first) and what trains there.

    Attributes:
        last: a layer number; a share of the depth in (0, 1), rounded to whole layers; None: up to the top.
        methods: methods with their keys, `_target_` first; none: frozen.
    """

    last: int | Annotated[float, Field(gt=0, lt=1)] | None
    methods: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Strata:
    """Strata from the bottom up, and what trains outside the layers.

    Attributes:
        strata: their boundaries rise; the last one reaches the top.
        elsewhere: methods outside the layers (embeddings, pooler), limited to `elsewhere_kinds`.
    """

    strata: Annotated[tuple[Stratum, ...], Field(min_length=1)]
    elsewhere: tuple[dict[str, Any], ...] = ()
    elsewhere_kinds: tuple[Kind, ...] = ("pooler",)

    def attach(self, model: Model, scope: Scope, budget: Budget) -> "StrataTuner":
        """See `Method`. A budget goes to the LoRA parts, which share one rank; the others are what they are."""
        parts = list(self._parts(model, scope))
        if budget.entries is not None:
            parts = _within_budget(parts, model, budget.entries)
        return StrataTuner([method.attach(model, inside, Budget()) for method, inside in parts])

    def _parts(self, model: Model, scope: Scope) -> list[tuple[Method, Scope]]:
        found, start = [], 0
        for stratum, last in zip(self.strata, self._boundaries(model.depth), strict=True):
            layers = tuple(i for i in range(start, last + 1) if scope.layers is None or i in scope.layers)
            start = last + 1
            if layers:
                found += [(_made(raw), replace(scope, layers=layers)) for raw in stratum.methods]
        if scope.layers is None:
            found += [(_made(raw), narrowed(scope, self.elsewhere_kinds)) for raw in self.elsewhere]
        if not found:
            raise ConfigError("scope: every stratum in it is frozen")
        return found

    def _boundaries(self, depth: int) -> list[int]:
        """The last layer of every stratum.

        Raises:
            ConfigError: they do not rise, or lie beyond the depth.
        """
        lasts = []
        for stratum in self.strata:
            last = stratum.last
            if last is None:
                last = depth - 1
            elif isinstance(last, float):
                last = round(last * depth) - 1
            lasts.append(last)
        shown = ", ".join(str(stratum.last) for stratum in self.strata)
        if max(lasts) >= depth or min(lasts) < -1:
            raise ConfigError(f"method.strata: boundaries {shown}: the backbone has layers 0 to {depth - 1}")
        if any(low > high for low, high in pairwise(lasts)):
            raise ConfigError(f"method.strata: boundaries {shown} are out of order; they must rise")
        return lasts


class StrataTuner(ParameterTuner):
    """Several tuners on one model, side by side."""

    def __init__(self, parts: list[Tuner]) -> None:
        self._parts = parts
        found: dict[str, nn.Parameter] = {}
        for part in parts:
            for name, parameter in part.trainables().items():
                if name in found:
                    raise ConfigError(f"method.strata: two methods train {name}")
                found[name] = parameter
        self._trainables = found  # each part has set requires_grad itself: some open theirs one after another

    def touched(self) -> Iterable[str]:
        """What every part may change."""
        return [name for part in self._parts for name in part.touched()]

    def prepare(self, steps: int, passes: Callable[[int], Iterator[None]]) -> None:
        """Every part prepares."""
        for part in self._parts:
            part.prepare(steps, passes)

    def before_backward(self, step: int, last: bool) -> None:
        """Every part is told."""
        for part in self._parts:
            part.before_backward(step, last)

    def after_backward(self, step: int) -> None:
        """Every part is told."""
        for part in self._parts:
            part.after_backward(step)

    def after_step(self, step: int) -> None:
        """Every part is told."""
        for part in self._parts:
            part.after_step(step)

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        if unknown := sorted(set(tensors) - set(self._trainables)):
            raise DataError(f"the delta does not fit: {unknown[0]} is no trainable of these strata")
        for part in self._parts:
            part.load_delta({name: tensors[name] for name in part.trainables() if name in tensors})

    def state_dict(self) -> dict[str, Any]:
        """The state of every part."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        for part, inside in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(inside)

    def merge(self) -> None:
        """Merge every part."""
        for part in self._parts:
            part.merge()


def _made(raw: Mapping[str, Any]) -> Method:
    arguments = {key: value for key, value in raw.items() if key != "_target_"}
    return make_method(MethodSpec("part", str(raw.get("_target_")), arguments))


def _within_budget(parts: list[tuple[Method, Scope]], model: Model, entries: int) -> list[tuple[Method, Scope]]:
    """The same parts, the LoRA ones with the largest common rank that keeps all of them within the budget."""
    fixed = sum(m.entries(model, inside) for m, inside in parts if isinstance(m, BitFit))
    per_rank = sum(m.entries(model, inside) // m.rank for m, inside in parts if isinstance(m, LoRA))
    if not per_rank or any(not isinstance(method, (BitFit, LoRA)) for method, _ in parts):
        raise ConfigError("budget: strata take one through the rank of LoRA; these are not of LoRA and BitFit")
    rank = (entries - fixed) // per_rank
    if rank < 1:
        raise ConfigError(f"budget: {entries:,} entries; these strata need at least {fixed + per_rank:,} (rank 1)")
    return [(replace(method, rank=rank) if isinstance(method, LoRA) else method, inside) for method, inside in parts]
