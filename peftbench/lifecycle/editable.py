"""The run whose behaviour is edited: its probe, the rows that are moved and how far; rows that choose do not score."""

import functools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from peftbench.config.bounds import Count, Name, NotNegative, Number, Positive
from peftbench.data.rows import Rows
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError
from peftbench.ground.seeds import stream
from peftbench.lifecycle import surgery
from peftbench.lifecycle.behaviour import Behaviour, behaviour_of, check_prone, rate
from peftbench.lifecycle.folded_run import FoldedRun, Incision
from peftbench.lifecycle.surgery import Fitting, Probe
from peftbench.runner.run import read_rows

Control = Literal["none", "random_direction", "random_rows", "aligned", "sign_flipped", "bias"]


@dataclass(frozen=True)
class Edit:
    """What is edited, and how. Units and sources stand in conf/edit/surgery.yaml."""

    behaviour: Name | None
    control: Control
    rows: Annotated[float, Field(ge=0, le=1)]
    strength: Number | Literal["held_out"]
    grid: Annotated[tuple[Number, ...], Field(min_length=1, max_length=100)]
    loss: NotNegative
    choice_rows: Count
    probe_at: Literal["last", "each"]
    probe_rows: Count
    probe_lr: Positive
    probe_epochs: Count
    probe_batch: Count

    @property
    def word(self) -> str:
        """The behaviour, where one is given."""
        assert self.behaviour is not None
        return self.behaviour

    @property
    def method(self) -> "Edit":
        """What a control is compared with."""
        return replace(self, control="none")

    @property
    def probing(self) -> "Edit":
        """The same for all edits of one behaviour by one probe."""
        return replace(self, control="none", rows=0.0, strength=0.0)


@dataclass(frozen=True)
class Probed:
    """A probe, and the share of the choice rows that it tells rightly at every place."""

    probe: Probe
    accuracy: list[float]


@dataclass(frozen=True)
class Choice:
    """The choice rows under an edit.

    Attributes:
        rate: the share that shows the behaviour, of those that can.
        headline: the task's plain headline metric.
        logits: (rows, labels).
    """

    rate: float
    headline: float
    logits: np.ndarray


