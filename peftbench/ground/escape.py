"""Texts in the languages that they are put into: what means something there is taken from it. One function each."""

import re
import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from peftbench.ground.errors import printable

LATEX = {"\\": r"\textbackslash{}", "†": r"$^\dagger$", "±": r"$\pm$", "≈": r"$\approx$", "–": "--"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet calculates begins so


def terminal(text: str) -> str:
    """One line of which a terminal obeys nothing."""
    return printable(text)


def shell(words: Sequence[str]) -> str:
    """A command line that can be pasted: every word is a word again, and nothing in it is run."""
    return shlex.join(printable(word) for word in words)


def command(words: Sequence[str]) -> str:
    """The command line that makes a record again, of the words of a cell, or of all that followed the program."""
    is_cell = not words or "=" in words[0]
    return shell(["peftbench", *(["run"] if is_cell else []), *words])


def value(text: str) -> str:
    """A text as the value of an override, whatever signs it has: Hydra reads backslashes as such but before a quote."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda part: part[1] * 2 + part[2].replace("'", "\\'"), text) + "'"


def csv(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def latex(text: str) -> str:
    """Text with everything that means something to LaTeX spelled."""
    return re.sub("|".join(re.escape(key) for key in LATEX), lambda match: LATEX[match[0]], printable(text))


def html(text: str) -> str:
    """Text that holds no tag, and ends no attribute."""
    return escape(text)


def markdown(text: str) -> str:
    """Text of one cell of a table, without tags."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
