"""A cell's readout, tokenizer and loss, which belong together: a prompt's label words are tokens."""

from pathlib import Path
from typing import Any

from peftbench.backbone.model import CLASSIFIER
from peftbench.backbone.readout import Prompt, Readout
from peftbench.backbone.weights import weights_folder
from peftbench.config.few import PromptSpec, ReadoutSpec
from peftbench.config.spec import ModelSpec, TaskSpec
from peftbench.config.validate import parse
from peftbench.data.prompts import PromptTokenizer
from peftbench.data.tokens import Tokenizer, tokenizer_for
from peftbench.ground.errors import DataError
from peftbench.record import Record
from peftbench.training.objective import Objective, ScoreShare


def planned(readout: ReadoutSpec, task: TaskSpec) -> Readout:
    """The readout without a tokenizer, as counting needs it: its label words are any."""
    if (prompt := asked(readout, task)) is None:
        return CLASSIFIER
    return Prompt(tuple(range(len(prompt.words))), 0, readout.head, bounds(task))


def made(readout: ReadoutSpec, task: TaskSpec, model: ModelSpec, weights: Path | None) -> Readout:
    """The readout.

    Args:
        weights: the folder of the model's weights; None: random ones.

    Raises:
        ConfigError: a label word is not one token of this backbone.
        DataError: the tokenizer cannot be read, or has no mask.
    """
    if (prompt := asked(readout, task)) is None:
        return CLASSIFIER
    tokens = PromptTokenizer(tokenizer_for(model, weights), prompt)
    return Prompt(tokens.words, tokens.mask_id, readout.head, bounds(task))


def tokenizer(prompt: PromptSpec | None, model: ModelSpec, weights: Path | None) -> Tokenizer:
    """What makes token ids of rows, in a prompt's template where there is one.

    Raises:
        ConfigError, DataError: as `made`.
    """
    inner = tokenizer_for(model, weights)
    return inner if prompt is None else PromptTokenizer(inner, prompt)


def objective(readout: ReadoutSpec, task: TaskSpec) -> Objective | None:
    """What training makes small where it is not the task's own loss."""
    return None if asked(readout, task) is None or task.labels else ScoreShare(bounds(task) or (0.0, 1.0))


def recorded(record: Record, model: ModelSpec) -> Readout:
    """The readout of a finished run.

    Raises:
        DataError: its part of the record is not of this version, or as `made`.
    """
    readout = readout_spec(record)
    if readout.kind == "classifier":
        return CLASSIFIER
    return made(readout, spec_of(record, TaskSpec, "task"), model, weights_folder(model))


def readout_spec(record: Record) -> ReadoutSpec:
    """How a finished run read its logits; before there was a choice, by a classifier.

    Raises:
        DataError: that part of the record is not of this version.
    """
    spec: ReadoutSpec = spec_of(record, ReadoutSpec, "readout") if "readout" in record.config else ReadoutSpec()
    return spec


def spec_of(record: Record, kind: type[Any], part: str) -> Any:
    """A part of the record's configuration as its dataclass.

    Raises:
        DataError: it is not of this version.
    """
    raw = record.config[part]
    if kind is TaskSpec:
        raw = {"name": getattr(record.cell, part), **raw}
    problems: list[str] = []
    parsed = parse(kind, raw, part, problems)
    if parsed is None or problems:
        raise DataError(f"the record's {part} is not one of this version: {problems[0]}")
    return parsed


def asked(readout: ReadoutSpec, task: TaskSpec) -> PromptSpec | None:
    """The prompt that rows are put into; None: they are read as they are."""
    return task.prompt if readout.kind == "prompt" else None


def bounds(task: TaskSpec) -> tuple[float, float] | None:
    """Of a regression's scores; None: classes."""
    return None if task.labels else task.score_range or (0.0, 1.0)
