"""Whether two records of one cell agree: bit for bit on a CPU, to a tolerance elsewhere, and what may explain it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from peftbench.record import Record

TOLERANCE = 0.02  # of a headline in [-1, 1]: sums in another order move a few rows of a small dev set
MADE = ("status", "metrics", "headline", "counts", "hashes")  # what equal runs on equal machines have equal

Verdict = Literal["same", "close", "differs"]


@dataclass(frozen=True)
class Agreement:
    """How two records compare.

    Attributes:
        verdict: same (bit for bit); close (the headlines lie within `TOLERANCE`, made of the same rows and weights);
            differs.
        made: what of the results differs, as "key: one -> other".
        causes: what of versions, source, hardware and inputs differs.
    """

    verdict: Verdict
    made: list[str]
    causes: list[str]


def agreement(one: Record, other: Record) -> Agreement:
    """Compare two records of one cell."""
    first, second = _comparable(one), _comparable(other)
    made = [line for key in MADE for line in _differences(key, first[key], second[key])]
    causes = [line for key in ("versions", "hardware", "git") for line in _differences(key, first[key], second[key])]
    if not made:
        return Agreement("same", [], causes)
    same_inputs = all(getattr(one.hashes, key) == getattr(other.hashes, key) for key in ("data", "weights"))
    scores = (one.headline.value, other.headline.value)
    near = scores[0] == scores[1] or (None not in scores and abs((scores[0] or 0.0) - (scores[1] or 0.0)) <= TOLERANCE)
    explained = bool(causes) or one.hardware.device != "cpu"  # the same machine on a CPU gives the same bits
    close = same_inputs and near and explained and one.status == other.status
    return Agreement("close" if close else "differs", made, causes)


def _comparable(record: Record) -> dict[str, Any]:
    """All of a record by key; its parents wherever they lie."""
    raw = asdict(record)
    raw["hashes"]["parents"] = sorted(record.hashes.parents.values())
    return raw


def _differences(key: str, one: Any, other: Any) -> Iterator[str]:
    """What differs between two values, leaf by leaf; of a list only that it does."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in [*one, *(name for name in other if name not in one)]:
            yield from _differences(f"{key}.{name}", one.get(name), other.get(name))
    elif one != other:
        yield f"{key} differs" if isinstance(one, list) else f"{key}: {one} -> {other}"
