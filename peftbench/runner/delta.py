"""The delta: what a run learned, as a small portable file, with the facts that are needed to use it."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from peftbench.config.bounds import Whole
from peftbench.config.spec import Attachment, Budget, MethodSpec, Scope
from peftbench.config.validate import parse
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import write_atomically

FORMAT = "peftbench-delta-1"
MOST_BYTES = 16 << 30  # of a file; the largest backbone here, trained whole after another was, has 3 GB
HEAD = "head."
FRESH = "fresh."  # what the weights lacked of the backbone, as it was before training
START = "start."  # the delta of another method that was merged in before this one's was attached

Word = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True)
class LearnedOn:
    """The backbone that a delta belongs to: its word, and the hash of its weights (None: random ones)."""

    name: Word
    sha256: Word | None


@dataclass(frozen=True)
class LearnedFor:
    """The task that a delta's head belongs to, and how many outputs it has."""

    name: Word
    labels: Annotated[int, Field(ge=1, le=1000)]


@dataclass(frozen=True)
class DeltaFacts:
    """What is needed to use a delta.

    Attributes:
        start: of the delta of another method that was merged in before this one's was attached.
    """

    method: MethodSpec
    scope: Scope
    budget: Budget
    model: LearnedOn
    task: LearnedFor
    fingerprint: Word
    seed: Whole
    start: "DeltaFacts | None" = None

    @property
    def attachment(self) -> Attachment:
        """What is attached to the backbone before the delta is put in."""
        return Attachment(self.method, self.scope, self.budget)


@dataclass(frozen=True)
class Delta:
    """What a run learned.

    Attributes:
        tensors: by name; those of the head are named "head.<parameter>".
        facts: what is needed to use them.
    """

    tensors: Mapping[str, torch.Tensor]
    facts: DeltaFacts

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors, as they are stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def start(self) -> "Delta | None":
        """The delta of another method that was merged in before this one was attached."""
        return Delta(self.named(START), self.facts.start) if self.facts.start else None

    @property
    def is_whole(self) -> bool:
        """Whether it holds all that it needs: an edit leaves to its run what that had learned."""
        return self.facts.start is None or any(name.startswith(START) for name in self.tensors)

    def on(self, start: "Delta", drawn: Iterable[str]) -> "Delta":
        """The same, whole: after the delta that it was made on, and with its head where this one has none of its own.

        Args:
            drawn: parameters that the backbone's weights lack.
        """
        tensors = {**start.tensors, **self.tensors}
        fresh = {FRESH + name: tensors.get(FRESH + name, tensors.get(name)) for name in drawn}
        head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
        before = {START + name: tensor for name, tensor in start.tensors.items()}
        known = {name: tensor for name, tensor in fresh.items() if tensor is not None}
        return Delta({**known, **before, **head, **self.tensors}, self.facts)

    def named(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin so, without that."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def save(self, path: Path, check: Callable[[], None] = lambda: None) -> str:
        """Write a safetensors file, whole or not at all; returns the SHA-256 of its bytes.

        Args:
            check: as of `write_atomically`.
        """
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        # one key alone: safetensors writes several in no fixed order, and equal deltas are to be equal files
        content = save(tensors, metadata={FORMAT: json.dumps(_without_start(asdict(self.facts)))})
        write_atomically(path, content, check)
        return hashlib.sha256(content).hexdigest()

    @staticmethod
    def load(path: Path) -> "Delta":
        """Read a delta.

        Raises:
            DataError: the file is missing, damaged, not a delta, or holds what none can hold.
        """
        with _opened(path) as (file, facts):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise DataError(f"{path}: {name} holds numbers that are not finite")
        return Delta(tensors, facts)


def facts_of(path: Path) -> DeltaFacts:
    """The facts of a delta, without its tensors.

    Raises:
        DataError: as `Delta.load`.
    """
    with _opened(path) as (_, facts):
        return facts


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, DeltaFacts]]:
    """A delta's open file and its facts."""
    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            written = file.metadata() or {}
            if FORMAT not in written:
                raise DataError(f"{path}: not a peftbench delta of format {FORMAT}")
            yield file, _facts(path, written[FORMAT])
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from None


def _check_file(path: Path) -> None:
    """See that it is a regular file of a size that can be: no library is to wait at a pipe or a device."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: not a readable safetensors file ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
        raise DataError(f"{path}: not a regular file of at most {MOST_BYTES:,} bytes")


def _facts(path: Path, text: str) -> DeltaFacts:
    try:
        raw = untrusted.parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: its facts are not readable ({error})") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: not the facts of a delta: not a mapping")
    try:
        return parse(DeltaFacts, raw, "facts")
    except ConfigError as error:
        raise DataError(f"{path}: not the facts of a delta: {error.every[0]}") from None


def _without_start(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts without a start that is none, at every depth: as they were before there could be one."""
    start = facts.pop("start")
    return facts if start is None else {"start": _without_start(start), **facts}
