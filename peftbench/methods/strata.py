"""Layers in strata, each with methods of its own; SPAFIT (Arora and Wang 2024, arXiv 2405.00201) is a yaml of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field

from peftbench.backbone.model import Model
from peftbench.config.bounds import MOST, Count, InnerShare, Name, Within
from peftbench.config.members import member
from peftbench.config.spec import Kind, MethodSpec, Scope
from peftbench.config.validate import make_method
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.methods.base import Method, narrowed
from peftbench.methods.wrapper import WrapperTuner

Item = TypeVar("Item")


@dataclass(frozen=True)
class Stratum:
    """Layers up to `last` (from zero, included; the layer after the stratum below is the first) and what trains there.

    Attributes:
        last: a layer number, or -1 for an empty stratum at the bottom; a share of the depth in (0, 1), rounded to
            whole layers; None: up to the top.
        methods: methods with their keys, `_target_` first, each under a name (or in a list); none: frozen.
        like: the name of the stratum whose methods train here instead.
    """

    last: Annotated[int, Field(ge=-1, le=MOST)] | InnerShare | None
    methods: dict[Name, Within] | tuple[Within, ...] = ()
    like: Name | None = None


@dataclass(frozen=True)
class Strata:
    """Strata from the bottom up, and what trains outside the layers.

    Attributes:
        strata: each under a name, so that a yaml can change a part of one (or in a list); their boundaries rise.
        elsewhere: methods outside the layers (embeddings, pooler), limited to `elsewhere_kinds`; none where there is
            nothing of these (RoBERTa has no pooler, and BERT none below a masked-LM head).
        rank: of every part that has one; None: each has its own.
    """

    strata: Annotated[dict[Name, Stratum] | tuple[Stratum, ...], Field(min_length=1)]
    elsewhere: tuple[Within, ...] = ()
    elsewhere_kinds: tuple[Kind, ...] = ("pooler",)
    rank: Count | None = None
    dial: ClassVar[str | None] = "rank"

    def __post_init__(self) -> None:
        known = list(self.strata) if isinstance(self.strata, Mapping) else []
        for stratum in _items(self.strata):
            if stratum.like is not None and stratum.like not in known:
                raise ValueError(f"like={shown(stratum.like)}: there is no such stratum; {near(stratum.like, known)}")

    def attach(self, model: Model, scope: Scope) -> WrapperTuner:
        """See `Method`. A budget goes to the parts that have a rank, which then share one; the others stay."""
        return WrapperTuner([method.attach(model, inside) for method, inside in self._parts(model, scope)])

    def _parts(self, model: Model, scope: Scope) -> list[tuple[Method, Scope]]:
        parts, start = [], 0
        for stratum, last in zip(_items(self.strata), self._boundaries(model.depth), strict=True):
            layers = tuple(i for i in range(start, last + 1) if scope.layers is None or i in scope.layers)
            start = last + 1
            if layers:
                parts += [(self._made(raw), replace(scope, layers=layers)) for raw in self._methods(stratum)]
        outside = narrowed(scope, self.elsewhere_kinds)
        if scope.layers is None and any(True for _ in model.within(outside)):
            parts += [(self._made(raw), outside) for raw in self.elsewhere]
        if not parts:
            raise ConfigError("scope: every stratum in it is frozen")
        if alone := [type(method).__name__ for method, _ in parts if member(method, "alone")]:
            raise ConfigError(f"method.strata: {alone[0]} trains alone, no gradient passes it")
        return parts

    def _methods(self, stratum: Stratum) -> list[Within]:
        taken = stratum if stratum.like is None else dict(self.strata)[stratum.like]  # type: ignore[arg-type]
        return _items(taken.methods)

    def _made(self, raw: Mapping[str, Any]) -> Any:
        method = make_method(MethodSpec.from_keys("part", raw))
        turns = self.rank is not None and member(method, "dial") == self.dial
        return replace(method, rank=self.rank) if turns else method

    def _boundaries(self, depth: int) -> list[int]:
        """The last layer of every stratum.

        Raises:
            ConfigError: they do not rise, or lie beyond the depth.
        """
        lasts = []
        for stratum in _items(self.strata):
            last = stratum.last
            if last is None:
                last = depth - 1
            elif isinstance(last, float):
                last = round(last * depth) - 1
            lasts.append(last)
        shown = ", ".join(str(stratum.last) for stratum in _items(self.strata))
        if max(lasts) >= depth or min(lasts) < -1:
            raise ConfigError(f"method.strata: boundaries {shown}: the backbone has layers 0 to {depth - 1}")
        if any(low > high for low, high in pairwise(lasts)):
            raise ConfigError(f"method.strata: boundaries {shown} are out of order; they must rise")
        return lasts


def _items(named: Mapping[str, Item] | Sequence[Item]) -> list[Item]:
    return list(named.values() if isinstance(named, Mapping) else named)
