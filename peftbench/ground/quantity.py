"""Numbers before nouns, as a sentence has them."""

import re

HISSING = ("s", "x", "z", "ch", "sh")


def quantity(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: 1 cell, 2 cells, 1,234 cells.

    Args:
        number: whole, at least 0.
        one: what follows 1, a noun or more than that ("run waits to be sent").
        many: what follows any other number; None: `one`, a noun, in the plural.
    """
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {plural(one) if many is None else many}"


def plural(noun: str) -> str:
    """A noun in the plural, by English's rule: cells, classes, entries."""
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(HISSING) else f"{noun}s"
