"""Who trains how much: backbone, head, total, stored bytes. The only place that counts."""

from dataclasses import replace

from peftbench.backbone.model import Model
from peftbench.backbone.prefix import Prefix
from peftbench.config import checks
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import Tuner
from peftbench.record import Counts as Counts
from peftbench.runner import budgets, deltas, readouts, selftrain


def entries(model: Model) -> int:
    """All entries of a model to which nothing is attached yet."""
    return sum(parameter.numel() for parameter in model.module.parameters())


def count_trained(model: Model, tuner: Tuner, before: int) -> Counts:
    """Count what trains; `before` is `entries(model)` before the method was attached."""
    backbone = sum(parameter.numel() for parameter in tuner.trainables().values())
    head = sum(parameter.numel() for _, parameter in model.head())
    return Counts(backbone, head, backbone + head, before, kept=tuner.kept())


def counted_again(planned: Counts, model: Model, tuner: Tuner, stored_bytes: int) -> Counts:
    """The counts when training has ended: a method may have trained more than it began with, and may keep less."""
    now = count_trained(model, tuner, planned.model)
    backbone = max(planned.backbone, now.backbone)
    return replace(now, backbone=backbone, total=backbone + now.head, stored_bytes=stored_bytes)


def count_cell(cell: Cell, steps: int | None = None) -> Counts:
    """Attach the method to a backbone without weights and count: milliseconds, no memory, no files.

    Args:
        cell: what is to run.
        steps: see `count_resolved`.

    Raises:
        ConfigError: as `budgets.resolve` and `count_resolved`.
    """
    return count_resolved(budgets.resolve(cell), steps)


def count_resolved(cell: Cell, steps: int | None = None) -> Counts:
    """As `count_cell`.

    Args:
        cell: what is to run, its budget a number of entries.
        steps: optimizer steps that it will take, where that is known already.

    Raises:
        ConfigError: the method finds nothing to train there, leaves no room for the rows or cannot train for so many
            steps, or there is no layer to keep where the protocol asks for it.
    """
    model, tuner, before = _attached(cell)
    if steps is not None:
        tuner.check_steps(steps)
    if cell.protocol.keep_prefix:
        Prefix(model, tuner.touched(), tuner.reads())  # whether there is one
    counts = count_trained(model, tuner, before)
    if counts.total == 0 and cell.task.train is not None:
        raise ConfigError(
            f"readout.head={cell.readout.head}: nothing would train, for method={cell.method.name} trains none"
        )
    if cell.selftrain.kind == "list":
        selftrain.check(cell.selftrain, cell.method.name, model, tuner)
    return counts


def kept_bounds(cell: Cell) -> tuple[int, int]:
    """The least and the most backbone entries that can be kept when training has ended, by the method's own rules.

    Raises:
        ConfigError: the method finds nothing to train there.
    """
    return _attached(budgets.resolve(cell))[1].kept_bounds()


def _attached(cell: Cell) -> tuple[Model, Tuner, int]:
    """The model without weights, its tuner, and its entries before the method was attached."""
    model = readouts.without_weights(cell.model, cell.task, cell.readout)
    before = entries(model)
    if problems := [*checks.positions(cell, budgets.sized(cell.attachment, model))]:
        raise ConfigError(problems)
    return model, deltas.attach(cell.attachment, model, cell.seed), before
