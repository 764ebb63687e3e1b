"""What the words of `peftbench edit` ask for: which run, what of it, and which runs of other tasks beside it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from peftbench.config import recipes
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.artefact import PLACE, where_of
from peftbench.lifecycle.behaviour import answer_of, check_prone
from peftbench.lifecycle.edit import Asked, Job
from peftbench.lifecycle.editable import Edit, EditableRun
from peftbench.lifecycle.folded_run import FoldedRun
from peftbench.lifecycle.parents import Parent, check_plain
from peftbench.lifecycle.runs import matching
from peftbench.lifecycle.score import saved_line
from peftbench.runner.run import read_rows

GROUP = "edit"
DEFAULT = "surgery"
BESIDE = "collateral"  # which other tasks' runs are scored on the edits


@dataclass(frozen=True)
class _Words:
    """The words of one edit, of which every value is possible.

    Attributes:
        word: of conf/edit.
        place: those that say where the artefacts are scored and kept.
        beside: tasks; None: all that there are.
    """

    edit: Edit
    word: str
    place: Sequence[str]
    beside: tuple[str, ...] | None


def ask(words: Sequence[str], run: Parent, known: Collection[str] = (), options: Sequence[str] = ()) -> list[Job]:
    """Everything that is asked for, checked before weights are loaded: a job for every place that it is kept in.

    Args:
        known: classes outside this package that deltas may name.
        options: of the command line, which records name after the words.

    Raises:
        ConfigError: a word is not one of edit, or not possible, or the run or its rows cannot show the behaviour.
        DataError: rows or a run cannot be read.
    """
    check_run(run)
    asked: dict[tuple[tuple[str, ...], tuple[str, ...] | None], list[tuple[_Words, list[str]]]] = {}
    for one in recipes.swept(words):
        read = _read(one)
        answer_of(read.edit.word, run.one_task())
        asked.setdefault((tuple(read.place), read.beside), []).append((read, ["edit", str(run.folder), *one, *options]))
    edited: dict[str, EditableRun] = {}
    return [_job(run, place, beside, edits, known, edited) for (place, beside), edits in asked.items()]


def lines(run: Path, words: Sequence[str]) -> list[tuple[Path, str, saved_lines.Line]]:
    """The same as command lines for workers; the run need not be there yet.

    Raises:
        ConfigError: a word is not one of edit, or not possible.
    """
    result = []
    for one in recipes.swept(words):
        read = _read(one)
        result.append(saved_line("edit", run, one, read.place))
    return result


def check_run(run: Parent) -> None:
    """Refuse a run that is not to be edited.

    Raises:
        ConfigError: it learned several tasks, was read by a prompt, or had few labels.
    """
    if len(run.task.parts) > 1:
        raise ConfigError(f"{run.folder}: learned several tasks together; an edit is of a run of one task")
    check_plain(run, "edited")
    if run.one_task().train is None or not run.one_task().dev:
        raise ConfigError(f"{run.folder}: task={run.record.cell.task} has no rows to fit a probe on, or none to score")


def _read(words: Sequence[str]) -> _Words:
    default = [] if any(word.startswith(f"{GROUP}=") for word in words) else [f"{GROUP}={DEFAULT}"]
    edit, rest = recipes.recipe(GROUP, [*default, *words], lambda word: Edit)
    word = next((one.partition("=")[2] for one in words if one.startswith(f"{GROUP}=")), DEFAULT)
    for one in rest:
        key = one.partition("=")[0].lstrip("+~")
        if key != BESIDE and key.partition(".")[0] not in PLACE:
            raise ConfigError(f"{shown(key)}: not a word of edit; {near(key, (*PLACE, BESIDE, GROUP))}")
    if edit.behaviour is None:
        raise ConfigError("edit.behaviour: must be given: predicts:LABEL, overlap or negation")
    typed = [one.partition("=")[2] for one in rest if one.startswith(f"{BESIDE}=")]
    place = [one for one in rest if not one.startswith(f"{BESIDE}=")]
    return _Words(edit, word, place, _tasks(typed[-1]) if typed else None)


def _tasks(text: str) -> tuple[str, ...]:
    tasks = yaml.safe_load(text) if len(text) < 1000 else None
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise ConfigError(f"{BESIDE}={shown(text)}: must be a list of tasks, [cola,mrpc]; [] for none")
    return tuple(dict.fromkeys(tasks))


def _job(
    run: Parent,
    place: Sequence[str],
    beside: tuple[str, ...] | None,
    edits: Sequence[tuple[_Words, list[str]]],
    known: Collection[str],
    edited: dict[str, EditableRun],
) -> Job:
    where = where_of(place, run, PLACE)
    cache = where.cell.cache
    one = edited.setdefault(cache, EditableRun(run, cache, known))
    scored = read_rows(where.rows)[run.one_task().scored()[run.one_task().headline][0]]
    for read, _ in edits:
        check_prone(read.edit.word, one.behaviour(read.edit), scored)
    one.forget()
    beside_it, left_out = _others(run, beside)
    others = [(FoldedRun(other, cache, known), where_of(place, other, PLACE)) for other in beside_it]
    return Job(one, where, [Asked(read.edit, read.word, line) for read, line in edits], others, left_out)


def _others(run: Parent, wanted: tuple[str, ...] | None) -> tuple[list[Parent], list[str]]:
    """Finished runs on other tasks, of the same study, method, budget, seed and backbone; and a line for each task of
    that study and method which has none of them.

    Raises:
        ConfigError: a wanted one is not there, or there are two for one task.
        DataError: a record cannot be read.
    """
    if wanted == () or run.record.made is not None:
        return [], []
    cell, by_task, left_out = run.record.cell, dict[str, Parent](), dict[str, str]()
    for other in matching(run.outputs, cell.study, method=cell.method, budget=cell.budget):
        task = other.record.cell.task
        if task == cell.task or (wanted is not None and task not in wanted):
            continue
        if (why := _unlike(run, other)) is not None:
            if other.record.cell.seed == cell.seed or task not in left_out:
                left_out[task] = why
            continue
        if task in by_task:
            both = f"{by_task[task].folder.parent.name} and {other.folder.parent.name}"
            raise ConfigError(f"{cell.study}: {both} are both of {cell.method} on {task}; {BESIDE}=[...] leaves it out")
        by_task[task] = other
    if missing := [task for task in wanted or () if task not in by_task]:
        row = f"{cell.method}, seed {cell.seed}, on its backbone"
        raise ConfigError(f"{BESIDE}: no finished run of {shown(missing[0])} in study {cell.study} with {row}")
    of = f"{cell.task}, seed {cell.seed}: collateral without"
    return list(by_task.values()), [f"{of} {task}, {why}" for task, why in left_out.items() if task not in by_task]


def _unlike(run: Parent, other: Parent) -> str | None:
    """Why a run of the same row is not scored on an edit; None: it is."""
    if other.record.cell.seed != run.record.cell.seed:
        return "which has no finished run of this seed"
    if not other.is_plain:
        return "whose run had few labels or a prompt"
    return None if _same_backbone(run, other) else "whose run is on another backbone"


def _same_backbone(one: Parent, other: Parent) -> bool:
    return (one.record.config["model"], one.record.hashes.weights) == (
        other.record.config["model"],
        other.record.hashes.weights,
    )
