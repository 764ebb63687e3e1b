"""Who trains how much: backbone, head, total, stored bytes. The only place that counts."""

from dataclasses import replace

from peftbench.backbone.model import Model, build
from peftbench.backbone.prefix import Prefix
from peftbench.config.spec import Cell
from peftbench.methods.base import Tuner
from peftbench.record import Counts as Counts
from peftbench.runner import budgets, deltas


def entries(model: Model) -> int:
    """All entries of a model to which nothing is attached yet."""
    return sum(parameter.numel() for parameter in model.module.parameters())


def count(model: Model, tuner: Tuner, before: int) -> Counts:
    """Count what trains; `before` is `entries(model)` before the method was attached."""
    backbone = sum(parameter.numel() for parameter in tuner.trainables().values())
    head = sum(parameter.numel() for _, parameter in model.head())
    return Counts(backbone, head, backbone + head, before, kept=tuner.kept())


def counted_again(planned: Counts, model: Model, tuner: Tuner, stored_bytes: int) -> Counts:
    """The counts when training has ended: a method may have trained more than it began with, and may keep less."""
    now = count(model, tuner, planned.model)
    backbone = max(planned.backbone, now.backbone)
    return replace(now, backbone=backbone, total=backbone + now.head, stored_bytes=stored_bytes)


def plan(cell: Cell) -> Counts:
    """Attach the method to a backbone without weights and count: milliseconds, no memory, no files.

    Raises:
        ConfigError: the method finds nothing to train there, or no layer to keep where the protocol asks for it.
    """
    cell = budgets.resolve(cell)
    model = build(cell.model, cell.task.num_labels, device="meta")
    before = entries(model)
    tuner = deltas.attach(cell.method, cell.scope, cell.budget, model, cell.seed)
    if cell.protocol.keep_prefix:
        Prefix(model, tuner.touched(), tuner.reads())  # whether there is one
    return count(model, tuner, before)
