"""One backbone for several tasks: merged from finished runs, scored on each task with kept and with refitted heads."""

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from peftbench.backbone.model import load_model
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError, DataError
from peftbench.lifecycle import held_out
from peftbench.lifecycle.artefact import Recipe, Result, Where, settle
from peftbench.lifecycle.held_out import Setting
from peftbench.lifecycle.merging import Changes, Merge
from peftbench.lifecycle.parents import Parent, check_plain, one_seed
from peftbench.lifecycle.score import scored
from peftbench.lifecycle.task_model import HEADS, FoldedModel, Head, backbone_of
from peftbench.lifecycle.vectors import Vectors, equalized, geometry, vectors
from peftbench.record import Counts
from peftbench.study.cell import Screen

FLOOR, CEILING = "backbone", "own run"  # rows of the table between which merges lie
JOINT = "joint training"  # one run on all the tasks: a ceiling, too
MOST_TASKS = 100


@dataclass(frozen=True)
class Chosen:
    """A change of the backbone with the scale that it is added with, and how that was chosen."""

    change: torch.Tensor
    scale: float
    facts: dict[str, Any]


class Group:
    """Runs of one seed on several tasks; what is computed of them is computed once, and only when it is needed."""

    def __init__(
        self, parents: Sequence[Parent], cache: str, known: Collection[str] = (), joint: Parent | None = None
    ) -> None:
        """Args:
        parents: one run for each task.
        cache: the folder of tokenised rows.
        known: classes outside this package that deltas may name.
        joint: the run that learned all the tasks together; None: there is none.

        Raises:
            ConfigError: there are less than two, or two for one task, of several seeds, on other backbones, of few
                labels or with prompts.
        """
        self.parents, self.seed, self.joint = parents, one_seed(parents), joint
        self.tasks = [one.record.cell.task for one in parents]
        self._cache, self.known = cache, known
        if not 2 <= len(parents) <= MOST_TASKS:
            raise ConfigError(f"{', '.join(self.tasks) or 'no task'}: a merge is of 2 to {MOST_TASKS} tasks")
        for one in parents:
            check_plain(one, "merged")
        first = parents[0].record
        for one in parents[1:]:
            if (one.record.config["model"], one.record.hashes.weights) != (first.config["model"], first.hashes.weights):
                raise ConfigError(
                    f"{parents[0].folder} and {one.folder}: other backbones; their changes cannot be added"
                )

    @functools.cached_property
    def models(self) -> dict[str, FoldedModel]:
        """By task."""
        every = zip(self.tasks, self.parents, strict=True)
        return {task: FoldedModel(parent, self._cache, self.known) for task, parent in every}

    @functools.cached_property
    def before(self) -> dict[str, torch.Tensor]:
        """The backbone's own weights, what they lack drawn from the runs' seed.

        Raises:
            DataError: they are not those of the runs any more.
        """
        first = self.parents[0]
        model, _ = load_model(first.model, 1, self.seed)
        if model.weights_sha256 != first.record.hashes.weights:
            raise DataError(f"{first.folder}: its backbone has other weights now; merges are of the runs' own")
        return backbone_of(model)

    @functools.lru_cache(maxsize=1)  # noqa: B019  # a group lives as long as its command
    def vectors(self, over: Literal["touched", "weights", "backbone"]) -> Vectors:
        """What the runs changed."""
        return vectors(self.before, [model.own for model in self.models.values()], over)

    def chosen(self, way: Merge) -> tuple[Vectors, Chosen]:
        """The merged change and its scale; scale and share as asked for, or the best on held-out rows of train."""
        taus = self.vectors("weights" if way.needs == "inputs" and way.over == "touched" else way.over)
        changes = self._changes(way, taus)
        facts: dict[str, Any] = {"entries": taus.rows.shape[1], **geometry(taus.rows, self.tasks)}
        if way.skips_unchanged and (unchanged := [task for task, norm in facts["norms"].items() if norm == 0]):
            facts["left_out"] = unchanged
        if way.is_given:
            return taus, Chosen(way.merged(changes), way.scales[0], facts)
        tried: dict[Setting, dict[str, float]] = {}
        for keep, one in way.by_share().items():
            change = one.merged(changes)
            tried |= {
                Setting(scale, keep): self._held_out(taus.added(change, scale), way.choose_rows) for scale in way.scales
            }
            if held_out.best(tried).keep == keep:
                of_best = change
        chosen = held_out.best(tried)
        facts |= held_out.facts(tried, way.choose_rows, self.parents)
        facts |= {} if chosen.keep is None else {"keep": chosen.keep}
        return taus, Chosen(of_best, chosen.scale, facts)

    def _changes(self, way: Merge, taus: Vectors) -> Changes:
        rows = equalized(taus.rows) if way.equalize == "norm" else taus.rows
        return Changes(
            rows,
            taus.parts,
            self.tasks,
            self.seed,
            self._curvature(way, taus) if way.needs == "curvature" else None,
            self._inputs(way, taus) if way.needs == "inputs" else None,
        )

    def _curvature(self, way: Any, taus: Vectors) -> torch.Tensor:
        names = [name for name, _ in taus.places]
        rows = []
        for model in self.models.values():
            model.put({})
            rows.append(taus.picked(model.curvature(model.tokens("train", way.rows), names)))
        return torch.stack(rows)

    def _inputs(self, way: Any, taus: Vectors) -> dict[int, tuple[torch.Size, torch.Tensor]]:
        names = [name for name, _ in taus.places]
        products = []
        for model in self.models.values():
            model.put({})
            products.append(model.input_products(model.tokens("train", way.rows), names))
        return {
            place: (taus.before[name].shape, torch.stack([one[name] for one in products]))
            for place, name in enumerate(names)
            if name in products[0]
        }

    def _held_out(self, weights: Mapping[str, torch.Tensor], most: int) -> dict[str, float]:
        """Every task's headline on held-out rows of train, with kept heads."""
        scores = {}
        for task, model in self.models.items():
            model.put({**self.before, **weights})
            scores[task] = model.headline(model.tokens("held_out", most))
        return scores


