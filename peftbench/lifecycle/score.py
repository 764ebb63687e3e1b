"""A finished run scored on another task of the same labels: out of domain, without training."""

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from peftbench.backbone.model import compute_precision
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose, recipes
from peftbench.config.spec import TaskSpec
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.ground import escape, files
from peftbench.ground.errors import ConfigError, shown
from peftbench.ground.files import expanded
from peftbench.ground.machine import process_state
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.artefact import Recipe, Result, Where, groups_of, settle
from peftbench.lifecycle.parents import Parent
from peftbench.runner.deltas import reload
from peftbench.runner.run import Tokenizing, tokenize_rows
from peftbench.study.cell import Screen
from peftbench.training.evaluation import Evaluator
from peftbench.training.fit import Scores
from peftbench.training.forward import Forward


def lines(run: Path, words: Sequence[str]) -> list[tuple[Path, str, saved_lines.Line]]:
    """Scores of a run as command lines for workers: see `asked.lines`.

    Raises:
        ConfigError: a word is not one of an artefact, or not possible, or the run does not lie under the outputs.
    """
    return [saved_line("score", run, one, one) for one in recipes.swept(words)]


def saved_line(
    command: str, run: Path, words: Sequence[str], place: Sequence[str]
) -> tuple[Path, str, saved_lines.Line]:
    """A command on a run as a line for workers: see `asked.lines`.

    Args:
        place: those of its words that say where the artefact is scored and kept.

    Raises:
        ConfigError: a word of `place` is not one of an artefact, or not possible, or the run lies elsewhere.
    """
    typed, start = groups_of(place), run.resolve()
    cell = compose.cell_from([*place, f"init_from={escape.value(str(start))}"], [start])
    outputs = expanded(cell.outputs) if "outputs" in typed else Path(*start.parts[:-3])
    if not start.is_relative_to(outputs.resolve()):
        raise ConfigError(
            f"outputs={shown(outputs, 100)}: {shown(run, 60)} does not lie there, and its study keeps the line"
        )
    return saved_lines.placed([command, files.place(start, outputs), *words], cell.study, outputs)


def score(run: Parent, where: Where, words: Sequence[str], screen: Screen, known: Collection[str] = ()) -> int:
    """Score a run on the task of `where`, as an artefact; returns the exit code.

    Args:
        words: the command line.
        known: classes outside this package that the run's delta may name.

    Raises:
        ConfigError: the task has other labels than the run's.
        DataError: as `artefact.settle`.
    """
    check_labels(run, where.task)
    name = f"{run.trained_by} of {run.record.cell.task}"
    make = functools.partial(scored, run, where, known=known)
    return settle(Recipe("score", name, {}, [run], words), where, make, screen)


def scored(run: Parent, where: Where, rows: Mapping[str, Split], known: Collection[str] = ()) -> Result:
    """A run's predictions for these rows, and its scores; of several tasks that it learned with that task's head.

    Args:
        known: classes outside this package that the run's delta may name.

    Raises:
        DataError: the run cannot be read.
    """
    head = where.task.name if len(run.task.parts) > 1 else None
    model, tuner, _ = reload(run.folder, known, head)
    protocol = run.protocol
    compute_precision(model, protocol.precision, [*tuner.trainables().values(), *dict(model.head()).values()])
    tokens = tokens_of(run, rows, where.cell.cache)
    forward = Forward(model, protocol.precision, process_state().device)
    evaluator = Evaluator(forward, where.task, protocol.eval_batch_size)
    scores, logits = evaluated(evaluator, tokens, where.task)
    return Result(scores, logits, tokens, run.record.counts, model.weights_sha256)


def check_labels(run: Parent, task: TaskSpec) -> None:
    """Refuse a task whose labels are not the run's, in the same order.

    Raises:
        ConfigError: they are not, or the run learned other tasks.
    """
    own = run.one_task(task.name if len(run.task.parts) > 1 else None)
    if (own.labels, own.score_range) != (task.labels, task.score_range):
        raise ConfigError(f"task={task.name}: its labels are {_labels(task)}; those of {own.name} are {_labels(own)}")


def _labels(task: TaskSpec) -> str:
    return f"scores of {list(task.score_range or ())}" if task.labels is None else ", ".join(task.labels)


def tokens_of(run: Parent, rows: Mapping[str, Split], cache: str) -> Mapping[str, Tokens]:
    """Token ids of these rows as the run would read them; `cache` is the folder that keeps them."""
    model = run.model
    how = Tokenizing(model, weights_folder(model), run.protocol.max_length, cache, run.prompt)
    return tokenize_rows(rows, how)


def evaluated(
    evaluator: Evaluator, tokens: Mapping[str, Tokens], task: TaskSpec
) -> tuple[Scores | None, dict[str, np.ndarray]]:
    """Logits of every split, and the scores of those that have labels."""
    logits = {name: evaluator.predict(split) for name, split in tokens.items()}
    labelled = {name: split for name, split in tokens.items() if split.labels is not None}
    return evaluator.score(labelled, logits, 0, 0.0, task.headline) if labelled else None, logits
