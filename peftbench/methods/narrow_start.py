"""How the narrow layers of a ladder start: structured pruning of the backbone's own, by how much its weights matter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import Training
from peftbench.methods.narrow import Narrow

Score = Literal["fisher", "log_fisher", "magnitude"]
Heads = Literal["within", "across"]
ATTENTION = ("query", "key", "value")


class Importance:
    """How much every weight of some layers matters, and every column of the embeddings.

    Attributes:
        score: fisher: the squared gradients of the task's loss, one example at a time, each matrix's divided by their
            mean; log_fisher: |their logarithm|, as the released code for BART and BERT has it: it prefers what matters
            least; magnitude: |w|, divided likewise.
        weights: of every matrix by name (out, in), before it is divided.
        columns: of the backbone's hidden state (hidden,).
    """

    def __init__(self, score: Score, weights: Mapping[str, torch.Tensor], columns: torch.Tensor) -> None:
        self.score, self.weights, self.columns = score, weights, columns

    def rows(self, parts: Sequence[torch.Tensor], columns: torch.Tensor) -> torch.Tensor:
        """The score of every row (out,) that these matrices have in common, in some of their columns."""
        if self.score == "log_fisher":
            scores = [part.log() for part in parts]
        else:
            scores = [part / part.mean().clamp_min(torch.finfo(torch.float32).tiny) for part in parts]
        together = torch.stack(scores).sum(0)[:, columns]
        return (together.abs() if self.score == "log_fisher" else together).sum(1)


def magnitude(model: Model, numbers: Sequence[int]) -> Importance:
    """By the backbone's weights alone."""
    weights = {name: p.detach().float().abs() for name, p in matrices(model, numbers).items()}
    words = _columns_from(model)
    if isinstance(words, nn.Linear):
        return Importance("magnitude", weights, words.weight.detach().float().abs().sum(1))
    return Importance("magnitude", weights, words.weight.detach().float().abs().sum(0))


def fisher(model: Model, numbers: Sequence[int], examples: int, training: Training, score: Score) -> Importance:
    """By the squared gradients of the loss of so many training rows, one at a time, on the backbone as it is."""
    chosen = matrices(model, numbers)
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in chosen.items()}
    config: Any = model.module.config
    columns = torch.zeros(int(config.hidden_size), device=next(iter(sums.values())).device)
    with _asked(model, chosen) as of_columns:
        for _ in training.passes(examples, 1):
            for name, parameter in chosen.items():
                if parameter.grad is not None:  # another process has this row
                    sums[name].addcmul_(parameter.grad.float(), parameter.grad.float())
            columns += of_columns()
    return Importance(score, {name: training.total(part) for name, part in sums.items()}, training.total(columns))


