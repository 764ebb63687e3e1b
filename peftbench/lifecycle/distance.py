"""How far backbones and changes of them lie apart: lengths and cosines, over all weights and by kind of module."""

from collections.abc import Callable, Mapping

import torch

from peftbench.backbone.model import Model

Weights = Mapping[str, torch.Tensor]


def minus(after: Weights, before: Weights) -> dict[str, torch.Tensor]:
    """Every weight's change, of its shape."""
    return {name: after[name] - before[name] for name in before}


def length(weights: Weights) -> float:
    """The Frobenius norm of all weights together."""
    return float(torch.stack([one.double().norm() for one in weights.values()]).norm())


def cosine(one: Weights, other: Weights) -> float:
    """Of all weights together; 0 where one of them is zero."""
    product = sum(float((tensor.double() * other[name].double()).sum()) for name, tensor in one.items())
    lengths = length(one) * length(other)
    return product / lengths if lengths else 0.0


def by_kind(
    model: Model, measure: Callable[[Weights, Weights], float], one: Weights, other: Weights
) -> dict[str, float]:
    """What a measure says of every kind of module whose weights both change."""
    names: dict[str, list[str]] = {}
    for name in one:
        names.setdefault("+".join(sorted(model.places[name].kinds)), []).append(name)
    parts = {kind: [{name: each[name] for name in inside} for each in (one, other)] for kind, inside in names.items()}
    return {kind: measure(*pair) for kind, pair in parts.items() if all(length(part) > 0 for part in pair)}


def ratio(one: Weights, other: Weights) -> float:
    """The length of one in lengths of the other; 0 where that is zero."""
    return length(one) / size if (size := length(other)) else 0.0
