"""The scores of a sequence from its task x stage matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TaskScores:
    """A task's dev rows after a stage, as shares of them.

    Attributes:
        accuracy: answered with the right class, among all classes seen.
        identified: answered with a class of the right task.
        given_task: answered right where only the task's own classes may be.
        rows: how many there are.
        retrieved: sent through the right task's adapters; None: the learner sends none.
    """

    accuracy: float
    identified: float
    given_task: float
    rows: int
    retrieved: float | None = None


def scored(
    scores: np.ndarray, labels: np.ndarray, own: np.ndarray, task: int, retrieved: np.ndarray | None = None
) -> TaskScores:
    """What a learner's scores of a task's rows come to; of equal scores the first class is the answer.

    Args:
        scores: (rows, classes), -inf for classes that were not seen.
        labels: the right classes (rows,).
        own: the task's classes.
        task: the task's number.
        retrieved: number of the task whose adapters each row went through (rows,); None: there are none.
    """
    answers = scores.argmax(1)
    within = own[scores[:, own].argmax(1)]
    return TaskScores(
        float((answers == labels).mean()),
        float(np.isin(answers, own).mean()),
        float((within == labels).mean()),
        len(labels),
        None if retrieved is None else float((retrieved == task).mean()),
    )


Stages = Sequence[Mapping[str, TaskScores]]  # after every stage: task -> its scores, in the order of learning


def after(stage: Mapping[str, TaskScores]) -> dict[str, float]:
    """The metrics of one stage: means over the tasks seen, the mean over their rows beside the main one."""
    every = list(stage.values())
    rows = np.array([one.rows for one in every])
    accuracies = np.array([one.accuracy for one in every])
    metrics = {
        "last": float(accuracies.mean()),
        "last_by_rows": float(accuracies @ rows / rows.sum()),
        "task_identification": float(np.mean([one.identified for one in every])),
        "accuracy_given_task": float(np.mean([one.given_task for one in every])),
    }
    if all(one.retrieved is not None for one in every):
        metrics["retrieval"] = float(np.mean([one.retrieved for one in every if one.retrieved is not None]))
    return metrics | {f"{task}_accuracy": one.accuracy for task, one in stage.items()}


def summary(stages: Stages) -> dict[str, float]:
    """The metrics of a whole sequence, with A_b the mean over the tasks seen after stage b.

    mean: of A_b over the stages; last: A_B; forgetting: mean over all tasks but the last of the best accuracy after any
    stage, the last one included, less that after the last one, as MOS's code has it. Where there is one stage, only
    what is known after it.
    """
    last = after(stages[-1])
    if len(stages) == 1:
        return last
    before = [after(stage) for stage in stages]
    drops = [
        max(stage[task].accuracy for stage in stages if task in stage) - stages[-1][task].accuracy
        for task in list(stages[-1])[:-1]
    ]
    return {
        **last,
        "mean": float(np.mean([one["last"] for one in before])),
        "mean_by_rows": float(np.mean([one["last_by_rows"] for one in before])),
        "forgetting": float(np.mean(drops)),
    }
