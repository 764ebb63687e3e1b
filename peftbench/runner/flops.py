"""What a run's passes cost in floating-point operations: a row's before the method is attached, and all of training."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate.utils import gather_object

from peftbench.backbone.model import Model
from peftbench.data.tokens import Tokens
from peftbench.record import Flops
from peftbench.training import flops
from peftbench.training.forward import Forward
from peftbench.training.trainer import Trainer


def of_backbone(model: Model, tokens: Mapping[str, Tokens]) -> Flops:
    """The longest row of the first split, through a model to which nothing is attached yet."""
    first = next(iter(tokens.values()))
    width = int(first.lengths.max())
    return Flops(width, flops.of_row(Forward(model, "fp32", torch.device("cpu")), first, width))


def of_learned(before: Flops, trainer: Trainer, tokens: Mapping[str, Tokens], in_one_phase: bool) -> Flops:
    """The same with the method as training left it, and all of training, over all processes.

    Args:
        before: what the row costs without the method.
        in_one_phase: whether this trainer did all of the training.
    """
    forward = flops.of_row(trainer.forward, next(iter(tokens.values())), before.width)
    if not in_one_phase or not trainer.fit.steps:
        return replace(before, forward=forward)
    several = trainer.state.num_processes > 1
    training = sum(gather_object([trainer.passes.total])) if several else trainer.passes.total
    return replace(before, forward=forward, training=training)