@dataclass(frozen=True)
class Job:
    """What a merge's command line asks for, beside the runs.

    Attributes:
        word: of conf/merge.
        words: the command line.
    """

    word: str
    way: Merge
    words: Sequence[str]


def merge(group: Group, job: Job, where: Mapping[str, Where], screen: Screen) -> int:
    """Make every artefact of a merge that is not there; returns the worst exit code.

    For each task: the merged backbone with the run's own head, with a refitted one, or both.

    Args:
        where: by task.
    """
    merged = functools.cache(lambda: group.chosen(job.way))

    def weights_of(task: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
        taus, chosen = merged()
        facts = {"tasks": group.tasks, "scale": chosen.scale, **chosen.facts}
        return {**group.before, **taus.added(chosen.change, chosen.scale)}, facts, int((chosen.change != 0).sum())

    keys = {"merge": job.word, **job.way.keys}
    return _each(group, job, where, screen, job.word, keys, weights_of, group.parents)


def bounds(group: Group, job: Job, where: Mapping[str, Where], screen: Screen) -> int:
    """The rows between which merges lie: the backbone as it was under the runs' heads, every run by itself, and the run
    that learned all tasks together, where there is one."""

    def untouched(task: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
        return group.before, {}, 0

    def own(task: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
        taus = group.vectors("touched")
        return group.models[task].own, {}, int((taus.rows[group.tasks.index(task)] != 0).sum())

    codes = [_each(group, job, where, screen, FLOOR, {"floor": True}, untouched, ())]
    codes.append(_each(group, job, where, screen, CEILING, {"ceiling": True}, own, ()))
    if group.joint is not None:
        recipe = Recipe("merge", f"{JOINT} of {group.joint.trained_by}", {}, [group.joint], job.words)
        made = functools.partial(scored, group.joint, known=group.known)
        codes += [settle(recipe, one, functools.partial(made, one), screen) for one in where.values()]
    return max(codes)


def _each(
    group: Group,
    job: Job,
    where: Mapping[str, Where],
    screen: Screen,
    name: str,
    keys: Mapping[str, Any],
    weights_of: Any,
    parents: Sequence[Parent],
) -> int:
    """An artefact for every task and kind of head."""
    codes = [0]
    for task, own in zip(group.tasks, group.parents, strict=True):
        kinds = ("kept", *HEADS[job.way.heads]) if name == CEILING else HEADS[job.way.heads]
        for head in dict.fromkeys(kinds):  # the run itself is always there
            method = own.trained_by
            refit = {"refit_rows": job.way.refit_rows} if head == "refitted" else {}
            recipe = Recipe(
                "merge",
                f"{name} of {method}" if (name, head) == (CEILING, "kept") else f"{name} of {method}, {head} head",
                {**keys, **refit, "head": head},
                [own, *(one for one in parents if one is not own)],
                job.words,
            )
            make = functools.partial(_made, group, task, head, job.way.refit_rows, weights_of)
            codes.append(settle(recipe, where[task], make, screen))
    return max(codes)


def _made(group: Group, task: str, head: Head, refit_rows: int, weights_of: Any, rows: Mapping[str, Split]) -> Result:
    weights, facts, changed = weights_of(task)
    folded = group.models[task]
    folded.put(weights)
    if head == "refitted":
        folded.refit(folded.tokens("train", refit_rows))
    tokens = {name: folded.tokenized(split) for name, split in rows.items()}
    logits = {name: folded.predict(split) for name, split in tokens.items()}
    own = group.parents[group.tasks.index(task)].record.counts
    in_head = 0 if own is None else own.head
    counts = Counts(changed, in_head, changed + in_head, 0 if own is None else own.model)
    facts = {**facts, "head_modules": list(folded.parent.model.layout.head)}
    return Result(folded.score(tokens, logits), logits, tokens, counts, folded.model.weights_sha256, facts)
