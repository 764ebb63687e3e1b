"""`peftbench port`: an old run's delta on a newer backbone, with kept and with refitted heads, as artefacts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peftbench.config.bounds import Count, Positive, Whole
from peftbench.data.split import Split
from peftbench.lifecycle.artefact import Recipe, Result, Where, folder_of, settle
from peftbench.lifecycle.patch import Patch
from peftbench.lifecycle.task_model import TaskModel
from peftbench.record import Counts
from peftbench.runner.delta import HEAD, Delta
from peftbench.study.cell import Screen

Head = Literal["kept", "refitted"]
FLOOR = "newer backbone"  # under the run's head, without what it learned
HEADS: dict[str, tuple[Head, ...]] = {"kept": ("kept",), "refit": ("refitted",), "both": ("kept", "refitted")}


@dataclass(frozen=True)
class Port:
    """How a delta is carried over. Units and sources stand in conf/port/default.yaml."""

    scale: Positive
    steps: Whole
    heads: Literal["kept", "refit", "both"]
    refit_rows: Count

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
    """Make what is not there: the newer backbone under the run's head, and with its delta; the worst exit code."""
    return max(
        code for head in HEADS[job.keys.heads] for code in (_floor(job, head, settled), _port(job, head, settled))
    )


def _floor(job: Job, head: Head, settled: Settled) -> int:
    recipe = job.recipe(f"{FLOOR} of {job.method}, {head} head", {"floor": True, **job.keys.of_head(head)})

    def make(rows: Mapping[str, Split]) -> Result:
        counts = _counts(job.patch)
        nothing = replace(counts, backbone=0, total=counts.head, stored_bytes=None, kept=0)
        return scored(job.patch.plain(), head, job.keys.refit_rows, rows, nothing)

    return settled.settle(recipe, job.where, make)


def _port(job: Job, head: Head, settled: Settled) -> int:
    recipe, whole = port_recipe(job, head), job.keys.scale == 1

    def make(rows: Mapping[str, Split]) -> Result:
        patch = job.patch
        on = patch.patched() if whole else patch.plain(job.keys.scale)
        result = scored(on, head, job.keys.refit_rows, rows, _counts(patch), patch.facts())
        return replace(result, delta=_with_head(patch.moved.delta, on)) if whole else result

    return settled.settle(recipe, job.where, make)


def port_recipe(job: Job, head: Head) -> Recipe:
    """The run's delta on the newer backbone, without training."""
    times = "" if job.keys.scale == 1 else f" x{job.keys.scale:g}"
    keys = {"scale": job.keys.scale, **job.keys.of_head(head)}
    return job.recipe(f"port{times} of {job.method}, {head} head", keys)


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
