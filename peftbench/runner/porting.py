"""A delta carried to another backbone of the same shapes (PortLLM, Khan et al. 2024, arXiv 2410.10870).

What it holds there is what it would hold untrained there, plus what training had changed here: a backbone's own value
becomes theta' + (value - theta), and factors, which start alike on both, stay what they are.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from peftbench.backbone.model import Model
from peftbench.methods.base import Tuner
from peftbench.runner.delta import FRESH, HEAD, START, Delta, LearnedOn
from peftbench.runner.deltas import attach, check, own_of, put_fresh


def ported(delta: Delta, old: Model, new: Model, known: Collection[str] = ()) -> Delta:
    """The delta as one of another backbone; its head is the old one.

    Args:
        old, new: fresh models of the delta's own backbone and of the other, after `put_draws`; methods are attached
            to both.
        known: see `deltas.restore`.

    Raises:
        DataError: see `deltas.restore`.
    """
    return _moved(delta, old, new, known)[0]


@torch.no_grad()
def put_draws(delta: Delta, old: Model, new: Model) -> None:
    """What the weights of both backbones lack becomes what it was in the run.

    Args:
        old, new: models of the delta's own backbone and of the other, made with the delta's seed.
    """
    put_fresh(delta, old)
    here, there = dict(old.backbone()), dict(new.backbone())
    both = {name: here[name].detach().clone() for name in new.drawn if name in old.drawn}
    for name, tensor in both.items():
        there[name].copy_(tensor)
    new.drawn = {**new.drawn, **both}


def _moved(delta: Delta, old: Model, new: Model, known: Collection[str]) -> tuple[Delta, Tuner, Tuner]:
    """The delta on the new backbone, and its method attached to both models, untrained."""
    check(delta, old, known)
    start = _moved_start(delta, old, new, known)
    facts, own = delta.facts, own_of(delta)
    here, there = (attach(facts.attachment, model, facts.seed) for model in (old, new))
    before, now = (_copied(tuner.untrained(own)) for tuner in (here, there))
    moved = {name: _plus_change(tensor, before.get(name), now.get(name)) for name, tensor in own.items()}
    fresh = {FRESH + name: tensor for name, tensor in new.drawn.items() if name not in own}
    head = {HEAD + name: tensor for name, tensor in delta.named(HEAD).items()}
    first = {START + name: tensor for name, tensor in start.tensors.items()} if start else {}
    model = LearnedOn(new.name, new.weights_sha256)
    carried = replace(facts, model=model, start=start.facts if start else None)
    return Delta({**moved, **head, **fresh, **first}, carried), here, there


def _moved_start(delta: Delta, old: Model, new: Model, known: Collection[str]) -> Delta | None:
    """What another method had learned before, moved likewise and merged into both models."""
    if delta.start is None:
        return None
    start, here, there = _moved(delta.start, old, new, known)
    for tuner, tensors in ((here, delta.start), (there, start)):
        tuner.load_delta(own_of(tensors))
        tuner.merge()
    return start


def _copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _plus_change(value: torch.Tensor, before: torch.Tensor | None, now: torch.Tensor | None) -> torch.Tensor:
    """now + (value - before); the value itself, bit for bit, wherever both began alike, or nothing is known of it."""
    if before is None or now is None or not value.is_floating_point():
        return value
    if not value.shape == before.shape == now.shape:  # a part of what it began with is left, as AdaLoRA's triplets are
        return value
    change = (now.double() + (value.double() - before.double())).to(value.dtype)
    return torch.where(before == now, value, change)
