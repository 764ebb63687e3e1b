"""What pydantic cannot say of a cell: the layers, the keys at the top, what is possible only together."""

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftbench.config.bounds import CONTROL, LARGEST, MOST, TOO_LONG, too_long
from peftbench.config.members import member
from peftbench.config.parents import is_to_come, of_update
from peftbench.config.spec import Cell, DataSpec, TaskSpec
from peftbench.config.validate import method_class, show
from peftbench.config.words import GROUPS
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import DELTA_FILE, STUDY

TOP = {"seed": int, "study": str, "outputs": str, "cache": str, "predict_test": bool, "progress": bool, "rerun": str}
TOP |= {"cells_per_gpu": int, "init_head": str}
LEAST = {"seed": 0, "cells_per_gpu": 1}
OF_THE_RUNNER = ("rerun", "cells_per_gpu")  # say how cells are run, not what a cell is
LABEL = re.compile(r"[A-Za-z]\w{0,31}", re.ASCII)
WORDS = {"rerun": ("unfinished", "failed", "all"), "init_head": ("new", "kept")}


def top(keys: Mapping[str, Any], to_come: Collection[Path] = ()) -> Iterator[str]:
    """A line for whatever is wrong with the keys that belong to no group.

    Args:
        to_come: folders of runs that may be named before they have left their delta.
    """
    allowed = [*TOP, "label", "init_from", "checkpoint_every", *GROUPS]
    yield from (f"{key}: there is no such key; {near(key, allowed)}" for key in keys if key not in allowed)
    for key, kind in TOP.items():
        if type(keys.get(key)) is not kind:
            kind_name = {int: "a whole number", str: "a text", bool: "true or false"}[kind]
            yield f"{key}={shown(show(keys.get(key)))}: must be {kind_name}"
        elif kind is str and CONTROL.search(keys[key]):
            yield f"{key}={shown(keys[key])}: must not hold control codes"
        elif key in ("outputs", "cache") and too_long(keys[key]):
            yield f"{key}={shown(keys[key])}: {TOO_LONG}"
        elif kind is int and not LEAST[key] <= keys[key] <= MOST:
            yield f"{key}={shown(keys[key])}: must be at least {LEAST[key]} and at most {MOST}"
    if isinstance(keys.get("study"), str) and not STUDY.fullmatch(keys["study"]):
        yield f"study={shown(show(keys['study']))}: must be letters, digits, '.', '_' and '-' (it names a folder)"
    label = keys.get("label")
    if label is not None and not (isinstance(label, str) and LABEL.fullmatch(label)):
        yield f"label={shown(show(label))}: must be null or a letter and at most 31 letters, digits and '_'"
    for key, words in WORDS.items():
        if isinstance(keys.get(key), str) and keys[key] not in words:
            yield f"{key}={shown(show(keys[key]))}: must be one of {', '.join(words)}"
    every = keys.get("checkpoint_every")
    if every is not None and (type(every) not in (int, float) or not 0 <= every <= LARGEST):
        yield f"checkpoint_every={shown(show(every))}: must be seconds up to {LARGEST:g}, or null"
    yield from folder_of_a_run("init_from", keys.get("init_from"), to_come)


def folder_of_a_run(key: str, value: Any, to_come: Collection[Path] = ()) -> Iterator[str]:
    """A line where it is neither null nor a folder with what a run learned or, of those to come, will learn."""
    if value is not None and not (isinstance(value, str) and _is_run(Path(value), to_come)):
        yield f"{key}={shown(show(value), 100)}: no {DELTA_FILE} there (it must be the folder of a run)"


def _is_run(folder: Path, to_come: Collection[Path]) -> bool:
    return (folder / DELTA_FILE).is_file() or is_to_come(folder, to_come)


