"""What a run's backbone lost, as it was measured later: a small file beside the run's record."""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from peftbench.ground import untrusted
from peftbench.ground.errors import DataError
from peftbench.ground.files import write_atomically

FILE = "forgetting.json"
MOST_BYTES = 1 << 20
ProbeKind = Literal["similarity", "masked_lm"]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Forgetting:
    """One probe of a backbone as its weights gave it, and as a run left it.

    Attributes:
        probe: similarity: Spearman's correlation of cosines and scores, in [-1, 1], more is better; masked_lm: mean
            cross entropy of hidden tokens in nats, less is better.
        rows: hash of the rows that were read.
        delta: hash of what the run learned.
    """

    probe: ProbeKind
    rows: Sha256
    delta: Sha256
    before: float
    after: float


def read(run: Path) -> list[Forgetting]:
    """What was measured of a run; nothing where nothing was.

    Raises:
        DataError: the file is not one of these.
    """
    path = run / FILE
    try:
        raw = untrusted.read_json(path, MOST_BYTES)
        return _adapter().validate_json(json.dumps(raw), strict=True)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        raise DataError(f"{path}: not a file of what a run forgot; delete it and measure again") from None


def keep(run: Path, every: Sequence[Forgetting]) -> None:
    """Write what was measured of a run, in place of what is there."""
    write_atomically(run / FILE, (json.dumps([asdict(one) for one in every], indent=1) + "\n").encode())


@functools.cache
def _adapter() -> TypeAdapter[list[Forgetting]]:
    return TypeAdapter(list[Forgetting])
