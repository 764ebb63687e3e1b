"""Floating-point operations, counted by torch from the shapes of the products that are made.

Counted are products of matrices and attention, a multiplication and an addition as two operations; not what is done
element by element (norms, dropout, the optimizer, gradients that are sampled at chosen entries).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from peftbench.data.batches import Batch
from peftbench.data.tokens import Tokens
from peftbench.training.forward import Forward

ENOUGH = 3  # widths, to know a quadratic


@dataclass(frozen=True)
class Kind:
    """What decides the cost of a pass beside its width: number of the task, rows, and how many parameters ask for a
    gradient."""

    task: int = 0
    rows: int = 0
    asking: int = 0


@dataclass
class Passes:
    """What the passes of a training cost, of which only a few are counted, while they are made.

    A pass of one kind costs a quadratic in its width: linear maps cost as much as there are tokens, attention as much
    as there are pairs of them. So three widths tell the cost of all others, until the model itself changes.

    Attributes:
        before: all passes before the last change.
        known: kind -> width -> cost, since then; times: how many passes there were.
    """

    before: int = 0
    known: dict[Kind, dict[int, int]] = field(default_factory=dict)
    times: dict[Kind, dict[int, int]] = field(default_factory=dict)

    def make(self, kind: Kind, width: int, work: Callable[[], bool]) -> bool:
        """Make a pass; gives what it gives."""
        known, times = self.known.setdefault(kind, {}), self.times.setdefault(kind, {})
        times[width] = times.get(width, 0) + 1
        if width in known or len(known) == ENOUGH:
            return work()
        given: list[bool] = []
        known[width] = counted(lambda: given.append(work()))
        return given[0]

    def change(self) -> None:
        """The model is another from now on."""
        self.before, self.known, self.times = self.total, {}, {}

    @property
    def total(self) -> int:
        """All passes so far."""
        return self.before + sum(
            number * _through(self.known[kind], width)
            for kind, times in self.times.items()
            for width, number in times.items()
        )

    def state_dict(self) -> dict[str, Any]:
        """All of it, as nested plain data."""
        return {
            "before": self.before,
            "kinds": [[*astuple(kind), costs, self.times[kind]] for kind, costs in self.known.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self.before, self.known, self.times = state["before"], {}, {}
        for *key, costs, times in state["kinds"]:
            self.known[Kind(*key)], self.times[Kind(*key)] = dict(costs), dict(times)


def kind_of(batch: Batch, trained: Iterable[nn.Parameter]) -> Kind:
    """Of a pass over these rows, where these parameters train: some may be frozen for now."""
    asking = sum(parameter.requires_grad for parameter in trained)
    return Kind(0 if (task := batch.task) is None else int(task), len(batch.rows), asking)


def counted(work: Callable[[], object]) -> int:
    """What is spent while this is done, by torch's own formulas."""
    with _Counter() as counter:
        work()
    return counter.total


class _Counter(TorchDispatchMode):
    """torch's FlopCounterMode without its share of each module, which takes most of its time."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def of_row(forward: Forward, tokens: Tokens, width: int) -> int:
    """One row of so many tokens, forward through all layers, nothing dropped.

    Args:
        forward: the model as it runs.
        tokens: some split of its task.
        width: tokens of the row; which they are has no part in it.
    """
    module = forward.model.module
    training = module.training
    first = forward.batch(tokens, np.zeros(1, dtype=np.int64))
    ones = first.inputs["input_ids"].new_ones(1, width)
    batch = replace(first, inputs={"input_ids": torch.zeros_like(ones), "attention_mask": ones})
    module.eval()
    with torch.no_grad(), forward.from_tokens():
        spent = counted(lambda: forward.logits(batch))
    module.train(training)
    return spent


def _through(points: Mapping[int, int], x: int) -> int:
    """The polynomial through these points (Lagrange)."""
    terms = (y * prod(Fraction(x - other, at - other) for other in points if other != at) for at, y in points.items())
    return round(sum(terms, Fraction(0)))


aten = torch.ops.aten
FORMULAS: dict[
    Any, Callable[..., int]
] = {  # torch has none for the kernels of a CPU, whose arguments are those of a GPU
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
