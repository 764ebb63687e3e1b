"""Selections that are made once: random, by magnitude, or by gradients over some batches."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from peftbench.sparse.scores import Best
from peftbench.sparse.store import SparseStore, quotas

Passes = Callable[[int], Iterator[None]]
Ranking = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GROUPS = 4  # gradients are summed for a quarter of the candidates at a time, so that memory stays a quarter


def random_ids(store: SparseStore, per_tensor: bool, structured: bool) -> torch.Tensor:
    """Ids of `store.budget` random entries, none twice, rising.

    Args:
        store: the candidates.
        per_tensor: the same density in every tensor, exactly; otherwise every entry is equally likely anywhere.
        structured: whole columns (input features) of matrices; the last one may be cut to meet the budget.

    Random numbers come from torch's global generator.
    """
    random = np.random.default_rng(int(torch.randint(2**62, ())))
    sizes = [tensor.numel() for tensor in store.tensors]
    if per_tensor:
        shares = quotas(sizes, store.budget)
    else:
        shares = random.multivariate_hypergeometric(sizes, store.budget, method="marginals").tolist()
    chosen = []
    for tensor, offset, share in zip(store.tensors, store.offsets, shares, strict=False):
        inside = _columns(random, tensor.shape, share) if structured and tensor.dim() == 2 else None
        if inside is None:
            inside = random.choice(tensor.numel(), share, replace=False, shuffle=False)
        chosen.append(np.sort(inside) + offset)
    return torch.from_numpy(np.concatenate(chosen)).int()


def _columns(random: np.random.Generator, shape: Sequence[int], share: int) -> np.ndarray:
    rows, width = shape
    columns = random.permutation(width)[: -(-share // rows)]
    inside = (np.arange(rows)[None, :] * width + columns[:, None]).reshape(-1)
    return inside[:share]


def weight_ids(store: SparseStore, rank: Ranking, threshold: float | None = None) -> torch.Tensor:
    """Ids of the entries that rank highest by their weights, over all candidates; equal ones by rising id; ids rise.

    Args:
        rank: from a zero and a tensor to scores of the same shape.
        threshold: see `Best`.

    Raises:
        ConfigError: no score exceeds the threshold.
    """
    best = Best(store.budget, threshold)
    for tensor, offset in zip(store.tensors, store.offsets, strict=False):
        best.offer(rank(tensor.new_zeros(()), tensor).view(-1), offset)
    return _rising(best)


def gradient_ids(
    store: SparseStore,
    passes: Passes,
    batches: int,
    gather: Callable[[torch.Tensor], torch.Tensor],
    squared: bool,
    rank: Ranking,
    threshold: float | None = None,
) -> torch.Tensor:
    """Ids of the entries that rank highest by their mean gradients, or mean squares of them; ids rise.

    Args:
        store: the candidates.
        passes: runs so many batches forward and backward and yields after each.
        batches: how many.
        gather: sums a gradient over processes.
        squared: take squares, as the diagonal Fisher does.
        rank: from the mean of a tensor and the tensor to scores of the same shape.
        threshold: see `Best`.

    Raises:
        ConfigError: no score exceeds the threshold.
    """
    best = Best(store.budget, threshold)
    for group in _groups(store):
        sums = {i: torch.zeros_like(store.tensors[i], dtype=torch.float32) for i in group}
        for i in group:
            store.tensors[i].requires_grad_(True)
        for _ in passes(batches):
            for i in group:
                if (gradient := store.tensors[i].grad) is not None:
                    gathered = gather(gradient).float()
                    sums[i] += gathered.square() if squared else gathered
                    store.tensors[i].grad = None
        for i in group:
            store.tensors[i].requires_grad_(False)
            best.offer(rank(sums.pop(i).div_(batches), store.tensors[i]).view(-1), store.offsets[i])
    return _rising(best)


def _rising(best: Best) -> torch.Tensor:
    best.cut()
    assert best.ids is not None
    return best.ids.sort().values.int()


def _groups(store: SparseStore) -> Iterator[list[int]]:
    group: list[int] = []
    for i in range(len(store.tensors)):
        group.append(i)
        if store.offsets[i + 1] - store.offsets[group[0]] >= store.total / GROUPS:
            yield group
            group = []
    if group:
        yield group
