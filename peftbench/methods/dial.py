"""A budget of entries, turned into a method's own key: its dial."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from peftbench.backbone.model import Model, empty_copy
from peftbench.config.bounds import MOST
from peftbench.config.members import member
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.methods.base import Method

Made = TypeVar("Made", bound=Method)
TRIED = 1 << 20  # sizes of a method at most


def within(method: Method, model: Model, scope: Scope, entries: int) -> Method:
    """The same method, training at most so many backbone entries.

    Args:
        method: what a budget is given to.
        model: where it is to be attached; it is left as it is.
        scope: where the method may act.
        entries: how many.

    Raises:
        ConfigError: the method takes no budget, or needs more than this one.
    """
    own: Callable[..., Method] | None = member(method, "within")
    if own is not None:
        return own(model, scope, entries)
    name, dial = type(method).__name__, member(method, "dial")
    if dial is None:
        raise ConfigError(
            f"budget: {quantity(entries, 'entry')}; {name} takes none; limit it with scope.layers or scope.kinds"
        )
    return turned(method, dial, model, scope, entries)


def turned(method: Any, dial: str, model: Model, scope: Scope, entries: int) -> Any:
    """The method with its dial at the largest whole number that is possible there and keeps it within the budget.

    Args:
        method: a frozen dataclass with a key of the dial's name.
        dial: the key.
        model, scope, entries: see `within`.

    Raises:
        ConfigError: see `largest`.
    """

    def count(one: Method) -> int:
        return trained_entries(one, model, scope)

    return largest(lambda value: replace(method, **{dial: value}), count, entries, type(method).__name__, dial)


def largest(
    make: Callable[[int], Made],
    count: Callable[[Made], int],
    entries: int,
    name: str,
    key: str,
    sizes: Sequence[int] = range(1, MOST + 1),
) -> Made:
    """The method whose size is the largest within a budget, where entries grow with the size, linearly or not.

    Args:
        make: the method of a size.
        count: how many entries it trains.
        entries: the budget.
        name, key: what to call the method and its size.
        sizes: those that are possible, each training more than the one before; the first million are looked at.

    Raises:
        ConfigError: no size is possible, the first trains more than the budget, or every size trains as many.
    """
    sizes = sizes[:TRIED]
    if not sizes:
        raise ConfigError(
            f"budget: {quantity(entries, 'entry')}; no {key} of {name} divides the sides of all maps here"
        )
    smallest = count(make(sizes[0]))
    if smallest > entries:
        least = f"{smallest:,} ({key} {sizes[0]})"
        raise ConfigError(f"budget: {quantity(entries, 'entry')}; {name} here needs at least {least}")
    if len(sizes) == 1:
        return make(sizes[0])
    each = count(make(sizes[1])) - smallest
    if each <= 0:
        raise ConfigError(f"budget: {quantity(entries, 'entry')}; {name} does not grow with {key} here")
    fits, at, further = 0, min(len(sizes) - 1, (entries - smallest) // each), 1  # right at once where growth is linear
    while at < len(sizes) and _within(make, count, entries, sizes[at]):
        fits, at, further = at, at + further, further * 2
    over = min(at, len(sizes))
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if _within(make, count, entries, sizes[middle]) else (fits, middle)
    return make(sizes[fits])


def _within(make: Callable[[int], Made], count: Callable[[Made], int], entries: int, size: int) -> bool:
    """Whether a size is possible at all and within the budget."""
    try:
        return count(make(size)) <= entries
    except ConfigError:
        return False


def trained_entries(method: Method, model: Model, scope: Scope) -> int:
    """How many backbone entries a method would train; the model is left as it is."""
    return sum(p.numel() for p in method.attach(empty_copy(model), scope).trainables().values())
