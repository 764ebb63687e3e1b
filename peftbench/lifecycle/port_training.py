"""Training beside a port: on from the carried delta, and anew, as ordinary runs of the old run's own protocol."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from peftbench.backbone.model import compute_precision
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data.split import Split
from peftbench.ground import escape
from peftbench.ground.errors import BadInput, DataError
from peftbench.ground.files import RECORD_FILE, expanded
from peftbench.lifecycle.artefact import Recipe, Result, folder_of, inputs_of
from peftbench.lifecycle.distance import by_kind, cosine, length, minus, ratio
from peftbench.lifecycle.parents import Parent, parent
from peftbench.lifecycle.port import Job, Settled, port_recipe, scored
from peftbench.lifecycle.task_model import HEADS, FoldedModel, Head, TaskModel
from peftbench.runner import budgets
from peftbench.runner.counts import count_cell
from peftbench.runner.deltas import delta_of, goes_on, reload
from peftbench.study import cell as study_cell
from peftbench.study import done, verify
from peftbench.study.lock import Elsewhere

SUFFIX = ".port"  # study "pilot.port" has the runs that train on from ported deltas of "pilot", and those trained anew
OTHER = ("model", "init_from", "init_head", "study", "outputs", "cache", "rerun", "predict_test", "cells_per_gpu")
CEILING = "anew"


def words_of(job: Job, study: str, steps: int | None) -> list[str]:
    """The words of the old run's own cell on the newer backbone.

    Args:
        steps: how many it trains, at the rate that was searched where one was; None: as many as the old run, and the
            rate is searched as it was then.

    Raises:
        ConfigError, DataError: the record's words cannot be used.
    """
    run, record = job.patch.run, job.patch.run.record
    words = verify.words_of(record, run.folder / RECORD_FILE, job.searchpath)
    gone = {*OTHER, *(_key(word).partition(".")[0] for word in job.onto)}
    more = [f"study={study}"]
    if steps is not None:
        gone.add("protocol.max_steps")
        more.append(f"protocol.max_steps={steps}")
        if record.search is not None:
            gone |= {"select", "protocol.lr", "protocol.head_lr"}
            more += ["select=none", f"protocol.lr={record.search.chosen!r}"]
            if (head_lr := record.search.chosen_head or run.protocol.head_lr) is not None:
                more.append(f"protocol.head_lr={head_lr!r}")
    kept = [word for word in words if not gone & {_key(word), _key(word).partition(".")[0]}]
    return [*kept, *job.onto, *more]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def check(job: Job) -> None:
    """See that the old run's words say how it goes on, before any cost.

    Raises:
        ConfigError, DataError: they cannot be used here, mean another method, or too few steps for it.
    """
    cell = compose.cell_from(words_of(job, job.where.study, job.keys.steps))
    count_cell(cell, job.keys.steps)
    if not goes_on(budgets.resolve(cell).attachment, delta_of(job.patch.run.folder)):
        raise DataError(f"{job.patch.run.folder}: its words mean another method here; port.steps=0 needs none of them")


def go_on(job: Job, settled: Settled) -> Iterator[int]:
    """Train on from the ported delta for so many steps, with each head; exit codes."""
    if not job.keys.steps:
        return
    for head in HEADS[job.keys.heads]:
        keys = {"scale": job.keys.scale, "steps": job.keys.steps, **job.keys.of_head(head)}
        recipe = job.recipe(f"port of {job.method}, {head} head, {job.keys.steps} steps", keys)
        yield settled.settle(recipe, job.where, functools.partial(_trained_on, job, head, settled))


def _trained_on(job: Job, head: Head, settled: Settled, rows: Mapping[str, Split]) -> Result:
    recipe = port_recipe(job, head)
    start = done.find(folder_of(recipe, job.where), inputs_of(recipe, job.where))[0]
    words = words_of(job, job.where.study + SUFFIX, job.keys.steps)
    run = _run([*words, f"init_from={escape.value(str(start))}", "init_head=kept"], settled)
    on = _reloaded(job, run)
    facts = {"run": run.place(job.where.outputs), "started_from": str(start.relative_to(job.where.outputs))}
    return scored(on, "kept", job.keys.refit_rows, rows, run.record.counts, facts)


def _run(words: list[str], settled: Settled) -> Parent:
    """The run of these words, trained unless it is there.

    Raises:
        Elsewhere: another runner has it.
        DataError: it did not end well.
    """
    plain = compose.plain(words)
    cell = compose.build_plain(plain)
    folder = expanded(cell.outputs) / cell.folder
    code = study_cell.settle(plain, words, settled.screen)
    if code == Elsewhere.exit_code:
        raise Elsewhere(f"{folder}: another runner is training it; the same command goes on")
    if code:
        raise DataError(f"{folder}: that run did not end well, so there is nothing to score")
    return parent(done.find(folder, done.hash_inputs(done.reads_of(cell)))[0])


def _reloaded(job: Job, run: Parent) -> TaskModel:
    model, tuner, _ = reload(run.folder, job.patch.known)
    trained = [*tuner.trainables().values(), *dict(model.head()).values()]
    compute_precision(model, run.protocol.precision, trained)
    return TaskModel(run, model, job.patch.cache)


def ceilings(job: Job, settled: Settled, tell: Callable[[str], None]) -> Iterator[int]:
    """Runs of the same method trained anew on the newer backbone, with as many steps and with all, as artefacts; exit
    codes.

    Args:
        tell: told a line for each run that is not there.
    """
    for steps in (job.keys.steps, None) if job.keys.steps else (None,):
        name = CEILING if steps is None else f"{CEILING} with {steps} steps"
        try:
            words = words_of(job, job.where.study + SUFFIX, steps)
            run = _found(job, compose.cell_from(words))
        except BadInput as error:
            tell(f"no run {name} can be named: {error.every[0]}")
            continue
        if run is None:
            tell(f"no run {name} on the newer backbone: {escape.command(['run', *words])}")
            continue
        after = "" if steps is None else f", {steps} steps"
        keys = {"steps": steps, "ceiling": True}
        recipe = Recipe("port", f"{CEILING} of {job.method}{after}", keys, [run, job.patch.run], job.words)
        yield settled.settle(recipe, job.where, functools.partial(_anew, job, run))


def _found(job: Job, cell: Cell) -> Parent | None:
    """The finished run of a cell, in its own study, in the artefacts' or in that of the old run."""
    inputs = done.hash_inputs(done.reads_of(cell))
    for study in (cell.study, job.where.study, job.patch.run.record.cell.study):
        place, need = done.find(expanded(cell.outputs) / replace(cell, study=study).folder, inputs)
        if need != "run":
            return parent(place)
    return None


def _anew(job: Job, run: Parent, rows: Mapping[str, Split]) -> Result:
    return scored(_reloaded(job, run), "kept", 0, rows, run.record.counts, _beside(job, run))


def _beside(job: Job, run: Parent) -> dict[str, Any]:
    """How the change that was trained anew lies to the old one: R = new change - old change, in its lengths, and their
    cosine, over all weights and by kind of module."""
    patch = job.patch
    if patch.change is None:
        return {}
    folded = FoldedModel(run, patch.cache, patch.known)
    patch.check_same(folded.model)
    before = {**patch.moved.now, **{name: one.float() for name, one in folded.model.drawn.items()}}
    change = minus(folded.own, before)
    residual, model = minus(change, patch.change), patch.moved.model
    patched = {name: now + patch.change[name] for name, now in patch.moved.now.items()}
    return {
        "change": {"length": length(change), "cosine": cosine(patch.change, change)},
        "cosines": by_kind(model, cosine, patch.change, change),
        "residual": {"length": length(residual), "in_changes": ratio(residual, change)},
        "residual_in_changes": by_kind(model, ratio, residual, change),
        "weights_in_residuals": ratio(patched, residual),  # the paper's own yardstick
    }
