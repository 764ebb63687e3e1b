"""One seed, several independent random streams, so that changing one thing does not reshuffle another."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

STREAMS = (
    "head",
    "order",
    "dropout",
    "selection",
    "held_out",
    "backbone",
    "fresh",
    "shots",
    "mask",
    "merge",
    "sequence",
    "some rows",
    "edit",
)


def stream(seed: int, name: str) -> int:
    """A 63-bit seed for one stream; the same for the same seed and name on every machine."""
    assert name in STREAMS, name
    return int.from_bytes(hashlib.sha256(f"peftbench:{name}:{seed}".encode()).digest()[:8], "little") >> 1


@contextmanager
def drawn_from(seed: int, name: str) -> Iterator[None]:
    """Draw what torch draws on the CPU from one stream, and leave its generator as it was."""
    with drawn_by(stream(seed, name)):
        yield


@contextmanager
def drawn_by(number: int) -> Iterator[None]:
    """The same by a seed of torch's own. GPUs are left alone: to ask one for its state would take memory on each."""
    import torch  # here: rows are cut by a stream, too, and reading them needs no torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(number)
        yield
