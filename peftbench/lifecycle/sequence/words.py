"""What the words of `peftbench sequence` ask for: which tasks in which order, which learner, on which backbone."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from peftbench.config import compose, recipes
from peftbench.config.tasks import JointTask
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import expanded
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.sequence.job import OF_PROTOCOL, Job
from peftbench.lifecycle.sequence.keys import (
    AdaptersKeys,
    LearnerKeys,
    MosKeys,
    SimpleCilKeys,
    TaskSequence,
    TrainedKeys,
    WholeKeys,
)

DEFAULT = "glue5"
JOINT = "joint"
LEARNERS: dict[str, type[LearnerKeys]] = {
    "finetune": WholeKeys,
    JOINT: WholeKeys,
    "simplecil": SimpleCilKeys,
    "aper": AdaptersKeys,
    "mos": MosKeys,
    "oracle": AdaptersKeys,
}
# words and keys of a cell that it has
PLACE = ("model", "data", "seed", "study", "outputs", "cache", "tracker", "protocol")


def ask(words: Sequence[str]) -> list[Job]:
    """Everything that is asked for, checked before anything is computed.

    Raises:
        ConfigError: a word is not one of sequence, or not possible.
    """
    return [_job(one) for one in recipes.swept(words)]


def lines(words: Sequence[str]) -> list[tuple[Path, str, saved_lines.Line]]:
    """The same as command lines for workers: see `saved_lines.placed`."""
    jobs = ask(words)
    return [saved_lines.placed(job.words, job.cell.study, expanded(job.cell.outputs)) for job in jobs]


def _job(words: Sequence[str]) -> Job:
    asked = [f"sequence.{word}" if word.startswith("order=") else word for word in words]
    default = [] if any(word.startswith("sequence=") for word in asked) else [f"sequence={DEFAULT}"]
    tasks, rest = recipes.recipe("sequence", [*default, *asked], lambda _: TaskSequence)
    keys, place = recipes.recipe("learner", rest, LEARNERS.__getitem__)
    learner = next(word.partition("=")[2] for word in rest if word.startswith("learner="))
    if learner == JOINT:
        tasks = replace(tasks, order=0)  # all tasks come at once, so that every order makes the same
    for word in place:
        _check(word.partition("=")[0].lstrip("+~"))
    if unknown := [name for name in tasks.tasks if name not in compose.words("task")]:
        raise ConfigError(
            f"sequence.tasks={shown(unknown[0])}: no such task; {near(unknown[0], compose.words('task'))}"
        )
    rate = [f"protocol.lr={keys.lr!r}"] if isinstance(keys, TrainedKeys) else []  # what the record says of it
    every = [*place, "task=joint", f"task.tasks=[{','.join(tasks.tasks)}]", "method=head", *rate]
    cell = compose.cell_from(every)
    assert isinstance(cell.task, JointTask)
    if scores := [one.name for one in cell.task.parts if one.labels is None]:
        raise ConfigError(f"sequence.tasks={scores[0]}: has scores for labels, and no classes")
    config: dict[str, Any] = {**compose.resolved(compose.load(every)), "sequence": asdict(tasks)}
    return Job(cell, tasks, learner, keys, ("sequence", *words), config)


def _check(key: str) -> None:
    """Refuse a key that no sequence has.

    Raises:
        ConfigError: it is such a key.
    """
    allowed = ("sequence", "learner", "order", *PLACE)
    group, _, inside = key.partition(".")
    if group not in PLACE:
        raise ConfigError(f"{shown(key)}: not a word of sequence; {near(key, allowed)}")
    if group == "protocol" and inside not in OF_PROTOCOL:
        known = [f"protocol.{one}" for one in OF_PROTOCOL]
        raise ConfigError(
            f"{shown(key)}: not a word of sequence, whose training learner.* describes; {near(key, known)}"
        )
