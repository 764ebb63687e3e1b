"""Rows in a template with one masked token, as LM-BFF renders them (Gao et al. 2021, arXiv 2012.15723)."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from peftbench.config.few_labels import PART, PromptSpec
from peftbench.ground.errors import ConfigError, shown

VERSION = "prompt-1"  # raised when a row is rendered otherwise


class Pieces(Protocol):
    """A tokenizer that can be asked for parts of a row."""

    sha256: str
    pad_id: int

    def special(self) -> dict[str, int]:
        """Ids of cls, sep and mask.

        Raises:
            DataError: it has none of one of them.
        """
        ...

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text by itself; what looks like a special token in it is plain text."""
        ...

    def sign(self, sign: str) -> int | None:
        """The id of one character in the place of a token; None: the vocabulary has no such token."""
        ...

    def word(self, word: str) -> list[int] | None:
        """Ids of a word in the middle of a sentence; None: it is unknown."""
        ...


class PromptTokenizer:
    """Renders rows by a template; a `Tokenizer`.

    Raises:
        ConfigError: a label word is not one token, or two of them are the same one.
        DataError: the tokenizer has no mask.
    """

    def __init__(self, inner: Pieces, prompt: PromptSpec) -> None:
        self.pad_id = inner.pad_id
        self._special = inner.special()
        self.mask_id = self._special["mask"]
        self._inner, self._parts = inner, [part for part in prompt.template.split("*") if part]
        self.words = tuple(self._label_word(word) for word in prompt.words)
        for i, word in enumerate(self.words):
            if word in self.words[:i]:
                first, second = prompt.words[self.words.index(word)], prompt.words[i]
                raise ConfigError(
                    f"task.prompt.words: {shown(first)} and {shown(second)} are one token of this backbone"
                )
        self.sha256 = hashlib.sha256(f"{VERSION}:{inner.sha256}:{prompt.template}".encode()).hexdigest()

    def encode(self, texts: Sequence[Sequence[str]], max_length: int) -> tuple[list[list[int]], list[int]]:
        """See `Tokenizer`; all of a row is its first segment.

        Where a row is too long, the end of its first text goes first, then that of its second: never the template.

        Raises:
            ConfigError: the template alone is longer than max_length.
        """
        fixed: list[list[int] | None] = []
        columns: list[list[list[int]]] = []
        for part in self._parts:
            if (match := PART.fullmatch(part)) is None:
                fixed.append(self._fixed(part))
                continue
            fixed.append(None)
            columns.append(self._inner.pieces([_spelled(text, match) for text in texts[int(match["text"])]]))
        room = max_length - sum(len(ids) for ids in fixed if ids is not None)
        if room < 0:
            raise ConfigError(f"protocol.max_length={max_length}: the template alone has {max_length - room} tokens")
        rows = [_row(fixed, _cut(held, room)) for held in zip(*columns, strict=True)]
        return rows, [len(row) for row in rows]

    def _fixed(self, part: str) -> list[int]:
        if (name := part.removesuffix("+")) in self._special:
            return [self._special[name]]
        sign = self._inner.sign(part) if len(part) == 1 else None
        return self._inner.pieces([part.replace("_", " ")])[0] if sign is None else [sign]

    def _label_word(self, word: str) -> int:
        ids = self._inner.word(word)
        if ids is None or len(ids) != 1:
            pieces = "unknown to" if ids is None else f"{len(ids)} tokens of"
            raise ConfigError(
                f"task.prompt.words: {shown(word)} is {pieces} this backbone's tokenizer, and must be one"
            )
        return ids[0]


def _spelled(text: str, match: re.Match[str]) -> str:
    """A text as the template wants it: lowered first, then cut, then behind a space."""
    text = text[:1].lower() + text[1:] if match["lower"] else text
    return (" " if match["space"] else "") + (text[:-1] if match["cut"] else text)


def _cut(texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """The texts of a row in so much room: what is too much goes from the end of the first, then of the next."""
    kept = []
    over = sum(map(len, texts)) - room
    for ids in texts:
        gone = min(max(over, 0), len(ids))
        kept.append(ids[: len(ids) - gone])
        over -= gone
    return kept


def _row(fixed: Sequence[list[int] | None], texts: list[list[int]]) -> list[int]:
    held = iter(texts)
    return [i for ids in fixed for i in (next(held) if ids is None else ids)]
