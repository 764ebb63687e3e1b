"""The steps of Model Surgery (Wang et al. 2024, arXiv 2407.08770) on plain tensors, and those of its controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from peftbench.ground.errors import ConfigError
from peftbench.ground.seeds import stream


@dataclass(frozen=True)
class Fitting:
    """How a probe is fitted: Adam's learning rate, passes over the rows, and rows at a time."""

    lr: float
    epochs: int
    batch: int


@dataclass(frozen=True)
class Probe:
    """Linear maps to two classes, without and with a behaviour, one for every place where hidden states were read.

    Attributes:
        weights: (places, 2, hidden) fp32.
        biases: (places, 2) fp32.
    """

    weights: torch.Tensor
    biases: torch.Tensor

    @property
    def directions(self) -> torch.Tensor:
        """v (places, hidden): the row of the class with the behaviour, as trained."""
        return self.weights[:, 1]

    def accuracy(self, features: torch.Tensor, carried: np.ndarray) -> list[float]:
        """At every place, the share of rows that it tells rightly; arguments as of `fit_probe`."""
        answers = _logits(features, self.weights, self.biases).argmax(-1) == 1  # (rows, places)
        return (answers == torch.from_numpy(carried)[:, None]).float().mean(0).tolist()


def fit_probe(features: torch.Tensor, carried: np.ndarray, how: Fitting, seed: int) -> Probe:
    """Fit a probe at every place by cross-entropy with Adam, as the released code does.

    Args:
        features: mean hidden states (rows, places, hidden) fp32.
        carried: whether each row carries the behaviour (rows,).
        seed: of its start and the order of rows.
    """
    draws = torch.Generator().manual_seed(stream(seed, "edit"))
    rows, places, width = features.shape
    weights, biases = (
        (width**-0.5 * (2 * torch.rand(shape, generator=draws) - 1)).requires_grad_(True)  # as nn.Linear starts
        for shape in ((places, 2, width), (places, 2))
    )
    labels = torch.from_numpy(carried.astype(np.int64))
    optimizer = torch.optim.Adam([weights, biases], lr=how.lr)
    for _ in range(how.epochs):
        for batch in torch.randperm(rows, generator=draws).split(how.batch):
            logits = _logits(features[batch], weights, biases)
            # summed over places, so that each has the gradient that it would have alone
            every = functional.cross_entropy(
                logits.flatten(0, 1), labels[batch].repeat_interleave(places), reduction="sum"
            )
            optimizer.zero_grad()
            (every / len(batch)).backward()
            optimizer.step()
    return Probe(weights.detach(), biases.detach())


def _logits(features: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    return torch.einsum("rph,pch->rpc", features, weights) + biases


def cosines(weights: Sequence[torch.Tensor], directions: torch.Tensor) -> torch.Tensor:
    """cos(g, v) (all rows,) fp64 of every row with its layer's direction; 0 for a row of zeros.

    Args:
        weights: of every layer, (rows, hidden).
        directions: v (1, hidden) of all layers, or (layers, hidden).

    Raises:
        ConfigError: a direction is zero, against which nothing lies.
    """
    units = _units(directions)
    return torch.cat([_units_or_zero(weight) @ units[i if len(units) > 1 else 0] for i, weight in enumerate(weights)])


def lowest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers (count,), rising, of the lowest values; of equal ones those that come first, by layer and row."""
    return torch.sort(torch.argsort(values, stable=True)[:count]).values


def scaled(directions: torch.Tensor, strength: float, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """alpha v (places, hidden) fp32, of the length `strength` times the mean length of all rows.

    alpha alone means nothing: the length of v depends on how long a probe was trained.

    Raises:
        ConfigError: a direction is zero.
    """
    return (strength * mean_length(weights) * _units(directions)).float()


def mean_length(weights: Sequence[torch.Tensor]) -> float:
    """The mean length of all rows."""
    return float(torch.cat([weight.double().norm(dim=1) for weight in weights]).mean())


def _units(directions: torch.Tensor) -> torch.Tensor:
    if (directions.norm(dim=1) == 0).any():
        raise ConfigError("edit: the probe's direction is zero, along which nothing can be moved")
    return _units_or_zero(directions)


def _units_or_zero(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.double()
    norms = rows.norm(dim=1, keepdim=True)
    return rows / norms.where(norms > 0, torch.ones(()).double())


def shift_to(logits: np.ndarray, answer: int, shown: int) -> float:
    """The shift of a class's logit, nearest to none, with which so many rows are given that class.

    Where rows would change together, it is the shift that comes nearest to the number.

    Args:
        logits: (rows, labels).
        answer: the class.
        shown: how many rows are to be given it.
    """
    others = np.delete(logits.astype(np.float64), answer, axis=1).max(axis=1)
    needed = np.sort(others - logits[:, answer])  # a row shows the class from such a shift on
    ends = np.concatenate([[-np.inf], needed, [np.inf]])
    counts = np.flatnonzero(ends[1:] > ends[:-1])  # numbers of rows that some shift gives
    count = counts[np.abs(counts - shown).argmin()]
    low, high = ends[count], ends[count + 1]
    if low < 0 < high:
        return 0.0
    if np.isfinite(low) and np.isfinite(high):
        return float((low + high) / 2)
    return float(low + 1) if np.isfinite(low) else float(high - 1)  # logits, beyond the last row
