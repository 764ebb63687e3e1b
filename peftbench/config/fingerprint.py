"""What a fingerprint is made with: values in one form whatever the way of writing them, and their digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Parts and keys that came after the first fingerprints -> the value at which they change nothing, and are left out.
ADDED: dict[str, Any] = {
    "select": None,
    "init_head": "new",
    "readout": None,
    "selftrain": None,
    "objective": None,
    "shots": None,
    "model.stream": 1,
    "protocol.keep_prefix": False,
    "method.threshold": None,
    "select.trials": None,
    "select.head_factors": None,
}
# Architectures whose random numbers on this bench's attention changed after the first fingerprints -> their version;
# that of the others is 1.
STREAMS = {"mpnet": 2, "modernbert": 2, "deberta-v2": 2}
# Keys that change no value, whatever theirs.
NEUTRAL = frozenset({"protocol.gradient_checkpointing"})


def without_neutral(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The same without what has the value that `ADDED` gives it, and without the keys of `NEUTRAL`, at any depth.

    Args:
        place: where these values lie: empty, or the keys above them, each with a dot after it.
    """
    kept = {}
    for key, value in values.items():
        name = f"{place}{key}"
        if name not in NEUTRAL and ADDED.get(name, ...) != value:
            kept[key] = without_neutral(value, f"{name}.") if isinstance(value, Mapping) else value
    return kept


def without_addresses(value: Any) -> Any:
    """The same with every `_target_` in this package cut down to the class's own name."""
    if isinstance(value, Mapping):
        cut = {key: without_addresses(item) for key, item in value.items()}
        if str(cut.get("_target_", "")).startswith("peftbench.methods."):
            cut["_target_"] = str(cut["_target_"]).rpartition(".")[2]
        return cut
    return [without_addresses(item) for item in value] if isinstance(value, (list, tuple)) else value


def canonical(value: Any) -> Any:
    """The same value for every way of writing it: whole floats become integers, tuples lists, keys strings."""
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, as hexadecimal digits."""
    text = json.dumps(canonical(value), sort_keys=True, ensure_ascii=False, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()
