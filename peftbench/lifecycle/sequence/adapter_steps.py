"""MOS's own equations (Sun et al. 2025, arXiv 2412.09441), as its code has them: merging adapters, orthogonal classes,
self-refined retrieval, and the answer of two classifiers."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

Adapters = Mapping[str, torch.Tensor]  # parameters by name


def mean_of(adapters: Sequence[Adapters]) -> dict[str, torch.Tensor]:
    """The mean of several adapters, entry by entry."""
    return {name: torch.stack([one[name].detach() for one in adapters]).mean(0) for name in adapters[0]}


@torch.no_grad()
def pull(adapters: Adapters, towards: Adapters, share: float) -> None:
    """A := (1 - m) A + m M, in place: progressive merging, after each optimizer step.

    Args:
        towards: M, the mean of all earlier tasks' adapters.
        share: m.
    """
    for name, parameter in adapters.items():
        parameter.mul_(1 - share).add_(towards[name], alpha=share)


def orthogonality(means: torch.Tensor, features: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of softmax(M M' / t) with the diagonal, M = [means; features]: a scalar, smaller the less rows of M
    point along each other.

    Args:
        means: of the classes seen (classes, d), none at first; features: of a batch (rows, d).
    """
    every = torch.cat([means, features])
    return functional.cross_entropy(every @ every.T / temperature, torch.arange(len(every), device=every.device))


def refined(first: np.ndarray, logits: np.ndarray, stage_of: np.ndarray, rounds: int) -> np.ndarray:
    """Self-refined retrieval: the stage whose adapters each row goes through (rows,).

    A row is classified with the adapters of the stage at hand, and goes on to the stage of its answer, until that is
    the same or the rounds are over.

    Args:
        first: the stage to begin with (rows,).
        logits: with the adapters of every stage (stages, rows, classes).
        stage_of: the stage in which each class was learned (classes,).
        rounds: moves to another stage at most.
    """
    at = first.copy()
    every = np.arange(len(at))
    for _ in range(rounds):
        answered = stage_of[logits[at, every].argmax(1)]
        if (answered == at).all():
            break
        at = answered  # of a row that has settled it is the same
    return at


def ensemble(logits: torch.Tensor, cosines: torch.Tensor, stages: int) -> torch.Tensor:
    """softmax(W phi(x; A_k)) + softmax(b o), (rows, classes), -inf for classes that were not seen.

    Args:
        logits: of the head with the retrieved adapters; cosines: o, to the prototypes; both -inf for unseen classes.
        stages: b, how many tasks have come.
    """
    both = functional.softmax(logits, 1) + functional.softmax(stages * cosines, 1)
    return both.masked_fill(logits.isneginf(), -torch.inf)
