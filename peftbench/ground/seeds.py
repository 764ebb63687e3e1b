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
    """Draw torch's random numbers from one stream, and leave the global generators as they were."""
    import torch  # here: rows are cut by a stream, too, and reading them needs no torch

    with torch.random.fork_rng():
        torch.manual_seed(stream(seed, name))
        yield
