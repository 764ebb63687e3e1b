"""What a fingerprint is made with: values in one form whatever the way of writing them, and their digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Keys that came after the first fingerprints -> the value at which they change nothing, and are left out.
ADDED: dict[str, Any] = {
    "protocol.keep_prefix": False,
    "method.threshold": None,
    "select.trials": None,
    "select.head_factors": None,
}
# Architectures whose random numbers on this bench's attention changed after the first fingerprints -> their version.
STREAMS = {"mpnet": 2, "modernbert": 2, "deberta-v2": 2}
# Keys that change no value, whatever theirs.
NEUTRAL = frozenset({"protocol.gradient_checkpointing"})


def without_added(part: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The same without the keys of `ADDED` that have their added value, and without those of `NEUTRAL`."""
    told = {key: value for key, value in values.items() if f"{part}.{key}" not in NEUTRAL}
    return {key: value for key, value in told.items() if ADDED.get(f"{part}.{key}", ...) != value}


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
