"""What a method may have beside its keys and `attach`, and what holds of one that does not have it."""

from collections.abc import Mapping
from typing import Any


def _own_keys(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return dict(arguments)


OPTIONAL: dict[str, Any] = {
    "dial": None,  # the key that a budget turns (rank, width), with which what trains grows; None: there is none
    "within": None,  # within(model, scope, entries) -> the method held to so many entries; None: by its dial
    "budgets_kept": False,  # whether a budget is of what is left in the end, and more trains before
    "alone": False,  # whether it is kept out of strata: no gradient passes it
    "own_tokens": lambda arguments: 0,  # of a yaml's keys: positions that the method takes of every row
    "spelled_out": _own_keys,  # of a yaml's keys: the same, with what it reads from files in the place of their names
    "export_peft": None,  # export_peft(tuner, model, folder): writes PEFT's format; None: it has none
}


def member(method: Any, name: str) -> Any:
    """One of these of a method, or of its class."""
    return getattr(method, name, OPTIONAL[name])
