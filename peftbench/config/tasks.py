"""What a task is: one of GLUE's, or several of them that one run learns together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, Field

from peftbench.config.bounds import (
    LARGEST,
    Labels,
    Name,
    Number,
    SplitColumns,
    SplitFiles,
    Splits,
    Texts,
    Whole,
    distinct,
    refuse,
)
from peftbench.config.few_labels import PromptSpec

Metric = Literal["accuracy", "f1", "matthews_correlation", "pearson", "spearman"]
METRICS: frozenset[str] = frozenset(get_args(Metric))
OF_SCORES = frozenset({"pearson", "spearman"})  # the metrics of regressions
MOST_TASKS = 20  # that are learned together: their names are one folder's


class _Columns:
    """A label beside texts, each a column of its own."""

    text: Texts
    label: Name

    def __post_init__(self) -> None:
        if self.label in self.text:
            refuse(f"label={self.label} is a text column, too")


@dataclass(frozen=True)
class HubLayout(_Columns):
    """How the Hub's copy of a task names things."""

    config: Name
    text: Texts
    label: Name
    splits: SplitFiles


@dataclass(frozen=True)
class FolderLayout(_Columns):
    """How the official download names things."""

    name: Name
    files: SplitFiles
    text: Texts
    label: Name
    label_values: Labels | None = None
    columns: SplitColumns = field(default_factory=dict)
    skip_incomplete: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """A GLUE task: labels, metrics, splits, and its two layouts."""

    name: str
    version: Whole
    labels: Labels | None
    metrics: Annotated[tuple[Metric, ...], Field(min_length=1, max_length=len(METRICS)), AfterValidator(distinct)]
    headline: Name
    train: Literal["train"] | None
    dev: Splits
    test: Splits
    hub: HubLayout
    folder: FolderLayout
    score_range: tuple[Number, Number] | None = None
    prompt: PromptSpec | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be true together."""
        splits = [*([self.train] if self.train else []), *self.dev, *self.test]
        if twice := [split for split in splits if splits.count(split) > 1 or split == "held_out"]:
            key = "test" if twice[0] in self.test else "dev"
            refuse(f"{key}: '{twice[0]}' cannot be a split of dev or test: train, dev, test and held_out differ")
        values, classes = self.folder.label_values, len(self.labels or ())
        if values and len(values) != classes:
            refuse(f"folder.label_values names {len(values)} classes, labels names {classes}")
        if self.score_range and (self.labels or self.score_range[0] >= self.score_range[1]):
            refuse(f"score_range={list(self.score_range)} must rise, and is for regressions (labels=null)")
        fitting = OF_SCORES if self.labels is None else METRICS - OF_SCORES
        if wrong := [metric for metric in self.metrics if metric not in fitting]:
            refuse(f"metrics names {wrong[0]}, which is for {'classes' if self.labels is None else 'regressions'}")
        if "f1" in self.metrics and self.num_labels != 2:
            refuse(f"metrics names f1, which is for two classes, and labels names {self.num_labels}")
        if self.prompt:
            self.prompt.check(len(self.labels or ()), len(self.folder.text))

    @property
    def num_labels(self) -> int:
        """Outputs of the head: classes, or 1 for a regression."""
        return len(self.labels) if self.labels else 1

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it: not its prompt, which is the readout's."""
        return {key: value for key, value in asdict(self).items() if key != "prompt"}

    def scored(self) -> dict[str, tuple[str, str]]:
        """Every dev metric as a record names it -> its split and its plain name.

        Where several dev sets are scored the name ends in the split's: accuracy_matched, accuracy_mismatched.
        """
        return {
            f"{metric}_{split.removeprefix('dev_')}" if len(self.dev) > 1 else metric: (split, metric)
            for metric in self.metrics
            for split in self.dev
        }

    def metric_names(self) -> tuple[str, ...]:
        """What the headline may be: a metric that is scored on dev, or any where there is no dev set."""
        return tuple(self.scored()) or self.metrics

    @property
    def plain_headline(self) -> str:
        """The headline metric without the name of its dev set."""
        return self.scored()[self.headline][1] if self.dev else self.headline

    @property
    def parts(self) -> tuple["TaskSpec", ...]:
        """The tasks that are learned together: this one."""
        return (self,)

    @property
    def trained(self) -> tuple[str, ...]:
        """The splits that are trained on."""
        return (self.train,) if self.train else ()

    def task_of(self, split: str) -> "TaskSpec":
        """The task that a split is of."""
        return self

    def metric_name(self, split: str, metric: str) -> str:
        """How a record names a metric of a split, which need not be one of dev."""
        named = {place: name for name, place in self.scored().items()}
        return named.get((split, metric), f"{metric}_{split}")

    def headlines(self) -> list[tuple[str, str]]:
        """The split and the plain metric whose score is the headline."""
        return [self.scored()[self.headline]]

    def means(self) -> dict[str, tuple[str, ...]]:
        """What a record names as the mean of other metrics, and these: nothing."""
        return {}


