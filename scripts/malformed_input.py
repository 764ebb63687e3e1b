"""What one malformed input is, and what a line must hold that names a key with its value."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftbench.config import compose

TINY = [
    "model=bert_tiny", "model.weights=random", "model.config.vocab_size=2000", "data.limit=48", "tracker=none",
    "protocol.max_steps=2", "progress=false",
]  # fmt: skip
SHOWN = 12  # characters of a value that a line must hold: the rest may be left out
Prepare = Callable[[Path], object]  # makes the files of an input in its folder
Naming = str | tuple[str, ...]  # a text that the lines must hold, or several of which they must hold one


@dataclass(frozen=True)
class Input:
    """One malformed input.

    Attributes:
        words: the command line after `peftbench`.
        naming: what its lines must contain: the field, the value, the file.
        files: called with the folder that the command runs in.
        environment: variables on top of this process's.
    """

    kind: str
    words: Sequence[str]
    naming: Sequence[Naming]
    files: Prepare | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def unnamed(made: Input, text: str) -> list[str]:
    """What the lines of an answer do not hold of what they must name."""
    wanted = [(item,) if isinstance(item, str) else item for item in made.naming]
    return [" or ".join(item) for item in wanted if not any(name in text for name in item)]


def beside(key: str, typed: str) -> tuple[str, ...]:
    """A key with its value as a line may have them: as typed, as read, or the part of a list that is wrong.

    The value stands beside the key: a "3" alone is in most lines.
    """
    name, text = key.rpartition(".")[2], typed.strip("'\"")
    forms = [f"{name}={text[:SHOWN]}"] if text else [f"{name}=''"]
    if text.isdecimal() and len(text) > SHOWN:
        forms.append(f"{name}={float(text):g}")
    if text.startswith("{"):
        forms.append(f'{name}={{"')
    if text.startswith("[") and text != "[]":
        items = [item[:SHOWN] for item in text.removeprefix("[").removesuffix("]").split(",")]
        forms += [form for item in items[:1] for form in (f"{name}=[{item}", f'{name}=["{item}')]
        forms += [f"{name}.{number}={item}" for number, item in enumerate(items)]
        forms += [form for item in items for form in (f"{name}={item}", f"{name} names {item}", f"{name}: '{item}'")]
    return tuple(dict.fromkeys(forms))


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a nested mapping that holds no mapping, and its value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def fields() -> dict[str, tuple[Any, str]]:
    """Every key that a cell may have -> its value, and a method that has it."""
    values: dict[str, tuple[Any, str]] = {}
    for method in compose.words("method"):
        cell = compose.resolved(compose.load([*TINY, f"method={method}"]))
        for key, value in leaves(cell):
            values.setdefault(key, (value, method))
    return values
