"""What Optuna searches: Hydra's intervals, choices and ranges as Optuna's distributions, and values as overrides."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from peftbench.ground.errors import ConfigError

MOST = 10_000  # values of a choice or a range
GOLDEN = 0.381966  # a place inside an interval that is no whole number


def distribution(item: Override) -> Any:
    """The distribution that an override means.

    interval(a,b): a real number, int(interval(a,b)) a whole one; tag(log,interval(a,b)): evenly over its logarithm.
    range(a,b,step): a number from a on, b left out. choice(x,y), x,y or glob(*): one of these.

    Raises:
        ConfigError: it is none: empty, falling, or tagged with a word that means nothing here.
    """
    from optuna.distributions import CategoricalDistribution

    line, value = item.input_line, item.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := sorted(tags - ({"log"} if item.is_interval_sweep() else set())):
        raise ConfigError(f"{line}: tag {unknown[0]} means nothing here; tag(log,interval(LOW,HIGH)) does")
    if getattr(value, "shuffle", False):
        raise ConfigError(f"{line}: a search has no order to shuffle")
    if item.is_interval_sweep():
        return _interval(line, value, log="log" in tags)
    if item.is_range_sweep():
        return _range(line, value)
    words = list(dict.fromkeys(islice(item.sweep_string_iterator(), MOST + 1)))
    if not 1 <= len(words) <= MOST:
        raise ConfigError(f"{line}: {'more than 10,000' if words else 'no'} values to choose from")
    return CategoricalDistribution(words)


def values(params: Mapping[str, Any]) -> list[str]:
    """A trial's values as overrides, real numbers with six digits; sorted, so that equal trials are one cell."""
    texts = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in params.items()}
    return [f"{key}={texts[key]}" for key in sorted(texts, key=lambda key: ("." in key, key))]


def points(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A few points of a space: all keys at their first value, at their last, and between."""
    for share in (0.0, 1.0, GOLDEN):
        yield {key: _at(one, share) for key, one in space.items()}


def _at(one: Any, share: float) -> Any:
    if hasattr(one, "choices"):
        return one.choices[round(share * (len(one.choices) - 1))]
    value = one.low + share * (one.high - one.low)
    return int(value) if isinstance(one.low, int) else value


def _interval(line: str | None, value: Any, log: bool) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    low, high = value.start, value.end
    if not -1e9 <= low < high <= 1e9:
        raise ConfigError(f"{line}: must rise, within a billion: interval(LOW,HIGH)")
    if log and low <= 0:
        raise ConfigError(f"{line}: log is for numbers above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, log=log) if whole else FloatDistribution(float(low), float(high), log=log)


def _range(line: str | None, value: Any) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    try:
        numbers = sorted(n if isinstance(n, int) else float(f"{n:.9g}") for n in islice(value.range(), MOST + 1))
    except (HydraException, ValueError):
        numbers = []
    if not 1 <= len(numbers) <= MOST:
        raise ConfigError(f"{line}: {'more than 10,000' if numbers else 'no'} numbers to choose from")
    step = abs(value.step)
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(numbers[0], numbers[-1], step=step)
    return FloatDistribution(numbers[0], numbers[-1], step=float(step))
