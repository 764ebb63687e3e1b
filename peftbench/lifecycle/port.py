"""`peftbench port`: an old run's delta on a newer backbone, with kept and with refitted heads, as artefacts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from peftbench.config.bounds import Count, Whole
from peftbench.data.split import Split
from peftbench.lifecycle import held_out
from peftbench.lifecycle.artefact import Recipe, Result, Where, folder_of, settle
from peftbench.lifecycle.held_out import HELD_OUT, Scaled, Setting
from peftbench.lifecycle.patch import Patch
from peftbench.lifecycle.score import scored as scored_run
from peftbench.lifecycle.task_model import HEADS, Head, TaskModel
from peftbench.record import Counts
from peftbench.runner.delta import HEAD, Delta
from peftbench.study.cell import Screen

OLD = "old run"  # on its own backbone
FLOOR = "newer backbone"  # under the run's head, without what it learned


@dataclass(frozen=True)
class Port(Scaled):
    """How a delta is carried over. Units and sources stand in conf/port/default.yaml."""

    steps: Whole
    heads: Literal["kept", "refit", "both"]
    refit_rows: Count

    @property
    def is_whole(self) -> bool:
        """Whether it is the change as it is, which can be kept as a delta."""
        return self.scale == 1

    @property
    def of_scale(self) -> dict[str, Any]:
        """What decides how far the change goes."""
        given = {"scale": self.scale}
        return {**given, "grid": self.grid, "choose_rows": self.choose_rows} if self.scale == HELD_OUT else given

    def of_head(self, head: Head) -> dict[str, Any]:
        """What decides a row with this head."""
        return {"head": head, **({"refit_rows": self.refit_rows} if head == "refitted" else {})}


@dataclass(frozen=True)
class Job:
    """What a command line asks for: a run on a newer backbone, and where its artefacts are kept.

    Attributes:
        words: the command line.
        onto: those of its words that say which backbone, and where rows and results lie; the study apart.
        searchpath: the user's own configuration, where the run was made with some.
    """

    patch: Patch
    keys: Port
    where: Where
    words: Sequence[str]
    onto: Sequence[str] = ()
    searchpath: str | None = None

    @property
    def method(self) -> str:
        """See `Parent.trained_by`."""
        return self.patch.run.trained_by

    def recipe(self, name: str, keys: Mapping[str, Any]) -> Recipe:
        """An artefact of the run on the newer backbone."""
        return Recipe("port", name, keys, [self.patch.run], self.words, self.patch.model)


class Settled:
    """Artefacts that this command has made or found, each once: several jobs share their floor."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._codes: dict[Path, int] = {}

    def settle(self, recipe: Recipe, where: Where, make: Callable[[Mapping[str, Split]], Result]) -> int:
        """As `artefact.settle`."""
        folder = folder_of(recipe, where)
        if folder not in self._codes:
            self._codes[folder] = settle(recipe, where, make, self.screen)
        return self._codes[folder]


def port(job: Job, settled: Settled) -> int:
    """Make what is not there: the run as it was, the newer backbone under its head, and with its delta; the worst exit
    code."""
    codes = [_old(job, settled)]
    for head in HEADS[job.keys.heads]:
        codes += [_floor(job, head, settled), _port(job, head, settled)]
    return max(codes)


def _old(job: Job, settled: Settled) -> int:
    run = job.patch.run
    recipe = Recipe("port", f"{OLD} of {job.method}", {"old": True}, [run], job.words)
    return settled.settle(recipe, job.where, partial(scored_run, run, job.where, known=job.patch.known))


def _floor(job: Job, head: Head, settled: Settled) -> int:
    recipe = job.recipe(f"{FLOOR} of {job.method}, {head} head", {"floor": True, **job.keys.of_head(head)})

    def make(rows: Mapping[str, Split]) -> Result:
        counts = _counts(job.patch)
        nothing = replace(counts, backbone=0, total=counts.head, stored_bytes=None, kept=0)
        return scored(job.patch.plain(), head, job.keys.refit_rows, rows, nothing)

    return settled.settle(recipe, job.where, make)


def _port(job: Job, head: Head, settled: Settled) -> int:
    whole = job.keys.is_whole

    def make(rows: Mapping[str, Split]) -> Result:
        patch, (scale, chosen) = job.patch, _scale(job)
        on = patch.patched() if whole else patch.plain(scale)
        result = scored(on, head, job.keys.refit_rows, rows, _counts(patch), {**patch.facts(), **chosen})
        return replace(result, delta=_with_head(patch.moved.delta, on)) if whole else result

    return settled.settle(port_recipe(job, head), job.where, make)


def _scale(job: Job) -> tuple[float, dict[str, Any]]:
    """How many times the change is added, as asked for or the best on held-out rows, and what the choice saw."""
    keys, patch = job.keys, job.patch
    if not isinstance(keys.scale, str):
        return keys.scale, {}
    task, most = patch.run.record.cell.task, keys.choose_rows
    tried = {Setting(scale): {task: patch.held_out(scale, most)} for scale in keys.scales}
    scale = held_out.best(tried).scale
    return scale, {"scale": scale, **held_out.facts(tried, most, [patch.run])}


def port_recipe(job: Job, head: Head) -> Recipe:
    """The run's delta on the newer backbone, without training."""
    scale = job.keys.scale
    name = "scaled port" if isinstance(scale, str) else "port" if job.keys.is_whole else f"port x{scale:g}"
    return job.recipe(f"{name} of {job.method}, {head} head", {**job.keys.of_scale, **job.keys.of_head(head)})


def scored(
    on: TaskModel,
    head: Head,
    refit_rows: int,
    rows: Mapping[str, Split],
    counts: Counts | None,
    facts: Mapping[str, Any] | None = None,
) -> Result:
    """Predictions and scores of a model, its head fitted anew first where that is asked."""
    if head == "refitted":
        on.refit(on.tokens("train", refit_rows))
    tokens = {name: on.tokenized(split) for name, split in rows.items()}
    logits = {name: on.predict(split) for name, split in tokens.items()}
    labelled = {name: split for name, split in tokens.items() if split.labels is not None}
    scores = on.score(labelled, logits) if labelled else None
    return Result(scores, logits, tokens, counts, on.model.weights_sha256, dict(facts or {}))


def _with_head(delta: Delta, on: TaskModel) -> Delta:
    head = {HEAD + name: parameter.detach().float().cpu() for name, parameter in on.model.head()}
    return Delta({**delta.tensors, **head}, delta.facts)


def _counts(patch: Patch) -> Counts:
    """The run's own, with the bytes of the delta as it is stored now."""
    own = patch.run.record.counts
    assert own is not None
    return replace(own, stored_bytes=patch.moved.delta.stored_bytes)
