"""Text to token ids, once per (text, tokenizer, length): the result is kept in a safetensors file by content hash."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from peftbench.config.spec import ModelSpec
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import set_aside, write_atomically
from peftbench.ground.quantity import quantity

VERSION = "2"  # raised when the layout of the cached file changes
KEY = "sha256"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "spiece.model", "tokenizer.model")
SPECIAL = ("pad", "cls", "sep", "bos", "eos")


class Tokenizer(Protocol):
    """Turns rows of one or two texts into ids, special tokens included."""

    sha256: str
    pad_id: int

    def encode(self, texts: Sequence[Sequence[str]], max_length: int) -> tuple[list[list[int]], list[int]]:
        """Ids of every row, and per row how many of them belong to the first segment."""
        ...


@dataclass(frozen=True)
class Mix:
    """Rows of tasks that are learned together.

    Attributes:
        tasks: the number of every row's task (rows,).
        temperature: how an epoch's batches are shared out over tasks.
    """

    tasks: np.ndarray
    temperature: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """A tokenised split.

    Attributes:
        ids: ids of all rows, one after another (tokens,) int32.
        starts: where each row starts, and the end of the last (rows + 1,) int64.
        first: how many ids of each row belong to the first segment (rows,) int32.
        labels: as in `Split`.
        pad_id: id that fills a row up.
        tokenizer: hash of what made the ids.
        mix: where tasks are learned together: whose rows these are.
    """

    name: str
    ids: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    labels: np.ndarray | None
    pad_id: int
    tokenizer: str = ""
    mix: Mix | None = None

    def __len__(self) -> int:
        return len(self.first)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row (rows,)."""
        return np.diff(self.starts)

    def taken(self, rows: np.ndarray) -> "Tokens":
        """The rows with these numbers, in this order, a number as often as it comes."""
        ids = [self.ids[self.starts[row] : self.starts[row + 1]] for row in rows]
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.lengths[rows])])
        labels = None if self.labels is None else self.labels[rows]
        joined = np.concatenate([self.ids[:0], *ids])
        mix = None if self.mix is None else replace(self.mix, tasks=self.mix.tasks[rows])
        return replace(self, ids=joined, starts=starts, first=self.first[rows], labels=labels, mix=mix)

    def followed_by(self, others: "Tokens") -> "Tokens":
        """These rows, then others without labels, which have zeros for them here."""
        assert self.labels is not None
        return replace(
            self,
            ids=np.concatenate([self.ids, others.ids]),
            starts=np.concatenate([self.starts, self.starts[-1] + others.starts[1:]]),
            first=np.concatenate([self.first, others.first]),
            labels=np.concatenate([self.labels, np.zeros(len(others), self.labels.dtype)]),
        )


