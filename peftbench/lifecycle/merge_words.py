"""What the words of `peftbench merge` ask for: which runs, merged how, kept where."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from peftbench.config import compose, recipes
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import check_study, expanded
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.artefact import PLACE, Where, where_of
from peftbench.lifecycle.merge import Group, Job
from peftbench.lifecycle.merging import METHODS, Merge
from peftbench.lifecycle.parents import Parent
from peftbench.lifecycle.runs import by_seed, joint_run

OWN = ("from", "method", "budget", "seed", "tasks")


@dataclass(frozen=True)
class Asked:
    """One way of merging the runs of one seed; `where` by task."""

    group: Group
    job: Job
    where: Mapping[str, Where]


def ask(words: Sequence[str], known: Collection[str] = ()) -> list[Asked]:
    """Everything that is asked for, checked before anything is computed; runs of one seed share their group.

    Args:
        known: classes outside this package that deltas may name.

    Raises:
        ConfigError: a word is not one of merge, not possible, or asks for runs that are not there.
        DataError: a run cannot be read.
    """
    every = [asked for one in recipes.swept(words) for asked in _of(one)]
    groups: dict[tuple[str, ...], Group] = {}
    result = []
    for key, parents, job, where, cache in sorted(every, key=lambda item: item[0]):  # a group's ways one after another
        if key not in groups:
            joint = joint_run(parents[0].outputs, parents[0].record.cell.study, parents)
            groups[key] = Group(parents, cache, known, joint)
        result.append(Asked(groups[key], job, where))
    return result


@dataclass(frozen=True)
class _Words:
    """The words of one merge, of which every value is possible.

    Attributes:
        typed: key -> value of those that choose runs.
        tasks, seeds: those that are wanted; none: all.
        place: those that say where the artefacts are scored and kept.
        cell: what `place` describes.
    """

    way: Merge
    typed: Mapping[str, str]
    tasks: Sequence[str]
    seeds: Sequence[int]
    place: Sequence[str]
    cell: Cell


def lines(words: Sequence[str]) -> list[tuple[Path, str, saved_lines.Line]]:
    """The same as command lines for workers, each with the folder of studies and the study that keeps it; the runs need
    not be there yet.

    Raises:
        ConfigError: a word is not one of merge, or not possible.
    """
    read = [(["merge", *one], _read(one).cell) for one in recipes.swept(words)]
    return [saved_lines.placed(line, cell.study, expanded(cell.outputs)) for line, cell in read]


def _of(words: Sequence[str]) -> list[tuple[tuple[str, ...], list[Parent], Job, dict[str, Where], str]]:
    read = _read(words)
    typed, place = read.typed, read.place
    word = next(item.partition("=")[2] for item in words if item.startswith("merge="))
    outputs = expanded(read.cell.outputs)
    runs = by_seed(outputs, typed["from"], typed["method"], typed.get("budget"), read.tasks, read.seeds)
    asked = []
    for seed, parents in runs.items():
        where = {one.record.cell.task: where_of(place, one) for one in parents}
        group = (typed["from"], typed["method"], str(typed.get("budget")), *where, f"{seed:09d}", str(place))
        line = ["merge", *(item for item in words if not item.startswith("seed=")), f"seed={seed}"]
        cache = next(iter(where.values())).cell.cache
        asked.append((group, parents, Job(word, read.way, line), where, cache))
    return asked


def _read(words: Sequence[str]) -> _Words:
    way, rest = recipes.recipe("merge", words, METHODS.__getitem__)
    typed = {key: value for key, _, value in (item.partition("=") for item in rest)}
    for key in typed:
        if key.partition(".")[0] not in (*OWN, *PLACE):
            raise ConfigError(f"{shown(key)}: not a word of merge; {near(key, (*OWN, *PLACE, 'merge'))}")
    for key in ("from", "method"):
        if key not in typed:
            raise ConfigError(
                f"{key}: must be given, {'the study whose' if key == 'from' else 'of the'} runs are merged"
            )
    check_study(typed["from"], "from=")
    place = [item for item in rest if item.partition("=")[0].partition(".")[0] in PLACE]
    return _Words(way, typed, _tasks(typed), _seeds(typed), place, compose.cell_from(place))


def _tasks(typed: Mapping[str, str]) -> list[str]:
    tasks = yaml.safe_load(typed.get("tasks", "[]")) if len(typed.get("tasks", "")) < 1000 else None
    if not isinstance(tasks, list) or len({str(task) for task in tasks}) < len(tasks):
        raise ConfigError(f"tasks={shown(typed['tasks'])}: must be a list of different tasks, [cola,mrpc]")
    return [str(task) for task in tasks]


def _seeds(typed: Mapping[str, str]) -> list[int]:
    seed = typed.get("seed")
    if seed is None:
        return []
    if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
        raise ConfigError(f"seed={shown(seed)}: must be a whole number")
    return [int(seed)]
