"""The two ways in which what a person gave us can be wrong, and how a run can go wrong by itself."""

import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

MOST_LINES = 6
LONGEST_LINE = 200  # characters
MOST_WORDS = 12  # of a list of what is allowed


class BadInput(Exception):
    """What a person gave is wrong: one line per problem, and the exit code that says which kind it is.

    Attributes:
        every: all problems, each once and whole.
    """

    exit_code = 1

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.every = list(dict.fromkeys([problems] if isinstance(problems, str) else problems))
        super().__init__("\n".join(self.every))

    @property
    def problems(self) -> list[str]:
        """The problems as they are printed: six lines of 200 characters at most, without control codes."""
        lines = [short_line(problem) for problem in self.every]
        if len(lines) > MOST_LINES:
            lines[MOST_LINES - 1 :] = [f"and {len(lines) - MOST_LINES + 1} more problems"]
        return lines


class ConfigError(BadInput):
    """A word, key or value of the configuration is not possible."""

    exit_code = 2


class DataError(BadInput):
    """Data, weights or records cannot be read as what they should be."""

    exit_code = 3


class Diverged(Exception):
    """The training loss is no longer a finite number."""

    exit_code = 4


def warn(*lines: object) -> None:
    """Say something beside what a command prints, on the terminal's other stream. Below commands only this prints."""
    print(*lines, sep="\n", file=sys.stderr)


def near(word: object, allowed: Iterable[object]) -> str:
    """Say what is allowed in the place of `word`, near misses first."""
    words = sorted({str(item) for item in allowed})
    close = get_close_matches(str(word), words, n=3, cutoff=0.5)
    close = close or [item for item in words if str(word) and str(word) in item][:3]
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"allowed: {first_of(words, 130)}"


def first_of(words: Sequence[str], room: int = 60) -> str:
    """As many of these words as a line has room for, none of them cut, and three dots where some are left out."""
    fits = list(words[:MOST_WORDS])
    while len(fits) > 1 and len(", ".join(fits)) > room:
        fits.pop()
    return ", ".join(fits if len(fits) == len(words) else [*fits, "..."])


def shown(value: object, limit: int = 60) -> str:
    """A stranger's value as a line may hold it: at most `limit` characters, the middle left out, no control codes."""
    return _middle_out(printable(_middle_out(str(value), limit)), limit)


def short_line(problem: str, limit: int = LONGEST_LINE) -> str:
    """A problem as a line of at most so many characters: what it is about is shortened before what is wrong with it."""
    subject, colon, reason = problem.partition(": ")
    return shown(f"{shown(subject, max(60, limit - len(colon + reason)))}{colon}{reason}", limit)


def first_line(error: BaseException) -> str:
    """What an error says, on one short line; the name of its kind where it says nothing."""
    return shown(next(iter(str(error).strip().splitlines()), "") or type(error).__name__, 120)


def printable(text: str) -> str:
    """The same on one line that a terminal obeys nothing of: control codes, and what turns text around, are spelled."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _middle_out(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 3]}...{text[-tail:]}"
