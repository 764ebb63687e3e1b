"""Which plans a study has registered: a line for each in a file of the study, so that none of many goes unseen."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import make_folder, write_atomically
from peftbench.ground.quantity import quantity
from peftbench.ground.record_parts import Name, Whole

FILE = "plans.jsonl"
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Registered:
    """A plan: the hash that its file names, when it was registered (UTC, ISO 8601), and how many tests it has."""

    sha256: Name
    registered: Name
    tests: Whole


def read(study: Path) -> list[Registered]:
    """The plans of a study, each once, as they were registered.

    Raises:
        DataError: the file cannot be read, or is not of plans.
    """
    path = study / FILE
    try:
        lines = untrusted.read_bytes(path, MOST_BYTES).splitlines()
        plans = [_adapter().validate_python(untrusted.parse_json(line)) for line in lines]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:  # pydantic's is one
        raise DataError(f"{path}: not a list of registered plans") from None
    return list(dict.fromkeys(plans))


def add(study: Path, plans: Iterable[Registered]) -> None:
    """Add plans to those of a study, whose folder is made if need be.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: as `read`.
    """
    known = read(study)
    every = list(dict.fromkeys([*known, *plans]))
    if every == known:
        return
    try:
        make_folder(study)
        write_atomically(study / FILE, "".join(json.dumps(asdict(plan)) + "\n" for plan in every).encode())
    except OSError as error:
        raise ConfigError(f"outputs={study.parent}: {study} cannot be written ({error.strerror})") from None


def in_words(sha256: str, study: Path) -> str:
    """What the study's list says of a plan.

    Raises:
        DataError: as `read`.
    """
    every = read(study)
    if sha256 not in {plan.sha256 for plan in every}:
        return f"not in the study's own list, which has {quantity(len(every), 'plan')}"
    if len(every) == 1:
        return "the only plan of this study"
    tests = quantity(sum(plan.tests for plan in every), "test")
    return f"one of {len(every)} plans of this study, {tests} in all, each plan corrected by itself"


@cache
def _adapter() -> TypeAdapter[Registered]:
    return TypeAdapter(Registered)
