"""Structured pruning: linear maps that lose rows, columns and ranks for good, and the heads and neurons behind them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from peftbench.backbone.model import Model
from peftbench.ground.errors import ConfigError, DataError
from peftbench.methods.base import same_names
from peftbench.methods.lora import new_factors, plus_product
from peftbench.methods.maps import AdaptedLinear, packed, unpacked

Prunable = Literal["query", "key", "value", "attention_output", "intermediate", "output"]
PRUNABLE: tuple[Prunable, ...] = get_args(Prunable)
HEADS, NEURONS = PRUNABLE[:4], PRUNABLE[4:]  # the kinds that make heads, and neurons; the last of them reads them
COUNTS = ("num_attention_heads", "n_heads")  # what attention modules call their number of heads
Watch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class PrunableLinear(AdaptedLinear):
    """A linear map, with LoRA's term or without, that can lose outputs, inputs and ranks; they are gone from memory.

    `lora_A` (rank, in) and `lora_B` (out, rank) are LoRA's, None without a term; the scale keeps the first rank for
    ever. `mask` (units,), where the map reads heads or neurons, multiplies its input unit by unit: on a head's output
    that is the same as on its attention probabilities.

    Attributes:
        outputs, inputs: which rows and columns of the whole matrix are left; None: all.
        folding: what the columns that are left are still to be multiplied by (in,); None: nothing.
        watch: told W x + b (..., out), the term before B (..., rank) and B in every forward pass of training.
    """

    factors: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "mask")
    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    mask: nn.Parameter | None

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base)
        for factor in self.factors:
            self.register_parameter(factor, None)
        self.whole = (base.out_features, base.in_features)
        self.outputs: torch.Tensor | None = None
        self.inputs: torch.Tensor | None = None
        self.folding: torch.Tensor | None = None
        self.watch: Watch | None = None

    def add_term(self, base: nn.Linear, rank: int, alpha: float, dropout: nn.Module) -> "PrunableLinear":
        """Give it LoRA's term."""
        self.scaling, self.dropout = alpha / rank, dropout
        self.lora_A, self.lora_B = new_factors(base, rank)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        if self.folding is not None:
            self._fold_masks()
        if self.mask is not None:
            x = (x * _spread(self.mask, x.shape[-1] // len(self.mask))).to(x.dtype)
        plain = functional.linear(x, self.weight, self.bias)
        if self.lora_A is None or self.lora_B is None:
            return plain
        low = self.scaling * functional.linear(self.dropout(x), self.lora_A)
        if self.watch is not None and self.training:
            self.watch(plain, low, self.lora_B)
        return plus_product(plain, low, self.lora_B)

    @torch.no_grad()
    def narrow_outputs(self, kept: torch.Tensor) -> None:
        """Keep these rows (numbers) of weight, bias and B."""
        self.outputs, self.out_features = kept, len(kept)
        self.weight = _frozen(self.weight[kept])
        if self.bias is not None:
            self.bias = _frozen(self.bias[kept])
        if self.lora_B is not None:
            self.lora_B = nn.Parameter(self.lora_B[kept])

    @torch.no_grad()
    def narrow_inputs(self, kept: torch.Tensor, scale: torch.Tensor | None) -> None:
        """Keep these columns (numbers) of weight and A, each times its scale; the mask goes."""
        self.inputs, self.in_features, self.mask = kept, len(kept), None
        self.weight, self.folding = _frozen(self.weight[:, kept]), scale
        if self.lora_A is not None:
            left = self.lora_A[:, kept]
            self.lora_A = nn.Parameter(left if scale is None else left * scale)

    @torch.no_grad()
    def _fold_masks(self) -> None:
        """As late as the first pass: a run that prunes has rounded its weights before, and a restored one must, too."""
        assert self.folding is not None
        self.weight.copy_(self.weight.float() * self.folding.to(self.weight.device))
        self.folding = None

    @torch.no_grad()
    def keep_ranks(self, kept: torch.Tensor) -> None:
        """Keep these ranks (rank,) bool; without any the term goes."""
        assert self.lora_A is not None
        assert self.lora_B is not None
        any_left, kept = bool(kept.any()), kept.to(self.lora_A.device)
        self.lora_A = nn.Parameter(self.lora_A[kept]) if any_left else None
        self.lora_B = nn.Parameter(self.lora_B[:, kept]) if any_left else None

    def widened(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight with its term and bias in the whole map's shape, in fp32: zeros where something was pruned."""
        if self.folding is not None:
            self._fold_masks()
        weight, bias = self.weight.detach().float(), None if self.bias is None else self.bias.detach().float()
        if self.lora_A is not None and self.lora_B is not None:
            weight = weight + self.scaling * (self.lora_B @ self.lora_A).detach()
        out, into = self.whole
        if self.inputs is not None:
            weight = weight.new_zeros(len(weight), into).index_copy_(1, self.inputs.to(weight.device), weight)
        if self.outputs is not None:
            rows = self.outputs.to(weight.device)
            weight = weight.new_zeros(out, into).index_copy_(0, rows, weight)
            bias = None if bias is None else bias.new_zeros(out).index_copy_(0, rows, bias)
        return weight, bias

    def fold(self) -> None:
        """The term goes into the weight, and zeros where something was pruned."""
        weight, bias = self.widened()
        self.weight = _frozen(weight.to(self.weight.dtype))
        if self.bias is not None and bias is not None:
            self.bias = _frozen(bias.to(self.bias.dtype))
        self.out_features, self.in_features = self.whole


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)


def _spread(units: torch.Tensor, size: int) -> torch.Tensor:
    """One value for each unit as one for each of its entries: (units,) to (units * size,)."""
    return units if size == 1 else units.unsqueeze(1).expand(-1, size).flatten()


@dataclass
class Units:
    """Heads or neurons of one layer: rows of the maps that make them, columns of the one that reads them.

    Attributes:
        name: of the map that reads them.
        count: how many there are; size: entries of each.
        attention: the module that shares out its queries, keys and values over heads; None: neurons.
    """

    name: str
    makers: Sequence[PrunableLinear]
    reader: PrunableLinear
    count: int
    size: int
    attention: nn.Module | None = None
    _hook: RemovableHandle | None = None

    def add_mask(self) -> None:
        """A mask of ones, to be trained."""
        self.reader.mask = nn.Parameter(torch.ones(self.count, device=self.reader.weight.device))

    def prune(self, kept: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Take all others away.

        Args:
            kept: (count,) bool.
            mask: folded into what reads them: a value for each that is kept; None: nothing is.
        """
        device = self.reader.weight.device
        numbers = kept.nonzero().squeeze(1).to(device)
        entries = (numbers.unsqueeze(1) * self.size + torch.arange(self.size, device=device)).flatten()
        for maker in self.makers:
            maker.narrow_outputs(entries)
        self.reader.narrow_inputs(entries, None if mask is None else _spread(mask.to(device), self.size))
        if self.attention is not None:
            self._tell(len(numbers))
            if "position_bias" in inspect.signature(self.attention.forward).parameters:
                self._hook = self.attention.register_forward_pre_hook(_of_heads(numbers), with_kwargs=True)

    def restore(self) -> None:
        """The maps have their whole shapes again."""
        if self.attention is not None:
            self._tell(self.count)
        if self._hook is not None:
            self._hook.remove()

    def _tell(self, heads: int) -> None:
        for name, value in ((COUNTS[0], heads), (COUNTS[1], heads), ("all_head_size", heads * self.size)):
            if hasattr(self.attention, name):
                setattr(self.attention, name, value)


def _of_heads(kept: torch.Tensor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook that hands MPNet's attention the position biases (1, heads, tokens, tokens) of the heads that it has."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bias = bound.arguments.get("position_bias")
        if bias is not None:
            bound.arguments["position_bias"] = bias.index_select(1, kept.to(bias.device))
        return bound.args, bound.kwargs

    return hook


def units_of(model: Model, wrapped: Mapping[str, PrunableLinear], kinds: Sequence[str]) -> list[Units]:
    """The heads, or the neurons, of every layer that has wrapped maps of these kinds, the last of which reads them."""
    layers: dict[int, dict[str, str]] = {}
    for name in wrapped:
        place = model.place(name)
        layers.setdefault(place.layer or 0, {})[next(iter(place.kinds))] = name
    units = []
    for maps in layers.values():
        makers, reader = [wrapped[maps[kind]] for kind in kinds[:-1]], wrapped[maps[kinds[-1]]]
        if kinds == NEURONS:
            units.append(Units(maps[kinds[-1]], makers, reader, reader.in_features, 1))
            continue
        heads = int(model.module.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
        attention = model.module.get_submodule(maps["query"].rpartition(".")[0])
        units.append(Units(maps[kinds[-1]], makers, reader, heads, reader.in_features // heads, attention))
    return units


def check_architecture(model: Model) -> None:
    """See that heads and neurons of a backbone can be pruned.

    Raises:
        ConfigError: its attention is none of those that are known to go on with fewer heads, or of low-rank maps.
    """
    if model.ranks:
        raise ConfigError(f"method: light_peft prunes whole maps; those of {model.name}'s weights are low-rank")
    if not model.layout.prunes_heads:
        raise ConfigError(f"method: light_peft prunes heads, and {model.name} has layout.prunes_heads=false")


@dataclass(frozen=True)
class Pattern:
    """What is left, by name.

    Attributes:
        units: of every map that reads heads or neurons, which (count,) bool.
        masks: what was folded into it: a value for each that is left (left,) fp32; empty where masks were dropped.
        ranks: of every map that had a term, which ranks (rank,) bool.
    """

    units: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]
    ranks: Mapping[str, torch.Tensor]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Bits and masks as a delta holds them."""
        bits = {f"{name}.kept": packed(kept) for name, kept in self.units.items()}
        bits |= {f"{name}.ranks": packed(kept) for name, kept in self.ranks.items()}
        return bits | {f"{name}.mask": mask for name, mask in self.masks.items()}

    @staticmethod
    def read(
        tensors: Mapping[str, torch.Tensor], units: Sequence[Units], masks: bool, maps: Sequence[str], rank: int
    ) -> "Pattern":
        """The pattern in a delta.

        Raises:
            DataError: a part is missing, too much, or of another kind or size.
        """
        parts = [f"{unit.name}.{part}" for unit in units for part in (("kept", "mask") if masks else ("kept",))]
        parts += [f"{name}.ranks" for name in maps]
        same_names(parts, [name for name in tensors if not name.endswith((".lora_A", ".lora_B"))])
        kept = {unit.name: unpacked(f"{unit.name}.kept", tensors, unit.count) for unit in units}
        ranks = {name: unpacked(f"{name}.ranks", tensors, rank) for name in maps}
        values = {name: tensors[f"{name}.mask"].cpu() for name in kept} if masks else {}
        for name, mask in values.items():
            if mask.dtype != torch.float32 or mask.shape != (left := (int(kept[name].sum()),)):
                raise DataError(f"the delta does not fit: {name}.mask is {mask.dtype} {tuple(mask.shape)}, not {left}")
        return Pattern(kept, values, ranks)


class Estimation:
    """Which modules and ranks matter, as sums over optimizer steps, which rank as their means do.

    A module's importance is the mean over tokens of |s B A x| / |W x + b|; a rank's is |mean over the row of A * dA| +
    |mean over the column of B * dB|, from gradients that are not clipped. What is not finite counts as zero.
    """

    def __init__(self, layers: Sequence[PrunableLinear], rank: int) -> None:
        self._layers = layers
        self._handle: RemovableHandle | None = None
        device = layers[0].weight.device
        self.modules = torch.zeros(len(layers), device=device)
        self.ranks = torch.zeros(len(layers), rank, device=device)
        self._step = torch.zeros(len(layers) + 1, device=device)  # of this step: sums over tokens, and how many
        self._inside = torch.zeros(0)

    def begin(self, module: nn.Module) -> None:
        """Watch the model's maps."""
        device = self._layers[0].weight.device
        self.modules, self.ranks, self._step = (t.to(device) for t in (self.modules, self.ranks, self._step))
        self._handle = module.register_forward_pre_hook(self._saw_batch, with_kwargs=True)
        for number, layer in enumerate(self._layers):
            layer.watch = partial(self._saw, number)

    def end(self) -> None:
        """Watch no longer."""
        if self._handle is not None:
            self._handle.remove()
        for layer in self._layers:
            layer.watch = None

    def after_backward(self, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """A step's gradients are there; `total` sums over processes."""
        sums = total(self._step.clone())
        self._step.zero_()
        self.modules += sums[:-1] / sums[-1]
        for number, layer in enumerate(self._layers):
            a, b = layer.lora_A, layer.lora_B
            if a is not None and b is not None and a.grad is not None and b.grad is not None:
                score = (a.detach() * a.grad).mean(1).abs() + (b.detach() * b.grad).mean(0).abs()
                self.ranks[number] += score.nan_to_num(0, 0, 0)

    def _saw_batch(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            self._inside = kwargs["attention_mask"]
            self._step[-1] += self._inside.sum()

    @torch.no_grad()
    def _saw(self, number: int, plain: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> None:
        if plain.shape[:-1] != self._inside.shape:
            return  # DeBERTa's relative positions go through queries and keys, too
        change = functional.linear(low, b).float().norm(dim=-1) / plain.float().norm(dim=-1)
        self._step[number] += (change.nan_to_num(0, 0, 0) * self._inside).sum()


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The places (n,) bool of exactly so many of the highest scores (n,); of equal ones the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:count]] = True
    return kept
