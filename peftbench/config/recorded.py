"""Parts of a record's configuration, as this version has them."""

from typing import TypeVar

from peftbench.config.validate import parse
from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import Record

NAMED = ("task", "data")  # whose names the record keeps with the cell
T = TypeVar("T")


def part(record: Record, kind: type[T], name: str) -> T:
    """One part of the configuration as its dataclass.

    Args:
        kind: a class of `config.spec`.
        name: of the part, a key of the configuration.

    Raises:
        DataError: it is not one of this version.
    """
    raw = record.config[name]
    if name in NAMED:
        raw = {"name": getattr(record.cell, name), **raw}
    try:
        return parse(kind, raw, name)
    except ConfigError as error:
        raise DataError(f"the record's {name} is not one of this version: {error.every[0]}") from None
