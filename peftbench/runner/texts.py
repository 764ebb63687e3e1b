"""Text without labels, to train a backbone on: read, cut into rows to train on and rows held out, tokenised."""

from pathlib import Path

import numpy as np

from peftbench.config.spec import DataSpec, Task
from peftbench.data.rows import Rows
from peftbench.data.split import Split, make_split
from peftbench.data.tokens import Tokenizer, Tokens, tokenize
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.seeds import stream

MOST_TEXT = 1 << 30  # bytes of one file
HELD_OUT = 256  # rows of text at most, and a tenth of all, that measure the training


def read(text: str | None, data: DataSpec, task: Task) -> Split:
    """The rows of a file, or of a folder of *.txt, or of the task's train split, without labels.

    Args:
        text: the file or folder; None: the task's rows.

    Raises:
        ConfigError: there is neither a text nor a train split.
        DataError: the text cannot be read.
    """
    if text is not None:
        return read_files(text, "make.text=")
    if task.train is None or len(task.parts) > 1:
        raise ConfigError(f"task={task.name}: has no training rows of its own; give make.text")
    return make_split("text", Rows(data, task, None, False).read()[task.train].texts, None)


def read_files(text: str, switch: str) -> Split:
    """The lines of a file, or of a folder of *.txt, as rows; empty ones are left out.

    Args:
        switch: what names the text, for the line that refuses it.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(text).expanduser()
    paths = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    lines: list[str] = []
    for one in paths:
        try:
            content = untrusted.read_bytes(one, MOST_TEXT).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{switch}{one}: not UTF-8 at byte {error.start}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{switch}{one}: {getattr(error, 'strerror', None) or error}") from None
        lines += [line.strip() for line in content.splitlines() if line.strip()]
    return make_split("text", (tuple(lines),), None)


def cut(rows: Split, most: int, seed: int, text: str | None) -> tuple[Split, Split]:
    """Rows to train on, so many at most and chosen by the seed, and rows held out.

    Args:
        text: what was read, for the line that refuses.

    Raises:
        DataError: there are no two rows.
    """
    if len(rows) < 2:
        raise DataError(f"make.text={text or 'null'}: no two rows of text, one to train on and one to hold out")
    order = np.random.default_rng(stream(seed, "held_out")).permutation(len(rows))
    kept = max(1, min(HELD_OUT, len(rows) // 10))
    return rows.rows(order[kept:][:most], "text"), rows.rows(order[:kept], "held_out")


def tokens(parts: tuple[Split, Split], tokenizer: Tokenizer, max_length: int, cache: str) -> tuple[Tokens, Tokens]:
    """Token ids of the rows to train on and of those held out; `cache` is the folder that keeps them."""
    train, held_out = (tokenize(part, tokenizer, max_length, Path(cache).expanduser()) for part in parts)
    return train, held_out


def keep_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer of a folder into another."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