class EditableRun(FoldedRun):
    """A run and its edits; what several of them share is computed once."""

    @functools.cached_property
    def _rows(self) -> Mapping[str, Split]:
        task = replace(self.task, test=())
        return read_rows(Rows(self.run.data, task, self.run.protocol.held_out, tested=False))

    def probe_rows(self, edit: Edit) -> Split:
        """The rows of train that the probe is fitted on."""
        return self._rows["train"].some(edit.probe_rows)

    def choice_rows(self, edit: Edit) -> Split:
        """The held-out rows of train, on which strength and bias are chosen."""
        return self._rows["held_out"].some(edit.choice_rows)

    def behaviour(self, edit: Edit) -> Behaviour:
        """What the edit is to make rarer.

        Raises:
            ConfigError: the task cannot have it, the probe's rows do not tell it, or no choice row can show it.
            DataError: rows cannot be read.
        """
        return self._behaviour(edit.probing)

    @functools.lru_cache  # noqa: B019  # a run lives as long as its command
    def _behaviour(self, edit: Edit) -> Behaviour:
        made = behaviour_of(edit.word, self.task, self.probe_rows(edit))
        check_prone(edit.word, made, self.choice_rows(edit))
        return made

    @functools.cached_property
    def weights(self) -> list[torch.Tensor]:
        """The rows of every layer, (neurons, hidden), as the run left them."""
        return [self.model.own[name][:count] for name, count in self.counts.items()]

    def probed(self, edit: Edit) -> Probed:
        """The edit's probe."""
        return self._probed(edit.probing)

    @functools.lru_cache  # noqa: B019
    def _probed(self, edit: Edit) -> Probed:
        made = self.behaviour(edit)
        fitted_on, held = self.probe_rows(edit), self.choice_rows(edit)
        self.put(None)
        modules = [name.removesuffix(".weight") for name in self.counts] if edit.probe_at == "each" else []
        means = [self.model.token_means(self.model.tokenized(rows), modules) for rows in (fitted_on, held)]
        how = Fitting(edit.probe_lr, edit.probe_epochs, edit.probe_batch)
        probe = surgery.fit_probe(means[0], made.carried(fitted_on), how, self.run.record.cell.seed)
        return Probed(probe, probe.accuracy(means[1], made.carried(held)))

    @functools.lru_cache  # noqa: B019
    def incision(self, edit: Edit) -> Incision:
        """What the edit changes.

        Raises:
            ConfigError: the probe's direction is zero, or the head has no bias to shift.
        """
        if edit.control == "bias":
            none = torch.zeros(0, dtype=torch.int64), torch.zeros(1, self.weights[0].shape[1])
            return Incision(*none, self._bias(edit))
        return self._incision(edit, self.strength(edit))

    def _incision(self, edit: Edit, strength: float) -> Incision:
        directions = self.probed(edit).probe.directions
        draws = torch.Generator().manual_seed(stream(self.run.record.cell.seed, "edit") ^ zlib.crc32(b"control"))
        total = sum(map(len, self.weights))
        count = int(edit.rows * total + 1e-9)  # 0.29 of 100 rows are 29, whatever binary numbers make of it
        if edit.control == "random_direction":
            directions = torch.randn(directions.shape, generator=draws)
        if edit.control == "random_rows":
            rows = torch.sort(torch.randperm(total, generator=draws)[:count]).values
        else:
            cosines = surgery.cosines(self.weights, directions)
            rows = surgery.lowest(-cosines if edit.control == "aligned" else cosines, count)
        sign = -1 if edit.control == "sign_flipped" else 1
        return Incision(rows, surgery.scaled(directions, sign * strength, self.weights))

    def strength(self, edit: Edit) -> float:
        """The strength as it is given, or chosen on the choice rows; a control's is that of the method."""
        if not isinstance(edit.strength, str):
            return edit.strength
        tried = self.tried(edit.method)
        least = tried[0.0].headline - edit.loss
        possible = [strength for strength, seen in tried.items() if seen.headline >= least]
        return min(possible, key=lambda strength: (tried[strength].rate, abs(strength)))

    @functools.lru_cache  # noqa: B019
    def tried(self, method: Edit) -> dict[float, Choice]:
        """The choice rows at every strength of the grid, and unedited."""
        by_strength = {strength: self.on_choice(method, self._incision(method, strength)) for strength in method.grid}
        return {**by_strength, 0.0: self.chosen_without(method)}

    def _bias(self, edit: Edit) -> float:
        """The shift with which as many of the choice rows show the behaviour as under the method's edit."""
        if self.model.last.bias is None:
            raise ConfigError(f"edit.control=bias: the head of model={self.run.model.name} has no bias")
        prone = self.behaviour(edit).prone(self.choice_rows(edit))
        shown = round(self.on_choice(edit.method, self.incision(edit.method)).rate * int(prone.sum()))
        return surgery.shift_to(self.chosen_without(edit).logits[prone], self.behaviour(edit).answer, shown)

    def chosen_without(self, edit: Edit) -> Choice:
        """The choice rows unedited."""
        return self._chosen_without(edit.probing)

    @functools.lru_cache  # noqa: B019
    def _chosen_without(self, edit: Edit) -> Choice:
        return self.on_choice(edit, None)

    def on_choice(self, edit: Edit, incision: Incision | None) -> Choice:
        """The choice rows under an incision."""
        self.operate(edit, incision)
        rows = self.choice_rows(edit)
        tokens = self.model.tokenized(rows)
        logits = self.model.predict(tokens)
        scores = self.model.score({tokens.name: tokens}, {tokens.name: logits})
        headline = scores.metrics[f"{self.task.plain_headline}_{tokens.name}"]
        return Choice(rate(self.behaviour(edit), rows, logits), headline, logits)

    @torch.no_grad()
    def operate(self, edit: Edit, incision: Incision | None) -> None:
        """Put an incision in, the shift of the head's bias included."""
        self.put(incision)
        if incision is not None and incision.bias:
            assert self.model.last.bias is not None
            self.model.last.bias[self.behaviour(edit).answer] += incision.bias

    def forget(self) -> None:
        """See `FoldedRun`; what was found stays."""
        super().forget()
        for name in ("weights", "_rows"):
            self.__dict__.pop(name, None)
