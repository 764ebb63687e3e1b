"""An old run and a newer backbone of the same shapes: whether they fit, what has moved, what was learned on both."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from peftbench.backbone import low_rank
from peftbench.backbone.model import Model, build, compute_precision, load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config.spec import ModelSpec
from peftbench.data.tokens import tokenizer_for
from peftbench.ground.errors import ConfigError, DataError
from peftbench.lifecycle.distance import by_kind, cosine, length, minus
from peftbench.lifecycle.parents import Parent
from peftbench.lifecycle.task_model import FoldedModel, TaskModel, backbone_of
from peftbench.methods.base import copy_into
from peftbench.runner.delta import HEAD, Delta
from peftbench.runner.deltas import delta_of, restore
from peftbench.runner.porting import ported, put_draws


@dataclass(frozen=True)
class Moved:
    """A delta on a newer backbone.

    Attributes:
        before, now: weights of the old and of the newer backbone, fp32; what both lack as the run drew it.
        model: the newer one, for the places of its weights.
    """

    delta: Delta
    before: Mapping[str, torch.Tensor]
    now: Mapping[str, torch.Tensor]
    model: Model


def check_fit(old: ModelSpec, new: ModelSpec) -> None:
    """Refuse a newer backbone that a delta of the old one does not fit, before weights are loaded.

    Raises:
        ConfigError: it has other shapes, or one of them is low-rank.
        DataError: it reads rows by another tokenizer, or has no weights.
    """
    if low_rank.ranks_of(old) or low_rank.ranks_of(new):
        raise ConfigError(f"model={new.name}: a low-rank backbone; a delta is ported between whole ones")
    here, there = ({name: tuple(p.shape) for name, p in build(spec, 1, "meta").backbone()} for spec in (old, new))
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            sizes = f"{name} is {here.get(name, 'not there')} and {there.get(name, 'not there')}"
            raise ConfigError(f"model={new.name}: other shapes than {old.name} of the run: {sizes}")
    before, now = (tokenizer_for(spec, weights_folder(spec)).sha256 for spec in (old, new))
    if before != now:
        raise DataError(f"model={new.name}: another tokenizer than that of the run on {old.name}")


class Patch:
    """What an old run learned, on a newer backbone; what is computed of them is computed once, when it is needed."""

    def __init__(self, run: Parent, model: ModelSpec, cache: str, known: Collection[str] = ()) -> None:
        """Args:
        run: the old one.
        model: the newer backbone.
        cache: the folder of tokenised rows.
        known: classes outside this package that the run's delta may name.
        """
        self.run, self.model, self.cache, self.known = run, model, cache, known

    def forget(self) -> None:
        """Let go of what was computed: models are large, and a study has many runs."""
        for name in ("moved", "change"):
            self.__dict__.pop(name, None)

    @functools.cached_property
    def moved(self) -> Moved:
        """The delta on the newer backbone, and the weights of both."""
        delta = delta_of(self.run.folder)
        labels, seed = delta.facts.task.labels, delta.facts.seed
        old, new = (load_model(spec, labels, seed)[0] for spec in (self.run.model, self.model))
        put_draws(delta, old, new)
        before, now = backbone_of(old), backbone_of(new)
        carried = ported(delta, old, new, self.known)
        return Moved(carried, before, now, build(self.model, labels, device="meta"))

    @functools.cached_property
    def change(self) -> dict[str, torch.Tensor] | None:
        """What the run changed of every weight; None: its method is no change of weights (adapters, pruning).

        Raises:
            DataError: the run cannot be read.
        """
        before = self.moved.before
        try:
            own = FoldedModel(self.run, self.cache, self.known).own
        except ConfigError:
            return None
        same = all(name in own and own[name].shape == weight.shape for name, weight in before.items())
        return minus(own, before) if same else None

    def check_same(self, newer: Model) -> None:
        """Refuse a model whose weights are not those of `moved`, which may be an hour old.

        Raises:
            DataError: the newer backbone's file has changed since.
        """
        if newer.weights_sha256 != self.moved.delta.facts.model.sha256:
            what = f"model={self.model.name}: its weights changed while a port was made"
            raise DataError(f"{what}; the same command goes on")

    def facts(self) -> dict[str, Any]:
        """How far the backbone has moved, and how the run's change lies to that."""
        gap = minus(self.moved.now, self.moved.before)
        facts: dict[str, Any] = {"distance": length(gap), "length": length(self.moved.before)}
        if self.change is None:
            return facts
        cosines = {"cosine": cosine(self.change, gap), "cosines": by_kind(self.moved.model, cosine, self.change, gap)}
        return {**facts, "change": {"length": length(self.change), **cosines}}

    def patched(self) -> TaskModel:
        """The newer backbone with the delta and the run's own head.

        Raises:
            DataError: as `check_same`; of `plain`, too.
        """
        model = self._new()
        tuner = restore(self.moved.delta, model, known=self.known)
        return self._ready(model, tuner.trainables().values())

    def plain(self, scale: float = 0.0) -> TaskModel:
        """The newer backbone with the run's own head and so many times its change, where it has one, folded in."""
        model = self._new()
        weights = dict(self.moved.now)
        if scale:
            assert self.change is not None
            weights = {name: weight + scale * self.change[name] for name, weight in weights.items()}
        copy_into(dict(model.backbone()), weights)
        copy_into(dict(model.head()), self.moved.delta.named(HEAD))
        return self._ready(model, ())

    @functools.lru_cache  # noqa: B019  # a run and its newer backbone live as long as their command
    def held_out(self, scale: float, most: int) -> float:
        """The task's plain headline metric of `plain` on that many held-out rows of train at most."""
        on = self.plain(scale)
        return on.headline(on.tokens("held_out", most))

    def _new(self) -> Model:
        facts = self.moved.delta.facts
        model, _ = load_model(self.model, facts.task.labels, facts.seed)
        self.check_same(model)
        return model

    def _ready(self, model: Model, trained: Collection[torch.nn.Parameter]) -> TaskModel:
        compute_precision(model, self.run.protocol.precision, [*trained, *dict(model.head()).values()])
        return TaskModel(self.run, model, self.cache)
