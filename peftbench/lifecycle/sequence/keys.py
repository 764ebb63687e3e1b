"""What the words of conf/sequence and conf/learner make. Units and sources stand in those files."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from peftbench.config.bounds import Count, Name, NotNegative, Positive, Share, Whole, distinct
from peftbench.config.tasks import MOST_TASKS

Tasks = Annotated[tuple[Name, ...], Field(min_length=2, max_length=MOST_TASKS), AfterValidator(distinct)]
UpToOne = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class TaskSequence:
    """Which tasks come, in which order, and how many training rows of each."""

    tasks: Tasks
    order: Whole
    cap: Count | None


@dataclass(frozen=True)
class Featured:
    """What every learner is asked: what the feature phi(x) of a row is."""

    feature: Literal["mean", "cls"]


@dataclass(frozen=True)
class SimpleCilKeys(Featured):
    """Keys of conf/learner/simplecil.yaml."""


@dataclass(frozen=True)
class TrainedKeys(Featured):
    """Keys of learners that train: adapters beside the feed-forward networks, and a head."""

    epochs: Count
    batch_size: Count
    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    head_lr_factor: Positive
    weight_decay: NotNegative
    width: Count
    scale: Positive
    dropout: Share


@dataclass(frozen=True)
class WholeKeys(TrainedKeys):
    """Keys of learners that may train the whole backbone instead: conf/learner/finetune.yaml, joint.yaml."""

    trains: Literal["all", "adapters"]


@dataclass(frozen=True)
class AdaptersKeys(TrainedKeys):
    """Keys of conf/learner/aper.yaml and oracle.yaml."""


@dataclass(frozen=True)
class MosKeys(TrainedKeys):
    """Keys of conf/learner/mos.yaml."""

    pull: UpToOne
    merge_per_forward: bool
    orthogonality: NotNegative
    temperature: Positive
    covariance: Literal["full", "variance"]
    ridge: NotNegative
    align_epochs: Whole
    align_samples: Count
    align_lr: Positive
    align_weight_decay: NotNegative
    retrieval: Literal["refined", "first", "oracle"]
    rounds: Whole
    ensemble: bool


LearnerKeys = SimpleCilKeys | WholeKeys | AdaptersKeys | MosKeys