@dataclass(frozen=True)
class JointTask:
    """Several tasks that one run learns together, with a head for each: one batch is of one task.

    To those who read, train, score and record it is a task whose splits are those of its tasks ("dev_cola") and
    whose headline is the mean of theirs.

    Attributes:
        name: joint, and the names of the tasks.
        tasks: in the order of their numbers, which is that of their names.
        temperature: how batches are shared out: see conf/task/joint.yaml.
        labels: those of a task are its own.
    """

    name: Name
    version: Whole
    tasks: Annotated[tuple[TaskSpec, ...], Field(min_length=2, max_length=MOST_TASKS)]
    temperature: Annotated[float, Field(ge=1, le=LARGEST)] = 1.0
    labels: None = None

    headline: ClassVar[str] = "mean"
    plain_headline: ClassVar[str] = "mean"
    train: ClassVar[str] = "train"
    prompt: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Refuse tasks that cannot be learned together."""
        if unfit := [task.name for task in self.tasks if not (task.train and task.dev)]:
            refuse(f"tasks names {unfit[0]}, which has no training rows, or none that are scored")
        names = [name for task in self.tasks for name in _splits(task)]
        if twice := [name for name in names if names.count(name) > 1]:
            refuse(f"tasks: '{twice[0]}' would be a split of two of them")

    @property
    def parts(self) -> tuple[TaskSpec, ...]:
        """The tasks that are learned together."""
        return self.tasks

    @property
    def trained(self) -> tuple[str, ...]:
        """The splits that are trained on."""
        return tuple(f"train_{task.name}" for task in self.tasks)

    @property
    def dev(self) -> tuple[str, ...]:
        """The splits that are scored."""
        return tuple(f"{split}_{task.name}" for task in self.tasks for split in task.dev)

    @property
    def test(self) -> tuple[str, ...]:
        """The splits without public labels."""
        return tuple(f"{split}_{task.name}" for task in self.tasks for split in task.test)

    @property
    def num_labels(self) -> int:
        """Outputs of all heads together."""
        return sum(task.num_labels for task in self.tasks)

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it."""
        return {**asdict(self), "tasks": [task.meaning for task in self.tasks]}

    def metric_names(self) -> tuple[str, ...]:
        """What the headline may be."""
        return (self.headline,)

    def task_of(self, split: str) -> TaskSpec:
        """The task that a split is of."""
        return next(task for task in self.tasks if split in _splits(task))

    def metric_name(self, split: str, metric: str) -> str:
        """How a record names a metric of a split: as the task's own runs do, after the task's name."""
        task = self.task_of(split)
        return f"{task.name}_{task.metric_name(split.removesuffix(f'_{task.name}'), metric)}"

    def headlines(self) -> list[tuple[str, str]]:
        """The splits and the plain metrics whose mean is the headline."""
        every = [(task, *task.scored()[task.headline]) for task in self.tasks]
        return [(f"{split}_{task.name}", metric) for task, split, metric in every]

    def means(self) -> dict[str, tuple[str, ...]]:
        """What a record names as the mean of other metrics, and these."""
        held_out = [self.metric_name(f"held_out_{task.name}", task.plain_headline) for task in self.tasks]
        return {
            "mean": tuple(f"{task.name}_{task.headline}" for task in self.tasks),
            "mean_held_out": tuple(held_out),
        }


Task = TaskSpec | JointTask


def joint_name(tasks: Sequence[str]) -> str:
    """The name of a task that consists of these."""
    return "_".join(["joint", *tasks])


def _splits(task: TaskSpec) -> list[str]:
    """What the splits of a task are called among those of others."""
    return [f"{split}_{task.name}" for split in ("train", "held_out", *task.dev, *task.test)]
