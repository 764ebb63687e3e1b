"""A cell's readout, tokenizer and loss, which belong together: a prompt's label words are tokens."""

from pathlib import Path

from peftbench.backbone.heads import Heads
from peftbench.backbone.model import CLASSIFIER, Model, build
from peftbench.backbone.readout import Prompt, Readout
from peftbench.backbone.weights import weights_folder
from peftbench.config.few_labels import PromptSpec, ReadoutSpec
from peftbench.config.recorded import part
from peftbench.config.spec import ModelSpec, Task, TaskSpec
from peftbench.config.tasks import JointTask
from peftbench.data.prompts import PromptTokenizer
from peftbench.data.tokens import Tokenizer, tokenizer_for
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.record import Record
from peftbench.training.objective import Objective, ScoreShare


def planned(readout: ReadoutSpec, task: Task, model: ModelSpec) -> Readout:
    """The readout without a tokenizer, as counting needs it: its label words are any."""
    if (prompt := asked(readout, task)) is None:
        return classifier(task, model)
    return Prompt(tuple(range(len(prompt.words))), 0, readout.head, bounds(task))


def without_weights(model: ModelSpec, task: Task, readout: ReadoutSpec) -> Model:
    """The model as counting needs it: where nothing takes memory or time."""
    return build(model, task.num_labels, "meta", planned(readout, task, model))


def classifier(task: Task, model: ModelSpec) -> Readout:
    """A classifier, or one for each of several tasks."""
    if not isinstance(task, JointTask):
        return CLASSIFIER
    return Heads(outputs=tuple((one.name, one.num_labels) for one in task.tasks), places=model.layout.head)


def made(readout: ReadoutSpec, task: Task, model: ModelSpec, weights: Path | None) -> Readout:
    """The readout.

    Args:
        weights: the folder of the model's weights; None: random ones.

    Raises:
        ConfigError: a label word is not one token of this backbone.
        DataError: the tokenizer cannot be read, or has no mask.
    """
    if (prompt := asked(readout, task)) is None:
        return classifier(task, model)
    tokens = PromptTokenizer(tokenizer_for(model, weights), prompt)
    return Prompt(tokens.words, tokens.mask_id, readout.head, bounds(task))


def tokenizer(prompt: PromptSpec | None, model: ModelSpec, weights: Path | None) -> Tokenizer:
    """What makes token ids of rows, in a prompt's template where there is one.

    Raises:
        ConfigError, DataError: as `made`.
    """
    inner = tokenizer_for(model, weights)
    return inner if prompt is None else PromptTokenizer(inner, prompt)


def objective(readout: ReadoutSpec, task: Task) -> Objective | None:
    """What training makes small where it is not the task's own loss."""
    return None if asked(readout, task) is None or task.labels else ScoreShare(bounds(task) or (0.0, 1.0))


def recorded(record: Record, model: ModelSpec) -> Readout:
    """The readout of a finished run.

    Raises:
        DataError: its part of the record is not of this version, or as `made`.
    """
    readout, task = readout_spec(record), task_of(record)
    if readout.kind == "classifier":
        return classifier(task, model)
    return made(readout, task, model, weights_folder(model))


def task_of(record: Record) -> Task:
    """The task of a finished run, or several that it learned together.

    Raises:
        DataError: that part of the record is not of this version.
    """
    if "tasks" in record.config["task"]:
        return part(record, JointTask, "task")
    return part(record, TaskSpec, "task")


def one_task(record: Record, word: str | None, place: object) -> TaskSpec:
    """The task of a finished run that a word names; it may be left out where there is one.

    Args:
        place: of the run, for the line that refuses.

    Raises:
        ConfigError: it names none, or is left out where there are several.
        DataError: that part of the record is not of this version.
    """
    tasks = {task.name: task for task in task_of(record).parts}
    if word is None and len(tasks) > 1:
        raise ConfigError(f"{shown(place, 80)}: learned {', '.join(tasks)} together; task= says which is meant")
    if word is not None and word not in tasks:
        raise ConfigError(f"task={shown(word)}: not what {shown(place, 80)} learned; {near(word, tasks)}")
    return tasks[next(iter(tasks)) if word is None else word]


def readout_spec(record: Record) -> ReadoutSpec:
    """How a finished run read its logits; before there was a choice, by a classifier.

    Raises:
        DataError: that part of the record is not of this version.
    """
    return part(record, ReadoutSpec, "readout") if "readout" in record.config else ReadoutSpec()


def asked(readout: ReadoutSpec, task: Task) -> PromptSpec | None:
    """The prompt that rows are put into; None: they are read as they are."""
    return task.prompt if readout.kind == "prompt" else None


def bounds(task: Task) -> tuple[float, float] | None:
    """Of a regression's scores; None: classes."""
    return None if task.labels or isinstance(task, JointTask) else task.score_range or (0.0, 1.0)
