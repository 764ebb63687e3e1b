"""How the words of a command are read: what is wrong with a switch gets one line, as every other input."""

import math
import re
from argparse import ArgumentParser, ArgumentTypeError
from typing import NoReturn

from peftbench.ground.errors import ConfigError, shown

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Parser(ArgumentParser):
    """Refuses as everything else does: no usage over several lines, and no value in full."""

    def error(self, message: str) -> NoReturn:
        """See `ArgumentParser.error`.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{self.prog}: {message} ({self.prog} --help)")


def seconds(word: str) -> float:
    """A duration such as 3h50m, 90m or 45s."""
    if not re.fullmatch(r"(\d{1,6}[dhms])+", word, re.ASCII):
        raise ArgumentTypeError(f"'{shown(word, 40)}' is no duration such as 3h50m, 90m or 45s")
    return float(sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([dhms])", word)))


def count(word: str, most: int = 1_000_000) -> int:
    """A whole number, at least 1."""
    if not (re.fullmatch(r"\d{1,9}", word, re.ASCII) and 1 <= int(word) <= most):
        raise ArgumentTypeError(f"'{shown(word, 40)}' is no whole number from 1 to {most:,}")
    return int(word)


def number(word: str) -> float:
    """A number, which may be any that is finite."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"'{shown(word, 40)}' is no number")
    return value