class PretrainedTokenizer:
    """The backbone's own tokenizer, from the folder its weights came from.

    Raises:
        DataError: the folder has none, it is damaged, or it is not the model's.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise DataError(f"{folder}: no tokenizer there ({', '.join(VOCABULARIES[:3])}, ...)")
        try:
            self._inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except Exception as error:  # whatever its parsers raise: the files are a stranger's
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
            raise DataError(f"{folder}: the tokenizer cannot be read: {reason}") from None
        if problem := _misfit(self._inner, config):
            raise DataError(f"{folder}: the tokenizer is not the model's: {problem}")
        self._folder, self.pad_id = folder, int(self._inner.pad_token_id)
        self.sha256 = hashlib.sha256(self._inner.backend_tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[Sequence[str]], max_length: int) -> tuple[list[list[int]], list[int]]:
        """See `Tokenizer`."""
        encoded = self._inner(
            *[list(column) for column in texts],
            truncation="longest_first",
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=True,
        )
        first = [len(types) - sum(types) for types in encoded["token_type_ids"]]
        return encoded["input_ids"], first

    def special(self) -> dict[str, int]:
        """See `prompts.Pieces`."""
        ids = {name: getattr(self._inner, f"{name}_token_id") for name in ("cls", "sep", "mask")}
        if absent := [name for name, number in ids.items() if number is None]:
            raise DataError(f"{self._folder}: the tokenizer has no {absent[0]} token, which a prompt needs")
        return {name: int(number) for name, number in ids.items()}

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """See `prompts.Pieces`."""
        how = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
        ids: list[list[int]] = self._inner(list(texts), **how)["input_ids"]
        return ids

    def sign(self, sign: str) -> int | None:
        """See `prompts.Pieces`."""
        number = self._inner.get_vocab().get(sign)
        return None if number is None else int(number)

    def word(self, word: str) -> list[int] | None:
        """See `prompts.Pieces`; where spaces are parts of tokens, one is part of this."""
        ids = self.pieces([f" {word}"])[0]
        return None if not ids or self._inner.unk_token_id in ids else ids


def _misfit(tokenizer: Any, config: Mapping[str, Any]) -> str | None:
    """What keeps a tokenizer from being that of the model whose config.json this is; None: nothing."""
    ids, rows = tokenizer.get_vocab().values(), config.get("vocab_size")
    if tokenizer.pad_token_id is None:
        return "it has no padding token"
    if isinstance(rows, int) and max(ids) >= rows:
        return f"its ids go to {max(ids)}, the embedding has {quantity(rows, 'row')}"
    for name in SPECIAL:
        key = f"{name}_token_id"
        own, stated = getattr(tokenizer, key), config.get(key)
        if own is not None and stated is not None and own != stated:
            return f"its {key} is {own}, config.json has {stated}"
    words = tokenizer("the film is a good one", add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and set(words) <= {tokenizer.unk_token_id}:
        return f"every word becomes {tokenizer.unk_token}"
    return None


class HashTokenizer:
    """Words hashed into the vocabulary: lets a backbone with random weights run where no vocabulary is."""

    def __init__(self, vocabulary: int, pad_id: int) -> None:
        self.pad_id = pad_id
        self.sha256 = hashlib.sha256(f"hash:{vocabulary}:{pad_id}".encode()).hexdigest()
        self._special = [i for i in range(3) if i != pad_id][:2]
        self._first_word, self._words = 3, min(vocabulary, pad_id if pad_id > 3 else vocabulary) - 3

    def encode(self, texts: Sequence[Sequence[str]], max_length: int) -> tuple[list[list[int]], list[int]]:
        """See `Tokenizer`."""
        start, end = self._special
        room = (max_length - 1 - len(texts)) // len(texts)
        rows, first = [], []
        for row in zip(*texts, strict=True):
            segments = [[self._word(word) for word in text.lower().split()[:room]] + [end] for text in row]
            rows.append([start, *(i for segment in segments for i in segment)])
            first.append(1 + len(segments[0]))
        return rows, first

    def special(self) -> dict[str, int]:
        """See `prompts.Pieces`; the mask is the first of the words, which no piece is."""
        return {"cls": self._special[0], "sep": self._special[1], "mask": self._first_word}

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """See `prompts.Pieces`."""
        return [[max(self._word(word), self._first_word + 1) for word in text.lower().split()] for text in texts]

    def sign(self, sign: str) -> int | None:
        """See `prompts.Pieces`."""
        return self.pieces([sign])[0][0]

    def word(self, word: str) -> list[int] | None:
        """See `prompts.Pieces`."""
        return self.pieces([word])[0]

    def _word(self, word: str) -> int:
        return self._first_word + zlib.crc32(word.encode()) % self._words


def tokenizer_for(spec: ModelSpec, folder: Path | None) -> PretrainedTokenizer | HashTokenizer:
    """The tokenizer that belongs to the weights in `folder`, or the hashing one where there are none."""
    if folder is None:
        return HashTokenizer(int(spec.config["vocab_size"]), int(spec.config["pad_token_id"]))
    return PretrainedTokenizer(folder)


def tokenize(split: Split, tokenizer: Tokenizer, max_length: int, cache: Path) -> Tokens:
    """The split's token ids, from the cache where the same text was tokenised before.

    A damaged cache file is never trusted: it is set aside and written anew.

    Raises:
        ConfigError: the cache cannot be written.
    """
    key = hashlib.sha256(f"{VERSION}:{split.sha256}:{tokenizer.sha256}:{max_length}".encode()).hexdigest()
    path = cache / "tokens" / f"{key[:32]}.safetensors"
    arrays = _read(path, rows=len(split))
    if arrays is None:
        ids, first = tokenizer.encode(split.texts, max_length)
        lengths = np.asarray([len(row) for row in ids], dtype=np.int64)
        arrays = {
            "ids": np.asarray([i for row in ids for i in row], dtype=np.int32),
            "starts": np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            "first": np.asarray(first, dtype=np.int32),
        }
        try:
            write_atomically(path, save(arrays, metadata={KEY: _digest(arrays)}))
        except OSError as error:
            raise ConfigError(
                f"cache={shown(cache, 100)}: cannot be written ({error.strerror}); cache=... names another folder"
            ) from None
    return Tokens(
        split.name, arrays["ids"], arrays["starts"], arrays["first"], split.labels, tokenizer.pad_id, tokenizer.sha256
    )


def _read(path: Path, rows: int) -> dict[str, np.ndarray] | None:
    if not os.path.exists(path):  # of a name that is too long too
        return None
    try:
        with safe_open(path, "np") as file:
            digest = (file.metadata() or {}).get(KEY)
            arrays = {name: file.get_tensor(name) for name in ("ids", "starts", "first")}
        intact = digest == _digest(arrays) and len(arrays["first"]) == rows
    except (OSError, SafetensorError):
        intact = False
    if not intact:
        set_aside(path, "damaged; the text is tokenised anew")
        return None
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        sha256.update(f"{name}:{arrays[name].dtype}:{arrays[name].shape}".encode())
        sha256.update(arrays[name].tobytes())
    return sha256.hexdigest()
