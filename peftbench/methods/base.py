"""The two Protocols of a method, and what most methods share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError, DataError


@dataclass(frozen=True)
class Training:
    """What a method is told before training begins.

    Attributes:
        steps: optimizer steps at most.
        passes: passes(n) runs n batches forward and backward, without dropout, and yields after each: whatever
            requires a gradient has it then. passes(n, size): batches of so many rows, not of the protocol's. Of several
            processes each has the gradient of its own rows.
        total: sums a tensor over the processes that train together.
    """

    steps: int
    passes: Callable[..., Iterator[None]]
    total: Callable[[torch.Tensor], torch.Tensor]


class Tuner(Protocol):
    """A method attached to one model."""

    def trainables(self) -> Mapping[str, nn.Parameter]:
        """What the optimizer steps, by name; the head is not among them (every method trains it)."""
        ...

    def touched(self) -> Iterable[str]:
        """Names of what this method may change in the backbone, sooner or later: its own parameters by their place."""
        ...

    def optimizer(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """The optimizer of trainables and head: AdamW, or what takes its place for this method."""
        ...

    def reads(self) -> Iterable[str]:
        """Names of modules whose output this method looks at: where hidden states are kept, theirs are kept, too."""
        ...

    def decays(self, name: str) -> bool:
        """Whether weight decay may touch a trainable of this name."""
        ...

    def check_steps(self, steps: int) -> None:
        """Whether the method can train for so many optimizer steps; asked before weights are loaded.

        Raises:
            ConfigError: it cannot.
        """
        ...

    def prepare(self, training: Training) -> None:
        """Training is about to begin."""
        ...

    def penalty(self) -> torch.Tensor | None:
        """A scalar that is added to the loss once per optimizer step, whatever the batch; it is logged by itself."""
        ...

    def before_backward(self, step: int, last: bool) -> None:
        """A part of step `step` (from 0) is about to go backward; `last`: its gradients complete the step's."""
        ...

    def after_backward(self, step: int) -> None:
        """Gradients of the step are there, summed over processes, not yet clipped."""
        ...

    def after_step(self, step: int) -> bool:
        """The optimizer has stepped. True: other parameters are trainable now; those that stay keep their moments."""
        ...

    def settles(self) -> int:
        """Optimizer steps before which an evaluation is of a model that will not stay: it is never selected.

        Asked when training has begun.
        """
        ...

    def delta(self) -> Mapping[str, torch.Tensor]:
        """What was learned, by name, enough for `load_delta` on a freshly attached tuner."""
        ...

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put a delta in.

        Raises:
            DataError: names or shapes are not this tuner's.
        """
        ...

    def untrained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What a delta of the same entries would hold had nothing been learned; asked of a freshly attached tuner.

        A delta is carried to another backbone as its difference to this: values of the backbone's own weights become
        changes of them, and factors that start alike everywhere stay what they are.

        Args:
            tensors: a delta of such a tuner.

        Raises:
            DataError: it is none of this tuner.
        """
        ...

    def merge(self) -> str | None:
        """Fold what was learned into the backbone's own weights; the model then stands without the method.

        Returns:
            A line that whoever uses those weights should know, if there is one.
        """
        ...

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """What was learned as a change of the backbone: every weight's name and the change, of its shape, in fp32.

        Args:
            before: the backbone's own weights, without the method.

        Raises:
            ConfigError: the method is no change of weights (adapters).
        """
        ...

    def kept(self) -> int:
        """How many backbone entries are still there of those that train, when training has ended.

        Fewer than there are trainables where a method prunes its own; before training begins it says what it aims at.
        """
        ...

    def kept_bounds(self) -> tuple[int, int]:
        """The least and the most that `kept` can be when training has ended; known before it begins."""
        ...

    def facts(self) -> dict[str, Any]:
        """JSON-like facts for the record, e.g. how a budget was spent."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs beside trainables and optimizer."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        ...


class Method(Protocol):
    """A recipe: a frozen dataclass whose fields are the keys of its yaml.

    A budget turns the key that its `dial` names (rank, width); what it trains must grow with it. What else it may
    have stands in `config/members.py`, with what holds of a method that does not have it.
    """

    def attach(self, model: Model, scope: Scope) -> Tuner:
        """Choose what trains: set requires_grad of the backbone, insert modules.

        Everything in the backbone is frozen before. Random numbers come from torch's global generator, which the
        caller seeds. Must work on the meta device, where nothing has values.

        Raises:
            ConfigError: nothing can train within the scope.
        """
        ...


class ParameterTuner:
    """A tuner whose trainables are parameters of the model itself; hooks do nothing. Others build on it."""

    def __init__(self, trainables: Mapping[str, nn.Parameter]) -> None:
        self._trainables = dict(trainables)
        for parameter in self._trainables.values():
            parameter.requires_grad_(True)

    def trainables(self) -> Mapping[str, nn.Parameter]:
        """See `Tuner`."""
        return self._trainables

    def touched(self) -> Iterable[str]:
        """The trainables."""
        return self.trainables()

    def optimizer(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(groups, **settings)

    def reads(self) -> Iterable[str]:
        """Nothing."""
        return ()

    def decays(self, name: str) -> bool:
        """Whatever is no bias and belongs to no norm."""
        return decays_by_name(name)

    def check_steps(self, steps: int) -> None:
        """Any number will do."""

    def prepare(self, training: Training) -> None:
        """Do nothing, unless a method overrides this."""

    def penalty(self) -> torch.Tensor | None:
        """None."""
        return None

    def before_backward(self, step: int, last: bool) -> None:
        """Do nothing, unless a method overrides this."""

    def after_backward(self, step: int) -> None:
        """Do nothing, unless a method overrides this."""

    def after_step(self, step: int) -> bool:
        """The same parameters go on."""
        return False

    def settles(self) -> int:
        """0: every evaluation may be selected."""
        return 0

    def delta(self) -> Mapping[str, torch.Tensor]:
        """The trainables themselves."""
        return {name: parameter.detach() for name, parameter in self._trainables.items()}

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        copy_into(self._trainables, tensors)

    def untrained(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What the delta holds now."""
        return self.delta()

    def merge(self) -> str | None:
        """Nothing to do: the parameters are the model's own."""
        return None

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Every trainable's value less what it was."""
        for name, parameter in self._trainables.items():
            yield name, parameter.detach().float() - before[name].to(parameter.device).float()

    def kept(self) -> int:
        """Every entry that trains: nothing is pruned."""
        return sum(parameter.numel() for parameter in self.trainables().values())

    def kept_bounds(self) -> tuple[int, int]:
        """The same number twice: nothing is pruned."""
        return self.kept(), self.kept()

    def facts(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the trainables."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


def same_names(expected: Iterable[str], given: Iterable[str]) -> None:
    """Refuse a delta of other names.

    Raises:
        DataError: a name is missing or too much.
    """
    if different := sorted(set(expected) ^ set(given)):
        raise DataError(f"the delta does not fit: {different[0]} is only on one side ({len(different)} such names)")


def check_fit(parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """See that tensors have the names and shapes of the parameters that they are for.

    Raises:
        DataError: a name is missing or too much, or a shape differs.
    """
    same_names(parameters, tensors)
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise DataError(
                f"the delta does not fit: {name} is {tuple(tensors[name].shape)}, here {tuple(parameter.shape)}"
            )


def copy_into(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into parameters of the same names and shapes.

    Raises:
        DataError: as `check_fit`.
    """
    check_fit(parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def narrowed(scope: Scope, kinds: tuple[str, ...] | None) -> Scope:
    """The scope, limited further to a method's own kinds (None: not limited)."""
    if kinds is None:
        return scope
    if scope.kinds is None:
        return Scope(scope.layers, kinds)  # type: ignore[arg-type]
    return Scope(scope.layers, tuple(kind for kind in scope.kinds if kind in kinds))


def require(candidates: Sized, what: str, scope: Scope) -> None:
    """Refuse a scope in which a method finds nothing to train.

    Raises:
        ConfigError: `candidates` is empty.
    """
    if not candidates:
        layers = "all layers" if scope.layers is None else f"layers {list(scope.layers)}"
        kinds = "all kinds" if scope.kinds is None else f"kinds {list(scope.kinds)}"
        raise ConfigError(f"scope: {what} in {layers}, {kinds} of this backbone")


def decays_by_name(name: str) -> bool:
    """Whether weight decay may touch a parameter: never biases and norms."""
    return not (name.endswith(".bias") or "norm" in name.lower())


def entries_by_place(model: Model, counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Entries of parameters or modules by kind, by layer and by both ("3 query"), as `BudgetFacts` has them."""
    sums: dict[str, dict[str, int]] = {"by_kind": {}, "by_layer": {}, "by_place": {}}
    for name, count in counts.items():
        place = model.place(name)
        kind, layer = "+".join(sorted(place.kinds)), "none" if place.layer is None else str(place.layer)
        for key, word in (("by_kind", kind), ("by_layer", layer), ("by_place", f"{layer} {kind}")):
            sums[key][word] = sums[key].get(word, 0) + count
    return sums
