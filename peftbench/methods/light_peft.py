"""Light-PEFT: estimated early, then pruned, backbone and terms alike (Gu et al. 2024, arXiv 2406.03792)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from peftbench.backbone.dropout import Dropout
from peftbench.backbone.model import Model, empty_copy
from peftbench.config.bounds import Count, InnerShare, NotNegative, Positive, Share
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.quantity import quantity
from peftbench.methods.base import Training, copy_into, narrowed, require
from peftbench.methods.dial import largest
from peftbench.methods.maps import MapsTuner, named_factors, wrap
from peftbench.methods.pruning import (
    HEADS,
    NEURONS,
    PRUNABLE,
    Estimation,
    Pattern,
    Prunable,
    PrunableLinear,
    Units,
    check_architecture,
    highest,
    units_of,
)

LONGEST = 800  # optimizer steps of estimation where it is a share: as many as the authors take
UNEVEN = "what was pruned is zeros in this folder: a transformers model has as many heads and neurons in every layer"


class LightPEFTTuner(MapsTuner[PrunableLinear]):
    """LoRA's terms and masks over heads and neurons; after the estimation only terms, on a smaller backbone."""

    def __init__(
        self,
        model: Model,
        wrapped: Mapping[str, PrunableLinear],
        heads: Sequence[Units],
        neurons: Sequence[Units],
        method: "LightPEFT",
        remaining: "Remaining",
    ) -> None:
        super().__init__(model, wrapped)
        self._method, self._heads, self._neurons, self._remaining = method, heads, neurons, remaining
        self._terms = {name: layer for name, layer in self.wrapped.items() if layer.lora_A is not None}
        self._before = sum(parameter.numel() for _, parameter in model.backbone()) - super().kept()
        self._estimation = Estimation(list(self._terms.values()), method.rank)
        self._pattern: Pattern | None = None
        self._done = self._until = 0
        self._total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor

    @property
    def _units(self) -> list[Units]:
        return [*self._heads, *self._neurons]

    def touched(self) -> Iterable[str]:
        """The trainables, and whatever of the backbone's maps may be pruned."""
        makers = {id(maker) for unit in self._units for maker in unit.makers}
        readers = {id(unit.reader) for unit in self._units}
        names = list(self.trainables())
        for name, layer in self.wrapped.items():
            names += [f"{name}.weight"] if id(layer) in makers | readers else []
            names += [f"{name}.bias"] if id(layer) in makers and layer.bias is not None else []
        return names

    def decays(self, name: str) -> bool:
        """Not the masks: decay would pull all of them."""
        return not name.endswith(".mask") and super().decays(name)

    def check_steps(self, steps: int) -> None:
        """See `Tuner`.

        Raises:
            ConfigError: the estimation leaves no step, or another method steps single entries of these.
        """
        self._method.estimated(steps)
        if not all(parameter.requires_grad for parameter in self.trainables().values()):
            raise ConfigError("method.inner: LightPEFT prunes what trains; it must train alone")

    def prepare(self, training: Training) -> None:
        """Lay the estimation over training; a run that goes on from a pruned one has none."""
        self._total = training.total
        if self._pattern is None:
            self._until = self._method.estimated(training.steps)
            if self._done >= self._until // 2:
                self._estimation.begin(self._model.module)

    def settles(self) -> int:
        """When the estimation has ended."""
        return self._until

    def penalty(self) -> torch.Tensor | None:
        """lambda times the sum of all |mask|, until they are pruned."""
        masks: list[torch.Tensor] = [unit.reader.mask for unit in self._units if unit.reader.mask is not None]
        if not masks or self._method.penalty == 0:
            return None
        return self._method.penalty * torch.cat(masks).abs().sum()

    def after_backward(self, step: int) -> None:
        """The second half of the estimation counts."""
        if self._pattern is None and step >= self._until // 2:
            self._estimation.after_backward(self._total)

    def after_step(self, step: int) -> bool:
        """The last step of the estimation is followed by pruning."""
        self._done = step + 1
        if self._pattern is not None:
            return False
        if self._done == self._until // 2:
            self._estimation.begin(self._model.module)
        if self._done < self._until:
            return False
        self._estimation.end()
        self._prune(self._chosen())
        return True

    def _chosen(self) -> Pattern:
        """What is kept: exactly as much as the shares say, ties by position."""
        remaining, masks = self._remaining, {unit.name: _values(unit) for unit in self._units}
        kept = {unit.name: highest(masks[unit.name], remaining.heads) for unit in self._heads}
        if self._neurons:
            scores = torch.stack([masks[unit.name] for unit in self._neurons])
            first = scores.argmax(1, keepdim=True)  # of every layer: none is left empty
            chosen = highest(scores.scatter(1, first, torch.inf).flatten(), remaining.neurons).view_as(scores)
            kept |= {unit.name: row for unit, row in zip(self._neurons, chosen, strict=True)}
        modules = highest(self._estimation.modules.cpu(), remaining.modules)
        ranks = self._estimation.ranks.cpu().masked_fill(~modules.unsqueeze(1), -1.0)
        chosen = highest(ranks.flatten(), remaining.ranks).view_as(ranks)
        return Pattern(
            kept,
            {name: masks[name][kept[name]] for name in kept} if self._method.masks == "fold" else {},
            dict(zip(self._terms, chosen, strict=True)),
        )

    def _prune(self, pattern: Pattern) -> None:
        """Make the maps smaller, for good."""
        for unit in self._units:
            unit.prune(pattern.units[unit.name], pattern.masks.get(unit.name))
        for name, layer in self._terms.items():
            layer.keep_ranks(pattern.ranks[name])
        self._pattern, self._trainables = pattern, named_factors(self.wrapped)

    def _everything(self) -> Pattern:
        """Nothing is pruned, and the masks are as they are."""
        rank = self._method.rank
        return Pattern(
            {unit.name: torch.ones(unit.count, dtype=torch.bool) for unit in self._units},
            {unit.name: _values(unit) for unit in self._units},
            {name: torch.ones(rank, dtype=torch.bool) for name in self._terms},
        )

    def delta(self) -> Mapping[str, torch.Tensor]:
        """What is left of the terms, the pattern, and the masks that were folded in."""
        return {**super().delta(), **(self._pattern or self._everything()).tensors()}

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`; the backbone is pruned as the delta's was.

        Raises:
            DataError: also where the pattern is none that this method leaves, or not the one that was pruned already.
        """
        pattern = self._read(tensors)
        if self._pattern is None:
            self._prune(pattern)
        elif any(not torch.equal(tensors[name], bits) for name, bits in self._pattern.tensors().items()):
            raise DataError("the delta does not fit: the backbone has been pruned otherwise")
        own = {name: tensor for name, tensor in tensors.items() if name.endswith((".lora_A", ".lora_B"))}
        copy_into(self._trainables, own)

    def _read(self, tensors: Mapping[str, torch.Tensor]) -> Pattern:
        """The pattern in a delta, held against what this method leaves."""
        pattern = Pattern.read(tensors, self._units, self._method.masks == "fold", list(self._terms), self._method.rank)
        remaining, modules = self._remaining, sum(bool(kept.any()) for kept in pattern.ranks.values())
        counts = [("heads of a layer", int(pattern.units[unit.name].sum()), remaining.heads) for unit in self._heads]
        counts += [("neurons", sum(int(pattern.units[unit.name].sum()) for unit in self._neurons), remaining.neurons)]
        counts += [("ranks", sum(int(kept.sum()) for kept in pattern.ranks.values()), remaining.ranks)]
        counts += [("modules", modules, remaining.modules)] if modules > remaining.modules else []
        for what, stored, expected in counts:
            if stored != expected:
                raise DataError(f"the delta does not fit: {stored:,} {what} are kept, not {expected:,}")
        if not all(kept.any() for kept in pattern.units.values()):
            raise DataError("the delta does not fit: a layer without neurons")
        return pattern

    def merge(self) -> str | None:
        """Fold terms and masks in and put whole maps back, with zeros where something was pruned."""
        if self._pattern is None:
            self._prune(self._everything())
        super().merge()
        for unit in self._units:
            unit.restore()
        return UNEVEN if self._units else None

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The terms, the folded masks, and what was pruned taken away."""
        for name, layer in self.wrapped.items():
            for part, whole in zip(("weight", "bias"), layer.widened(), strict=True):
                if whole is not None:
                    yield f"{name}.{part}", whole - before[f"{name}.{part}"].to(whole.device).float()

    def kept(self) -> int:
        """Entries of the ranks that are kept; before training, as many as if they and neurons were shared evenly."""
        if self._pattern is not None:
            return super().kept()
        sizes = self._sizes(self._remaining.neurons / max(1, len(self._neurons)))
        return round(sum(sizes) / len(sizes) * self._remaining.ranks)

    def kept_bounds(self) -> tuple[int, int]:
        """With the ranks in the smallest maps, of layers with the fewest neurons, and the other way round."""
        neurons, others = self._remaining.neurons, max(0, len(self._neurons) - 1)
        count = self._neurons[0].count if self._neurons else 0
        least, most = self._sizes(max(1, neurons - others * count)), self._sizes(min(count, neurons - others))
        ranks, each = self._remaining.ranks, self._method.rank
        lowest = sorted(size for size in least for _ in range(each))[:ranks]
        return int(sum(lowest)), int(sum(sorted(size for size in most for _ in range(each))[-ranks:]))

    def _sizes(self, neurons: float) -> list[float]:
        """Entries of one rank of every module, in + out, where every layer keeps so many neurons."""
        width = {id(unit): self._remaining.heads * unit.size for unit in self._heads} | {
            id(unit): neurons for unit in self._neurons
        }
        rows = {id(maker): width[id(unit)] for unit in self._units for maker in unit.makers}
        columns = {id(unit.reader): width[id(unit)] for unit in self._units}
        layers = self._terms.values()
        return [rows.get(id(layer), layer.whole[0]) + columns.get(id(layer), layer.whole[1]) for layer in layers]

    def facts(self) -> dict[str, Any]:
        """The backbone's entries before and after; heads, neurons and ranks that are left, by map."""
        backbone = sum(parameter.numel() for _, parameter in self._model.backbone()) - super().kept()
        pattern = self._pattern or self._everything()
        return {
            "entries": {"before": self._before, "after": backbone},
            "estimation": self._until,
            "units": {name: int(kept.sum()) for name, kept in pattern.units.items()},
            "ranks": {name: int(kept.sum()) for name, kept in pattern.ranks.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """The estimate so far, and the pattern once there is one."""
        return {
            "done": self._done,
            "until": self._until,
            "modules": self._estimation.modules,
            "ranks": self._estimation.ranks,
            "pattern": self._pattern.tensors() if self._pattern else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self._done, self._until = state["done"], state["until"]
        self._estimation.modules, self._estimation.ranks = state["modules"], state["ranks"]
        if state["pattern"] and self._pattern is None:
            self._prune(self._read(state["pattern"]))


def _values(unit: Units) -> torch.Tensor:
    """The mask of heads or neurons (count,)."""
    assert unit.reader.mask is not None
    return unit.reader.mask.detach().float().cpu()


@dataclass(frozen=True)
class Remaining:
    """How much is left: heads of every layer, neurons of all layers, modules with a term, ranks of all modules."""

    heads: int
    neurons: int
    modules: int
    ranks: int


@dataclass(frozen=True)
class LightPEFT:
    """LoRA with masks over heads and neurons at first; then the least important of everything goes, for real.

    Attributes:
        estimation: optimizer steps, or a share of all, before pruning; a share takes 800 steps at most.
        prune_heads: share of every layer's heads; prune_neurons: of all layers' neurons together; 0 leaves them alone.
        prune_modules: share of the low-rank terms; prune_ranks: of the ranks of the terms that are left, together.
        penalty: lambda of the L1 penalty on the masks.
        masks: fold: what is left is multiplied by its mask; drop: it is as it was in the backbone.
    """

    estimation: Count | InnerShare = 0.25
    prune_heads: Share = 0.333333333
    prune_neurons: Share = 0.333333333
    prune_modules: Share = 0.75
    prune_ranks: Share = 0.5
    penalty: NotNegative = 1e-4
    masks: Literal["fold", "drop"] = "fold"
    rank: Count = 8
    alpha: Positive = 16
    dropout: Share = 0.05
    kinds: tuple[Prunable, ...] = PRUNABLE
    dial: ClassVar[str | None] = "rank"
    budgets_kept: ClassVar[bool] = True

    def attach(self, model: Model, scope: Scope) -> LightPEFTTuner:
        """See `Method`.

        Factors are named "<linear map>.lora_A" and "<linear map>.lora_B", masks "<linear map that reads them>.mask".
        Heads are pruned where the scope covers the four kinds that make them up, neurons where it covers both.
        """
        check_architecture(model)
        inside = narrowed(scope, PRUNABLE).kinds or ()
        terms = [kind for kind in self.kinds if kind in inside]
        heads = self.prune_heads > 0 and set(HEADS) <= set(inside)
        neurons = self.prune_neurons > 0 and set(NEURONS) <= set(inside)
        kinds = {*terms, *(HEADS if heads else ()), *(NEURONS if neurons else ())}
        require(model.linears(Scope(scope.layers, tuple(terms))), "no linear map", scope)
        bases = dict(model.linears(Scope(scope.layers, tuple(kinds))))
        wrapped = wrap(model, Scope(scope.layers, tuple(kinds)), PrunableLinear)
        for name, layer in wrapped.items():
            if not model.place(name).kinds.isdisjoint(terms):
                layer.add_term(bases[name], self.rank, self.alpha, Dropout(self.dropout, model.noise))
        head_units = units_of(model, wrapped, HEADS) if heads else []
        neuron_units = units_of(model, wrapped, NEURONS) if neurons else []
        remaining = self.remaining(
            head_units, neuron_units, sum(layer.lora_A is not None for layer in wrapped.values())
        )
        for unit in (*head_units, *neuron_units):
            unit.add_mask()
        return LightPEFTTuner(model, wrapped, head_units, neuron_units, self, remaining)

    def within(self, model: Model, scope: Scope, entries: int) -> "LightPEFT":
        """See `Method`: the budget is what is left to train after pruning, at most; the estimation trains more."""

        def most(method: "LightPEFT") -> int:
            return method.attach(empty_copy(model), scope).kept_bounds()[1]

        return largest(lambda rank: replace(self, rank=rank), most, entries, "LightPEFT", "rank")

    def estimated(self, steps: int) -> int:
        """Optimizer steps of the estimation, of so many in all.

        Raises:
            ConfigError: none is left after it.
        """
        share = isinstance(self.estimation, float)
        first = min(LONGEST, max(1, round(steps * self.estimation))) if share else int(self.estimation)
        if first >= steps:
            left = f"{quantity(first, 'step')}; the run has {steps:,}, one must be left"
            raise ConfigError(f"method.estimation={self.estimation}: {left}")
        return first

    def remaining(self, heads: Sequence[Units], neurons: Sequence[Units], modules: int) -> Remaining:
        """How much of so much is left: exactly count less round(share * count).

        Raises:
            ConfigError: a layer would be empty, or no term is left.
        """
        every = sum(unit.count for unit in neurons)
        return Remaining(
            heads=self._rest("prune_heads", "heads of a layer", heads[0].count if heads else 0, min(1, len(heads))),
            neurons=self._rest("prune_neurons", "neurons", every, len(neurons)),  # one in every layer
            modules=(terms := self._rest("prune_modules", "linear maps with a term", modules, 1)),
            ranks=self._rest("prune_ranks", "ranks", terms * self.rank, 1),
        )

    def _rest(self, key: str, what: str, count: int, least: int) -> int:
        share = getattr(self, key)
        rest = count - round(share * count)
        if rest < least:
            left = f"of {count:,} {what} {rest:,} would be left"
            raise ConfigError(f"method.{key}={share:g}: {left}; at least {least:,} must be")
        return rest
