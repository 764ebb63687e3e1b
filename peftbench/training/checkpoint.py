"""Everything that an exact resume needs, as one file beside the record: tensors in safetensors, the rest as JSON.

A checkpoint is written whole or not at all, is used only by the cell, data, weights and versions that it was made by,
and is set aside with a reason where its bytes are not the ones that were written.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from peftbench.ground.errors import warn
from peftbench.ground.files import CHECKPOINT_FILE, set_aside, write_atomically

KEY = "peftbench-checkpoint-1"
FORMAT = 2  # raised when a state holds other things: one of an earlier format is not taken up


class Checkpoints:
    """The checkpoint of one cell: when to write it, its file, and whether it may be taken up.

    Attributes:
        started: when the cell was begun: before the checkpoint that is taken up, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        every: float | None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:
        folder: the cell's own.
        identity: JSON-like; a checkpoint of another one is not taken up.
        every: seconds between two of them during training; None: none are written or read.
        check: called before one is put in its place; it raises where that must not be.
        """
        self._check = check
        self._path, self._every = folder / CHECKPOINT_FILE, every
        self._identity = {**identity, "format": FORMAT}
        self._last = time.monotonic()
        self.started = datetime.now(UTC)

    def due(self) -> bool:
        """Whether it is time for one."""
        return self._every is not None and time.monotonic() - self._last >= self._every

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep a state: nested dicts, lists and scalars with tensors and arrays in them."""
        if self._every is None:
            return
        tensors: dict[str, torch.Tensor] = {}
        facts = {"identity": self._identity, "state": _pack(state, tensors), "started": self.started.isoformat()}
        facts["sha256"] = _digest(facts, tensors)
        # one key alone: safetensors writes several in no fixed order
        write_atomically(self._path, save(tensors, metadata={KEY: json.dumps(facts)}), self._check)
        self._last = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state that was kept, if there is one and it is this cell's and whole."""
        if self._every is None or not self._path.exists():
            return None
        try:
            with safe_open(self._path, "pt") as file:
                facts = json.loads((file.metadata() or {})[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            intact = facts.pop("sha256") == _digest(facts, tensors)
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError):
            intact = False
        if not intact:
            set_aside(self._path, "damaged; the cell starts anew")
            return None
        if facts["identity"] != json.loads(json.dumps(self._identity)):
            different = [key for key, value in self._identity.items() if facts["identity"].get(key) != value]
            warn(f"{self._path}: of another {', '.join(different) or 'run'}; the cell starts anew")
            return None
        if "started" in facts:  # version 0.4 kept none
            self.started = datetime.fromisoformat(facts["started"])
        state: dict[str, Any] = _unpack(facts["state"], tensors)
        return state

    def remove(self) -> None:
        """The cell is done: nothing is left to take up."""
        self._path.unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """JSON-like stand-in of a nested value; its tensors and arrays go into `tensors`."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        name = str(len(tensors))
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value.detach()
        tensors[name] = tensor.cpu().contiguous().clone()
        return {kind: name}
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    return value


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    sha256 = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        sha256.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)}".encode())
        sha256.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