@contextmanager
def _asked(model: Model, chosen: Mapping[str, nn.Parameter]) -> Iterator[Callable[[], torch.Tensor | float]]:
    """Let a backward pass make the gradients of matrices; yields what gives the columns' squared ones after it.

    Of the embeddings' weight only the rows of the tokens have a gradient, and these are made from the output's.
    """
    words, seen = _columns_from(model), list[tuple[torch.Tensor, torch.Tensor]]()

    def embedded(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_(True)
        seen[:] = [(inputs[0], leaf)]
        return leaf

    def squares() -> torch.Tensor | float:
        if not seen:
            return 0.0
        (ids, leaf), seen[:] = seen[0], []
        assert leaf.grad is not None
        by_token = leaf.grad.float().flatten(0, 1)
        kinds, places = ids.flatten().unique(return_inverse=True)
        rows = by_token.new_zeros(len(kinds), by_token.shape[1]).index_add_(0, places, by_token)
        return rows.square().sum(0)

    def squares_of_rows() -> torch.Tensor | float:
        gradient = words.weight.grad
        return 0.0 if gradient is None else gradient.float().square().sum(1)

    linear = isinstance(words, nn.Linear)
    hook = None if linear else words.register_forward_hook(embedded)
    asked = [*chosen.values(), *([words.weight] if linear else [])]
    for parameter in asked:
        parameter.requires_grad_(True)
    try:
        yield squares_of_rows if linear else squares
    finally:
        for parameter in asked:
            parameter.requires_grad_(False)
        if hook is not None:
            hook.remove()


def _columns_from(model: Model) -> Any:
    """What makes the columns of the hidden state: the embeddings of words, or the map that widens them."""
    module: Any = model.module
    words = module.get_input_embeddings()
    if words.weight.shape[1] == module.config.hidden_size:
        return words
    inside = (module for embeddings in model.embeddings() for module in embeddings.modules())
    return next(module for module in inside if isinstance(module, nn.Linear))


def matrices(model: Model, numbers: Sequence[int]) -> dict[str, nn.Parameter]:
    """The weights of all linear maps of some layers, by name."""
    starts = tuple(f"{model.layout.layers}.{number}." for number in numbers)
    return {name: p for name, p in model.module.named_parameters() if name.startswith(starts) and p.ndim == 2}


def check_known(model: Model) -> None:
    """See that the rows of every matrix can be told apart.

    Raises:
        ConfigError: query, key and value are fused, in an order that is not known here, or matrices are low-rank.
    """
    if model.ranks:
        raise ConfigError(f"method.init: maps of {model.name}'s weights are low-rank, without rows; init=random works")
    fused = model.layout.kinds["query"] == model.layout.kinds["value"]
    if fused and model.layout.fused != "stacked":
        raise ConfigError(f"method.init: {model.name} fuses query, key and value in its own way; init=random works")


@torch.no_grad()
def prune(model: Model, narrow: Narrow, numbers: Sequence[int], importance: Importance, heads: Heads) -> None:
    """Copy to the narrow layers the rows and columns of the backbone's that matter most, unscaled, in their order.

    A chain, as in the released code: the columns that matter in the embeddings are what the first layer reads, the rows
    that its last matrix keeps are what the next one reads. Query, key and value keep the same rows.

    Args:
        numbers: of which layers of the backbone the narrow ones are made; those between are passed over.
        heads: within: as many rows of every head; across: the best rows of all of them together.
    """
    config: Any = model.module.config
    groups = int(config.num_attention_heads) if heads == "within" else 1
    first = read = best(importance.columns, narrow.width)
    for number, layer in zip(numbers, narrow.layers, strict=True):
        wide = _Wide(model, number, importance)
        attended = best(wide.scores(ATTENTION, read), narrow.width, groups)
        mixed = best(wide.scores(("attention_output",), attended), narrow.width)
        inner = best(wide.scores(("intermediate",), mixed), narrow.inner)
        left = best(wide.scores(("output",), inner), narrow.width)
        rows = dict.fromkeys(ATTENTION, attended)
        rows |= {"attention_output": mixed, "intermediate": inner, "output": left}
        columns = dict.fromkeys(ATTENTION, read)
        columns |= {"attention_output": attended, "intermediate": mixed, "output": inner}
        norms = (read, mixed) if _norms_come_first(model) else (mixed, left)
        for name, parameter in layer.named_parameters():
            wide.copy(name, parameter, rows, columns, norms)
        read = left
    _copy_outside(model, narrow, first, read)


class _Wide:
    """A layer of the backbone."""

    def __init__(self, model: Model, number: int, importance: Importance) -> None:
        self._model, self._importance = model, importance
        self._name = f"{model.layout.layers}.{number}"
        self._layer = model.module.get_submodule(self._name)

    def _path(self, kind: str) -> str:
        return self._model.layout.kinds[kind][0]  # type: ignore[index]

    def _size(self, kind: str) -> int:
        """How many rows a matrix of the kind has, were it not fused: what the matrix behind it reads."""
        after = {"intermediate": "output", **dict.fromkeys(ATTENTION, "attention_output")}.get(kind)
        weight = self._layer.get_parameter(f"{self._path(after or kind)}.weight")
        return int(weight.shape[1] if after else weight.shape[0])

    def scores(self, kinds: Sequence[str], columns: torch.Tensor) -> torch.Tensor:
        """The score of every row that matrices of some kinds have in common."""
        names = dict.fromkeys(f"{self._name}.{self._path(kind)}.weight" for kind in kinds)
        size = self._size(kinds[0])
        parts = [part for name in names for part in self._importance.weights[name].split(size)]
        return self._importance.rows(parts, columns)

    def copy(
        self,
        name: str,
        target: nn.Parameter,
        rows: Mapping[str, torch.Tensor],
        columns: Mapping[str, torch.Tensor],
        norms: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Fill a parameter of the narrow layer with some of the rows and columns of the backbone's."""
        source = self._layer.get_parameter(name)
        kinds = self._model.place(f"{self._name}.{name}").kinds
        if "layer_norm" in kinds:
            paths = [path for path in self._model.layout.kinds["layer_norm"] if self._has(path)]
            target.copy_(source[norms[int(not name.startswith(paths[0] + ".") and len(paths) > 1)]])
            return
        kind = sorted(kinds)[0]
        size = self._size(kind)
        chosen = torch.cat([rows[kind] + start for start in range(0, len(source), size)])
        target.copy_(source[chosen] if source.ndim == 1 else source[chosen][:, columns[kind]])

    def _has(self, path: str) -> bool:
        return any(name == path for name, _ in self._layer.named_modules())


def _norms_come_first(model: Model) -> bool:
    """Whether sub-layers read what is normed: the last layer's output then has a norm of its own, beside the layers."""
    first = model.module.get_submodule(f"{model.layout.layers}.0")
    inside = {name for name, _ in first.named_modules()}
    return any(path not in inside for path in model.layout.kinds["layer_norm"])


def _copy_outside(model: Model, narrow: Narrow, first: torch.Tensor, last: torch.Tensor) -> None:
    """Tables of positions and norms beside the layers: the columns that the first layer reads, or the last gives."""
    prefix = f"{model.module.base_model_prefix}."
    wide = dict(model.module.named_parameters())
    for name, target in narrow.encoder.named_parameters():
        source = wide.get(prefix + name)
        fixed = not target.requires_grad  # a table that is a formula of its width
        if source is None or fixed or (prefix + name).startswith(model.layout.layers + "."):
            continue
        columns = last if "layer_norm" in model.place(prefix + name).kinds else first
        target.copy_(source if source.shape == target.shape else source[..., columns])


def best(scores: torch.Tensor, count: int, groups: int = 1) -> torch.Tensor:
    """The numbers of the highest scores (of (n,)), as many of every group, rising; ties go to the first."""
    order = scores.view(groups, -1).argsort(dim=1, descending=True, stable=True)[:, : count // groups]
    starts = torch.arange(groups, device=scores.device) * (len(scores) // groups)
    return (order.sort(dim=1).values + starts.unsqueeze(1)).flatten()
