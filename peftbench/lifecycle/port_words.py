"""What the words of `peftbench port` ask for: which runs, onto which backbone, kept where."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftbench.backbone.weights import weights_sha256
from peftbench.config import compose, recipes
from peftbench.config.spec import Cell, ModelSpec
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import check_study, expanded
from peftbench.lifecycle import port_training, saved_lines
from peftbench.lifecycle.artefact import PLACE, WORDS, where_of
from peftbench.lifecycle.parents import Parent, check_plain
from peftbench.lifecycle.patch import Patch, check_fit
from peftbench.lifecycle.port import Job, Port
from peftbench.lifecycle.runs import matching

CHOOSE = ("method", "budget", "task", "seed")  # runs of the study
GROUP = "port"


def ask(words: Sequence[str], known: Collection[str] = (), searchpath: str | None = None) -> list[Job]:
    """Everything that is asked for, checked before anything is computed.

    Args:
        known: classes outside this package that deltas may name.
        searchpath: the user's own configuration, which names them.

    Raises:
        ConfigError: a word is not one of port, not possible, or asks for runs that are not there or do not fit.
        DataError: a run, or the newer backbone, cannot be read.
    """
    patches: dict[tuple[Path, str], Patch] = {}
    jobs = [job for one in recipes.swept(words) for job in _of(one, known, patches)]
    jobs = [replace(job, searchpath=searchpath) for job in jobs]
    for patch in patches.values():
        check_plain(patch.run, "ported")
    for old, new in {repr(patch.run.model): (patch.run.model, patch.model) for patch in patches.values()}.values():
        check_fit(old, new)
    for job in jobs:
        if job.keys.steps:
            port_training.check(job)
        if not job.keys.is_whole and job.patch.change is None:
            raise ConfigError(f"port.scale={job.keys.scale}: {job.method} is no change of weights that can be scaled")
        job.patch.forget()
    return sorted(jobs, key=lambda job: (str(job.patch.run.folder), job.keys.steps))  # what a run needs once, together


@dataclass(frozen=True)
class _Words:
    """The words of one port, of which every value is possible.

    Attributes:
        typed: key -> value of those that are no key of port.
        place: those that say where the artefacts are scored and kept, and on which backbone.
        cell: what `place` describes.
    """

    keys: Port
    typed: Mapping[str, str]
    place: Sequence[str]
    cell: Cell


def lines(words: Sequence[str]) -> list[tuple[Path, str, saved_lines.Line]]:
    """The same as command lines for workers: see `asked.lines`."""
    read = [(["port", *one], _read(one).cell) for one in recipes.swept(words)]
    return [saved_lines.placed(line, cell.study, expanded(cell.outputs)) for line, cell in read]


def _of(words: Sequence[str], known: Collection[str], patches: dict[tuple[Path, str], Patch]) -> list[Job]:
    read = _read(words)
    chosen = {key: read.typed[key] for key in CHOOSE if key in read.typed}
    runs = matching(expanded(read.cell.outputs), read.typed["from"], **chosen)
    return [_job(run, read.keys, words, read.place, known, patches) for run in _older(runs, read.cell.model)]


def _read(words: Sequence[str]) -> _Words:
    default = [] if any(word.startswith(f"{GROUP}=") for word in words) else [f"{GROUP}=default"]
    keys, rest = recipes.recipe(GROUP, [*default, *words], lambda word: Port)
    typed = {key: value for key, _, value in (item.partition("=") for item in rest)}
    allowed = ("from", *CHOOSE, *PLACE, "model")
    for key in typed:
        if key.partition(".")[0] not in allowed or (key.partition(".")[0] in ("from", *CHOOSE) and "." in key):
            raise ConfigError(f"{shown(key)}: not a word of port; {near(key, (*allowed, GROUP))}")
    for key, what in (("from", "the study of the old runs"), ("model", "the newer backbone")):
        if key not in typed:
            raise ConfigError(f"{key}: must be given, {what}")
    check_study(typed["from"], "from=")
    if keys.steps and not keys.is_whole:
        raise ConfigError(f"port.scale={keys.scale}: only the whole change is trained on from; port.steps=0")
    place = [item for item in rest if item.partition("=")[0].partition(".")[0] in (*PLACE, "model")]
    return _Words(keys, typed, place, compose.cell_from(place))


def _older(runs: Sequence[Parent], newer: ModelSpec) -> list[Parent]:
    """Those that were not trained on the newer backbone themselves.

    Raises:
        ConfigError: none is left.
    """
    sha256 = weights_sha256(newer)
    older = [run for run in runs if run.one_task().train and (sha256 is None or run.record.hashes.weights != sha256)]
    if not older:
        raise ConfigError(f"model={newer.name}: these runs were trained on that backbone")
    return older


def _job(
    run: Parent,
    keys: Port,
    words: Sequence[str],
    place: Sequence[str],
    known: Collection[str],
    patches: dict[tuple[Path, str], Patch],
) -> Job:
    where = where_of(place, run, (*WORDS, "model"))
    cell = run.record.cell
    own = {"method": cell.method, "budget": cell.budget, "task": cell.task, "seed": str(cell.seed)}
    line = ["port", *(word for word in words if word.partition("=")[0] not in own)]
    line += [f"{key}={value}" for key, value in own.items() if (key, value) != ("budget", "none")]
    patch = patches.setdefault(
        (run.folder, repr(where.cell.model)), Patch(run, where.cell.model, where.cell.cache, known)
    )
    onto = [item for item in place if not item.startswith("study=")]
    return Job(patch, keys, where, line, onto)
