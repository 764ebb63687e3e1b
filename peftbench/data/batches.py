"""Which rows go together, in which order, and how they become tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from peftbench.data.tokens import Tokens
from peftbench.ground.seeds import stream

STEP = 8  # widths are multiples of it: fewer sizes of tensors, so that freed ones fit again (a fifth of the memory)
POOL = 50  # batches whose rows are sorted by length together: enough to be even, few enough to stay random


@dataclass(frozen=True)
class Batch:
    """Some rows of a split as tensors.

    Attributes:
        split: the split; rows: their numbers in it (rows,).
        inputs: what the model takes: input_ids, attention_mask (rows, width), perhaps token_type_ids.
        labels: class ids (rows,) int64 or scores (rows,) fp32; None where the split has none.
    """

    split: Tokens
    rows: np.ndarray
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None

    @property
    def task(self) -> torch.Tensor | None:
        """The number of the one task that these rows are of, on the CPU; None where there is one task."""
        return None if self.split.mix is None else torch.as_tensor(self.split.mix.tasks[self.rows]).unique()

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()}
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return Batch(self.split, self.rows, inputs, labels)


def epoch_order(lengths: np.ndarray, batch_size: int, bucketing: bool, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of every batch of one epoch; each row appears once, the last batch may be smaller.

    With bucketing, rows are shuffled, cut into pools of 50 batches, sorted by length within a pool (ties stay
    shuffled), cut into batches, and the batches shuffled: padding shrinks, randomness stays.
    """
    random = np.random.default_rng([stream(seed, "order"), epoch])
    order = random.permutation(len(lengths))
    if not bucketing:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches = []
    for i in range(0, len(order), POOL * batch_size):
        pool = order[i : i + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def evaluation_order(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Batches of rows sorted by length, longest first (so that the first batch shows the memory peak)."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def collate(tokens: Tokens, rows: np.ndarray, type_ids: bool) -> Batch:
    """The rows as a batch.

    Rows are padded to the longest of them, rounded up to a multiple of 8.
    `type_ids` adds token_type_ids (rows, width), for backbones that tell segments apart.
    """
    lengths = tokens.lengths[rows]
    width = -(-int(lengths.max()) // STEP) * STEP
    ids = np.full((len(rows), width), tokens.pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : lengths[i]] = tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]
    place = np.arange(width)[None, :]
    inside = place < lengths[:, None]
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(inside.astype(np.int64))}
    if type_ids:
        second = inside & (place >= tokens.first[rows][:, None])
        inputs["token_type_ids"] = torch.from_numpy(second.astype(np.int64))
    labels = None if tokens.labels is None else torch.from_numpy(tokens.labels[rows])
    return Batch(tokens, rows, inputs, labels)


def cut(rows: np.ndarray, parts: int) -> Iterator[np.ndarray]:
    """Cut a batch into at most so many parts of like size; none is empty."""
    return (part for part in np.array_split(rows, parts) if len(part))
