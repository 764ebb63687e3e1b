"""A head for each of several tasks on one backbone; a batch is of one task, and its head alone reads it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from peftbench.backbone.readout import Classifier

TASK = "task"  # the input that says which head reads: the number of the rows' task, once
PREFIX = "task_"  # of the names of one task's modules: whatever a task is called, they are attributes of no module


class OfEachTask(nn.Module):
    """A module of the head, as often as there are tasks; the one that is chosen runs."""

    chosen: int = 0

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._tasks = tuple(parts)
        for task, part in parts.items():
            self.add_module(PREFIX + task, part)

    def part_of(self, task: str) -> nn.Module:
        """The module of a task."""
        return self.get_submodule(PREFIX + task)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the chosen one makes of the inputs."""
        return self.part_of(self._tasks[self.chosen])(*inputs, **named)


@dataclass(frozen=True)
class Heads(Classifier):
    """A classifier or regressor over the whole row for each task, all drawn from the seed.

    A task's head is moved by its own batches alone: in a step of another task it has no gradient, so that an
    optimizer passes over it.

    Attributes:
        outputs: task -> how many outputs its head has, in the order of the tasks' numbers.
        places: dotted names of the modules of a head, the last one's last linear map making the logits.
    """

    outputs: tuple[tuple[str, int], ...] = ()
    places: tuple[str, ...] = ()

    def attach(self, module: nn.Module) -> None:
        """See `Readout`: a copy of the head for each task, of which the last linear map has its outputs."""
        last = [
            name
            for name, part in module.named_modules()
            if isinstance(part, nn.Linear) and any(f"{name}.".startswith(f"{place}.") for place in self.places)
        ][-1]
        for place in self.places:
            whole = module.get_submodule(place)
            inside = last.removeprefix(place).lstrip(".") if f"{last}.".startswith(f"{place}.") else None
            parts = {task: _copy(whole, inside, outputs) for task, outputs in self.outputs}
            module.set_submodule(place, OfEachTask(parts))

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`: (batch, the task's labels); without `TASK` among the inputs those of the first task."""
        others = {name: value for name, value in inputs.items() if name != TASK}
        number = int(inputs[TASK]) if TASK in inputs else 0
        for part in module.modules():
            if isinstance(part, OfEachTask):
                part.chosen = number
        return super().logits(module, others)


def leave_one(module: nn.Module, task: str, outputs: int) -> None:
    """Put a task's head in the place of all: a plain model of that task."""
    for name, part in list(module.named_modules()):
        if isinstance(part, OfEachTask):
            module.set_submodule(name, part.part_of(task))
    whole: Any = module
    whole.config.num_labels = whole.num_labels = outputs


def tasks_in(names: Mapping[str, Any]) -> set[str]:
    """The tasks whose heads are among parameters of these names; none where there is one head alone."""
    return {part.removeprefix(PREFIX) for name in names for part in name.split(".") if part.startswith(PREFIX)}


def _copy(whole: nn.Module, last: str | None, outputs: int) -> nn.Module:
    """A module of a head; where its last linear map lies in it (at this name; "": it is that), with these outputs."""
    made = copy.deepcopy(whole)
    if last is None:
        return made
    linear = made.get_submodule(last)
    assert isinstance(linear, nn.Linear)
    new = nn.Linear(
        linear.in_features, outputs, linear.bias is not None, device=linear.weight.device, dtype=linear.weight.dtype
    )
    if not last:
        return new
    made.set_submodule(last, new)
    return made
