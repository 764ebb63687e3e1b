"""A finished run whose change is folded into its backbone, and into which edits of that backbone are put."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from peftbench.config.spec import TaskSpec
from peftbench.data.split import Split
from peftbench.lifecycle.artefact import Result
from peftbench.lifecycle.parents import Parent
from peftbench.lifecycle.port import scored
from peftbench.lifecycle.task_model import FoldedModel
from peftbench.methods.surgery import move, neurons
from peftbench.record import Counts


@dataclass(frozen=True)
class Incision:
    """What an edit changes.

    Attributes:
        rows: numbers (N,) int64, rising, of rows counted through all layers.
        shifts: alpha v (1 or layers, hidden) fp32, which is added to each of them.
        bias: what is added to the head's bias of the behaviour's answer.
    """

    rows: torch.Tensor
    shifts: torch.Tensor
    bias: float = 0.0

    @property
    def entries(self) -> int:
        """How many entries of the backbone it moves."""
        return len(self.rows) * self.shifts.shape[1]


class FoldedRun:
    """The run's model, loaded when it is needed, as it was or with an edit in."""

    def __init__(self, run: Parent, cache: str, known: Collection[str] = ()) -> None:
        """Args:
        run: of one task.
        cache: the folder of tokenised rows.
        known: classes outside this package that its delta may name.
        """
        self.run, self._cache, self._known = run, cache, known
        self._unedited: Result | None = None

    @property
    def task(self) -> TaskSpec:
        """The task that it learned."""
        return self.run.one_task()

    @functools.cached_property
    def model(self) -> FoldedModel:
        """Raises:
        ConfigError: its method is no change of weights (adapters), or its backbone is low-rank.
        DataError: the run cannot be read.
        """
        return FoldedModel(self.run, self._cache, self._known)

    @functools.cached_property
    def counts(self) -> dict[str, int]:
        """What the neurons of every layer read: a weight's name -> how many of its rows."""
        return neurons(self.model.model)

    def put(self, incision: Incision | None) -> None:
        """Put an edit of the backbone in (None: none) and take the last one out; the head is the run's own."""
        weights: dict[str, torch.Tensor] = {}
        if incision is not None:
            weights = {name: self.model.own[name].clone() for name in self.counts}
            move(weights, self.counts, incision.rows, incision.shifts)
        self.model.put(weights)

    def scored(self, rows: Mapping[str, Split], counts: Counts, facts: Mapping[str, Any]) -> Result:
        """Predictions and scores on rows, with what is in."""
        return scored(self.model, "kept", 0, rows, counts, facts)

    def unedited(self, rows: Mapping[str, Split]) -> Result:
        """The same as the run left it; computed once, always on the same rows."""
        if self._unedited is None:
            self.put(None)
            self._unedited = self.scored(rows, self.counted(0), {})
        return self._unedited

    def counted(self, backbone: int, head: int = 0, stored_bytes: int | None = None) -> Counts:
        """So many entries that an edit changes."""
        own = self.run.record.counts
        return Counts(backbone, head, backbone + head, 0 if own is None else own.model, stored_bytes, backbone)

    def forget(self) -> None:
        """Let go of the model: a study has many runs."""
        for name in ("model", "counts"):
            self.__dict__.pop(name, None)
        self._unedited = None
