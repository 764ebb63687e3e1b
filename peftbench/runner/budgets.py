"""Budgets as people give them (a share, another method's count) turned into a number of backbone entries."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peftbench.backbone.model import Model
from peftbench.config.members import member
from peftbench.config.spec import Attachment, Budget, Cell, Scope
from peftbench.config.validate import make_method, method_class
from peftbench.ground.errors import ConfigError
from peftbench.methods.dial import within
from peftbench.runner import deltas, readouts


def resolve(cell: Cell) -> Cell:
    """The same cell with its budget as a number of entries.

    Raises:
        ConfigError: it comes to less than one entry, or `like` names a method that needs a budget itself.
    """
    if not cell.budget.given():
        return cell
    if cell.budget.entries is not None:
        return cell
    model = readouts.without_weights(cell.model, cell.task, cell.readout)
    return replace(cell, budget=Budget(cell.budget.name, _entries(cell.budget, cell.scope, model, cell.seed)))


def sized(attachment: Attachment, model: Model) -> Mapping[str, Any]:
    """A method's arguments, its tokens as many as its budget gives it; those of other methods as they are.

    Raises:
        ConfigError: see `dial.within`.
    """
    kind, given = method_class(attachment.method.target), attachment.method.arguments
    if attachment.budget.entries is None or not member(kind, "own_tokens")(given):
        return given
    return vars(within(make_method(attachment.method), model, attachment.scope, attachment.budget.entries))


def _entries(budget: Budget, scope: Scope, model: Model, seed: int) -> int:
    """A share of this backbone's entries, or as many as another method trains of them, or keeps where budgets count
    that."""
    if budget.fraction is not None:
        whole = sum(parameter.numel() for _, parameter in model.backbone())
        if (entries := round(budget.fraction * whole)) < 1:
            raise ConfigError(f"budget.fraction={budget.fraction:g}: less than one of {whole:,} entries")
        return entries
    assert budget.like is not None
    try:
        tuner = deltas.attach(Attachment(budget.like, scope, Budget()), model, seed)
    except ConfigError as error:
        raise ConfigError(f"budget.like={budget.like.name}: {error.problems[0]}") from None
    if member(method_class(budget.like.target), "budgets_kept"):
        entries = tuner.kept_bounds()[1]
    else:
        entries = sum(parameter.numel() for parameter in tuner.trainables().values())
    if entries == 0:
        raise ConfigError(f"budget.like={budget.like.name}: it trains no backbone entry")
    return entries
