"""`peftbench edit`: a run's behaviour edited, and what becomes of other tasks' runs on the same edit, as artefacts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from peftbench.config.spec import Budget, MethodSpec, Scope
from peftbench.data.split import Split
from peftbench.ground.files import DELTA_FILE
from peftbench.lifecycle import surgery
from peftbench.lifecycle.artefact import Recipe, Result, Where, fingerprint, settle
from peftbench.lifecycle.behaviour import effect
from peftbench.lifecycle.editable import Edit, EditableRun
from peftbench.lifecycle.folded_run import FoldedRun, Incision
from peftbench.methods.surgery import Surgery
from peftbench.runner.delta import HEAD, Delta, facts_of
from peftbench.study.cell import Screen

FLOOR = "unedited"  # the row from which edits move
CHOOSING = ("grid", "loss")  # keys that a strength given as a number does not need


@dataclass(frozen=True)
class Asked:
    """One edit of the run.

    Attributes:
        edit_word: of conf/edit.
        words: the command line that makes it.
    """

    edit: Edit
    edit_word: str
    words: Sequence[str]

    @property
    def keys(self) -> dict[str, Any]:
        """What decides it."""
        keys = {"edit": self.edit_word, **asdict(self.edit)}
        return {key: one for key, one in keys.items() if self.edit.strength == "held_out" or key not in CHOOSING}

    def row(self, method: str) -> str:
        """Its row of the table."""
        edit = self.edit
        what = self.edit_word if edit.control == "none" else edit.control
        strength = edit.strength if isinstance(edit.strength, str) else f"x{edit.strength:g}"
        each = "" if edit.probe_at == "last" else f" {edit.probe_at}"
        return f"{what} {edit.word}{each} {edit.rows:g} {strength} of {method}"


@dataclass(frozen=True)
class Job:
    """What a command line asks for.

    Attributes:
        run: the one that is edited.
        where: it is scored and kept.
        edits: what is done to it.
        others: runs on other tasks that are scored on the same edits, each with where.
        left_out: a line for each other task that has no such run.
    """

    run: EditableRun
    where: Where
    edits: Sequence[Asked]
    others: Sequence[tuple[FoldedRun, Where]]
    left_out: Sequence[str] = ()

    @property
    def method(self) -> str:
        """See `Parent.trained_by`."""
        return self.run.run.trained_by


def edit(job: Job, screen: Screen) -> int:
    """Make what is not there: the run as it is and edited, then runs of other tasks likewise; the worst exit code."""
    codes = [_unedited(job, job.run, job.where, screen)]
    codes += [_edited(job, asked, screen) for asked in job.edits]
    for other, where in job.others:
        codes.append(_unedited(job, other, where, screen))
        codes += [_beside(job, asked, other, where, screen) for asked in job.edits]
        other.forget()
    job.run.forget()
    return max(codes)


def _unedited(job: Job, run: FoldedRun, where: Where, screen: Screen) -> int:
    recipe = Recipe("edit", f"{FLOOR} of {job.method}", {"floor": True}, [run.run], job.edits[0].words)
    return settle(recipe, where, run.unedited, screen)


def _edited(job: Job, asked: Asked, screen: Screen) -> int:
    """The run itself: with the delta of the edit, and what it did to the behaviour."""
    run, edit = job.run, asked.edit
    recipe = Recipe("edit", asked.row(job.method), asked.keys, [run.run], asked.words)

    def make(rows: Mapping[str, Split]) -> Result:
        plain, incision = run.unedited(rows), run.incision(edit)
        facts = {**_facts(run, edit, incision), **_headline_before(run, plain)}
        delta = _delta(job, edit, incision, fingerprint(recipe, job.where))
        run.operate(edit, incision)
        counts = run.counted(incision.entries, int(incision.bias != 0), delta.stored_bytes)
        result = run.scored(rows, counts, facts)
        split, metric = run.task.scored()[run.task.headline]
        seen = effect(run.behaviour(edit), rows[split], plain.logits[split], result.logits[split], metric)
        return replace(result, facts={**facts, "scored": seen}, delta=delta)

    return settle(recipe, job.where, make, screen)


def _beside(job: Job, asked: Asked, other: FoldedRun, where: Where, screen: Screen) -> int:
    """A run on another task, whose backbone is edited, too: collateral. A shift of the edited run's head leaves it
    as it is, and is not scored again."""
    recipe = Recipe("edit", asked.row(job.method), asked.keys, [other.run, job.run.run], asked.words)

    def make(rows: Mapping[str, Split]) -> Result:
        result = plain = other.unedited(rows)
        if asked.edit.control != "bias":
            incision = job.run.incision(asked.edit)
            other.put(incision)
            result = other.scored(rows, other.counted(incision.entries), {})
        return replace(result, facts={"edited": job.run.task.name, **_headline_before(other, plain)})

    return settle(recipe, where, make, screen)


def _headline_before(run: FoldedRun, plain: Result) -> dict[str, float | None]:
    return {"headline_before": None if plain.scores is None else plain.scores.metrics[run.task.headline]}


def _facts(run: EditableRun, edit: Edit, incision: Incision) -> dict[str, Any]:
    """What was found and chosen on the way; nothing of the scored rows."""
    without, chosen, probed = run.chosen_without(edit), run.on_choice(edit, incision), run.probed(edit)
    fitted_on, choice_rows, behaviour = run.probe_rows(edit), run.choice_rows(edit), run.behaviour(edit)
    facts: dict[str, Any] = {
        "answer": (run.task.labels or ())[behaviour.answer],
        "probe": {
            "rows": len(fitted_on),
            "carried": float(behaviour.carried(fitted_on).mean()),
            "carried_on_choice": float(behaviour.carried(choice_rows).mean()),
            "accuracy_on_choice": probed.accuracy,
            "lengths": probed.probe.directions.norm(dim=1).tolist(),
        },
        "choice": {
            "rows": len(choice_rows),
            "prone": int(behaviour.prone(choice_rows).sum()),
            "rate_before": without.rate,
            "rate": chosen.rate,
            "headline_before": without.headline,
            "headline": chosen.headline,
            "trained_on": run.run.protocol.selection != "held_out",
        },
        "bias": incision.bias,
    }
    if edit.control != "bias":
        facts["moved"] = _moved(run, edit, incision)
    if edit.strength == "held_out":
        tried = sorted(run.tried(edit.method).items())
        facts["tried"] = {f"{strength:g}": {"rate": one.rate, "headline": one.headline} for strength, one in tried}
    return facts


def _moved(run: EditableRun, edit: Edit, incision: Incision) -> dict[str, Any]:
    """Which rows, how far (alpha: along v alone), and how they lay to the probe's direction."""
    directions = run.probed(edit).probe.directions
    cosines = surgery.cosines(run.weights, directions)[incision.rows]
    sizes = torch.tensor([len(weight) for weight in run.weights])
    layers = torch.bucketize(incision.rows, sizes.cumsum(0), right=True)
    return {
        "rows": len(incision.rows),
        "of": int(sizes.sum()),
        "by_layer": torch.bincount(layers, minlength=len(sizes)).tolist(),
        "strength": run.strength(edit),
        "lengths": incision.shifts.norm(dim=1).tolist(),
        "alpha": ((incision.shifts * directions).sum(1) / directions.square().sum(1)).tolist(),
        "cosine": float(cosines.mean()) if len(cosines) else None,
    }


def _delta(job: Job, edit: Edit, incision: Incision, own: str) -> Delta:
    """The edit alone, in kilobytes: whoever uses it takes up the run's delta first (`deltas.delta_of`)."""
    start = facts_of(job.run.run.folder / DELTA_FILE)
    kind = f"{Surgery.__module__}.{Surgery.__name__}"
    method = MethodSpec("surgery", kind, {"rows": len(incision.rows), "directions": len(incision.shifts)})
    facts = replace(start, method=method, scope=Scope(), budget=Budget(), fingerprint=own, start=start)
    tensors = {"rows": incision.rows.int(), "shifts": incision.shifts}
    if incision.bias:
        last = job.run.model.last.bias
        assert last is not None
        (name,) = (name for name, parameter in job.run.model.model.head() if parameter is last)
        job.run.operate(edit, incision)
        tensors[HEAD + name] = last.detach().cpu().float().clone()
    return Delta(tensors, facts)
