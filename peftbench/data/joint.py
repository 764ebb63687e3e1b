"""Rows of several tasks that are learned together: in one split, in batches of one task each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from peftbench.config.spec import Task
from peftbench.config.tasks import JointTask
from peftbench.data.batches import epoch_order
from peftbench.data.shots import shares
from peftbench.data.tokens import Mix, Tokens
from peftbench.ground.seeds import stream


def joined(tokens: Mapping[str, Tokens], task: Task) -> Mapping[str, Tokens]:
    """The training rows of all tasks as one split "train", and the other splits as they are, with their task.

    Args:
        tokens: splits of every task; of a single task they stay what they are.
    """
    if not isinstance(task, JointTask):
        return tokens
    numbers = {one.name: number for number, one in enumerate(task.tasks)}
    own = {
        name: replace(split, mix=Mix(np.full(len(split), numbers[task.task_of(name).name])))
        for name, split in tokens.items()
    }
    if not (parts := [own.pop(name) for name in task.trained if name in own]):
        return own
    return {"train": _one_after_another(parts, task.temperature), **own}


def _one_after_another(parts: Sequence[Tokens], temperature: float) -> Tokens:
    """Rows of several splits; where one has scores for labels, the class ids of others are numbers like these."""
    before = np.cumsum([0, *(part.starts[-1] for part in parts)])
    ends = [start + part.starts[1:] for start, part in zip(before, parts, strict=False)]
    return replace(
        parts[0],
        name="train",
        ids=np.concatenate([part.ids for part in parts]),
        starts=np.concatenate([np.zeros(1, dtype=np.int64), *ends]),
        first=np.concatenate([part.first for part in parts]),
        labels=np.concatenate([_labels(part, parts) for part in parts]),
        mix=Mix(np.concatenate([part.mix.tasks for part in parts if part.mix]), temperature),
    )


def _labels(part: Tokens, parts: Sequence[Tokens]) -> np.ndarray:
    assert part.labels is not None
    scores = any(other.labels is not None and other.labels.dtype == np.float32 for other in parts)
    return part.labels.astype(np.float32) if scores else part.labels


def order_of(tokens: Tokens, batch_size: int, bucketing: bool, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of every batch of one epoch: `epoch_order`, or of several tasks the batches of each, shuffled.

    With b batches in a task's own epoch and temperature T an epoch has about b^(1/T) of them, in proportion, one at
    least, as many in all as the tasks' own epochs have together (T5, Raffel et al. 2020, arXiv 1910.10683, section
    3.5.2; without its limit). At T = 1 they are the very batches that each task's own run has, every row once. At
    others a task goes on, in the next epoch, where it left off in its own.
    """
    if tokens.mix is None:
        return epoch_order(tokens.lengths, batch_size, bucketing, seed, epoch)
    rows_of = [np.flatnonzero(tokens.mix.tasks == number) for number in np.unique(tokens.mix.tasks)]
    sizes = [-(-len(rows) // batch_size) for rows in rows_of]
    counts = shares(sum(sizes), [size ** (1 / tokens.mix.temperature) for size in sizes])
    batches = []
    for rows, size, count in zip(rows_of, sizes, counts, strict=True):
        wanted = range(epoch * count, (epoch + 1) * count)  # of the endless row of its own epochs' batches
        for own in range(wanted[0] // size, wanted[-1] // size + 1):
            order = epoch_order(tokens.lengths[rows], batch_size, bucketing, seed, own)
            batches += [rows[one] for i, one in enumerate(order, own * size) if i in wanted]
    random = np.random.default_rng([stream(seed, "order"), epoch, len(sizes)])
    return [batches[i] for i in random.permutation(len(batches))]