def together(cell: Cell, to_come: Collection[Path] = ()) -> None:
    """What is possible by itself and yet not together.

    Args:
        to_come: folders of runs that have not left their delta and record yet.

    Raises:
        ConfigError: every problem.
    """
    problems = [
        f"task.headline={task.headline}: not scored; {near(task.headline, task.metric_names())}"
        for task in cell.task.parts
        if task.headline not in task.metric_names()
    ]
    if cell.task.train is None and cell.init_from is None:
        problems.append(f"task={cell.task.name}: has no training rows; give init_from=<folder of an MNLI run>")
    if cell.init_head == "kept" and cell.init_from is None:
        problems.append("init_head=kept: of which run? init_from=<its folder> says it")
    kind, budget = method_class(cell.method.target), cell.budget
    takes_none = member(kind, "dial") is None and member(kind, "within") is None
    asked = " and ".join(budget.given())
    if len(budget.given()) > 1:
        problems.append(f"{asked}: only one can hold")
    if takes_none and asked:
        problems.append(f"{asked}: {kind.__name__} takes no budget; limit it with scope.layers or scope.kinds")
    if cell.protocol.accumulation > cell.protocol.batch_size:
        problems.append(
            f"protocol.accumulation={cell.protocol.accumulation}: more parts than "
            f"protocol.batch_size={cell.protocol.batch_size} has rows"
        )
    if cell.select.head_factors is not None and cell.protocol.head_lr is None:
        factors = show(list(cell.select.head_factors))
        problems.append(f"select.head_factors={shown(factors)}: needs protocol.head_lr, whose multiples are tried")
    problems += unread(cell.data)
    problems += positions(cell, cell.method.arguments)
    for task in cell.task.parts:
        problems += few_labels(cell, task)
    problems += joint(cell)
    problems += of_update(cell, to_come)
    if cell.selftrain.kind == "list":
        if not cell.shots.few:
            problems.append("selftrain=list: no row of train is without a label; give shots.total or shots.per_class")
        if len(cell.task.parts) == 1 and cell.task.labels is None:
            problems.append(f"selftrain=list: task={cell.task.name} is a regression; a teacher hands on classes")
        if cell.protocol.accumulation > 1:
            problems.append(f"protocol.accumulation={cell.protocol.accumulation}: selftrain=list weighs whole batches")
    if cell.readout.kind == "prompt" and len(cell.task.parts) == 1 and cell.task.prompt is None:
        problems.append(f"readout=prompt: task={cell.task.name} has no template; task.prompt gives one")
    if cell.readout.kind == "prompt" and not cell.model.layout.masked_head:
        problems.append(f"readout=prompt: the layout of {cell.model.name} names no masked_head")
    if problems:
        raise ConfigError(problems)


def unread(data: DataSpec) -> Iterator[str]:
    """A line for every key that says where rows lie and that their source would not look at."""
    if data.source == "sample" and data.path is not None:
        yield f"data.path={shown(data.path)}: not read by data={data.name}, the built-in sample; add data=folder"
    if data.source != "hub" and data.revision is not None:
        yield f"data.revision={shown(data.revision)}: not read by data={data.name}; only data=hub has revisions"


def positions(cell: Cell, arguments: Mapping[str, Any]) -> Iterator[str]:
    """A line where the backbone has no room for rows and the method's own tokens.

    Args:
        arguments: the method's, at its size.
    """
    own = member(method_class(cell.method.target), "own_tokens")(arguments)
    if cell.protocol.max_length + own > (limit := cell.model.positions):
        there = f"{cell.model.name} has {limit} positions" + (f", {own:,} of them for the method's own" if own else "")
        yield f"protocol.max_length={cell.protocol.max_length}: {there}"


def joint(cell: Cell) -> Iterator[str]:
    """A line for whatever several tasks that are learned together do not allow."""
    if len(cell.task.parts) == 1:
        return
    if cell.readout.kind == "prompt":
        yield "readout=prompt: task=joint has a classifier for each task; label words differ from task to task"
    if cell.selftrain.kind != "none":
        yield f"selftrain={cell.selftrain.kind}: task=joint has no rows without labels; a teacher is of one task"
    if cell.select.rule == "one_se":
        yield "select.rule=one_se: task=joint has a mean of several scores, whose standard error is not taken"


def few_labels(cell: Cell, task: TaskSpec) -> Iterator[str]:
    """A line for whatever of the shots a task, or the way of selecting, does not allow."""
    shots, classes = cell.shots, task.num_labels
    if not shots.few:
        return
    if task.train is None:
        yield f"shots: task={task.name} has no training rows"
    if task.labels is None and (shots.per_class is not None or shots.stratified):
        yield f"shots: task={task.name} is a regression, without classes; give shots.total, not stratified"
    if shots.total is not None and shots.total < classes:
        yield f"shots.total={shots.total}: fewer than the {classes} classes of task={task.name}"
    searched = cell.select.factors is not None or cell.select.trials is not None
    if shots.dev == "none" and cell.protocol.selection == "held_out":
        yield "protocol.selection=held_out: of few labelled rows none are held out; give shots.dev=same"
    elif shots.dev == "none" and searched and cell.select.rows == "held_out":
        yield "select.rows=held_out: of few labelled rows none are held out; give shots.dev=same"


def layers(value: Any, depth: int) -> list[int] | None:
    """Layer numbers from a list or a range like "6-11", checked against the depth of the backbone.

    Raises:
        ConfigError: it is none of these, or outside the backbone.
    """
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,4})-(\d{1,4})", value)):
        numbers = list(range(int(match[1]), int(match[2]) + 1))
    elif isinstance(value, int) and not isinstance(value, bool):
        numbers = [value]
    elif isinstance(value, list) and all(type(item) is int for item in value):
        numbers = value
    else:
        raise ConfigError(f"scope.layers={shown(show(value))}: must be a range like 2-5 or a list like [0,5]")
    if not numbers or min(numbers) < 0 or max(numbers) >= depth:
        raise ConfigError(f"scope.layers={shown(show(value))}: outside the backbone, which has layers 0 to {depth - 1}")
    return sorted(set(numbers))
