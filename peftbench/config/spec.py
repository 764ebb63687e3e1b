"""The frozen dataclasses that a run is made of, and the fingerprint of what decides its score.

Nothing here knows Hydra or torch: `compose.py` makes these from yaml, everything below `run` takes them or plain
arguments.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from peftbench.config.bounds import (
    MOST,
    Count,
    InnerShare,
    Name,
    NotNegative,
    PathText,
    Positive,
    Share,
    Whole,
    refuse,
)
from peftbench.config.few_labels import ALL_LABELS, BY_CLASSIFIER, NOT_SELF_TRAINED, ReadoutSpec, SelfTrain, Shots
from peftbench.config.fingerprint import STREAMS, digest, without_addresses, without_neutral
from peftbench.config.objective import BY_TASK, ObjectiveSpec
from peftbench.config.tasks import Task as Task
from peftbench.config.tasks import TaskSpec as TaskSpec
from peftbench.ground.errors import shown

Kind = Literal[
    "query",
    "key",
    "value",
    "attention_output",
    "intermediate",
    "output",
    "layer_norm",
    "embeddings",
    "pooler",
    "attention_norm",
    "output_norm",
]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Layout:
    """Where the standard module kinds lie in an architecture, and what else sets it apart.

    Attributes:
        head: the classifier; masked_head: the head for masked tokens. Dotted names of modules.
        depth: the configuration's key for the number of layers.
        positions_from: how many of max_position_embeddings no token takes; "padding": those up to the padding id's.
        attention: bench (this bench's own) or a form that transformers names.
        starts_in_the_middle: whether layers pass on hidden states alone, as protocol.keep_prefix needs.
        prunes_heads: whether attention goes on with fewer heads, as Light-PEFT needs.
        fused: how one map for query, key and value holds them: stacked, one below the other, each with all its heads.
            None: in another way, or there are three maps.
    """

    layers: str
    kinds: dict[Kind, tuple[str, ...]]
    head: tuple[str, ...]
    depth: str = "num_hidden_layers"
    masked_head: tuple[str, ...] = ()
    positions_from: Whole | Literal["padding"] = 0
    attention: Literal["bench", "eager", "sdpa"] = "bench"
    starts_in_the_middle: bool = True
    prunes_heads: bool = False
    fused: Literal["stacked"] | None = None


WEIGHTS_WORDS = ("auto", "hub", "package", "random")  # values of model.weights that are no folder


@dataclass(frozen=True)
class ModelSpec:
    """A backbone: where its weights come from, and the numbers to build it without them."""

    name: str
    model_type: str
    layout: Layout
    config: dict[str, Any]
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    sha256: str | None = None
    pickle_sha256: str | None = None
    weights: PathText = "auto"

    @property
    def depth(self) -> int:
        """Number of encoder layers."""
        return int(self.config[self.layout.depth])

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it: not where modules lie."""
        meant = asdict(self)
        del meant["layout"], meant["pickle_sha256"]
        return meant

    @property
    def stream(self) -> int:
        """Version of the random numbers of its dropout."""
        return STREAMS.get(self.model_type, 1) if self.layout.attention == "bench" else 1

    @property
    def positions(self) -> int:
        """The most tokens that a row can have."""
        first = self.layout.positions_from
        taken = int(self.config["pad_token_id"]) + 1 if first == "padding" else first
        return int(self.config["max_position_embeddings"]) - taken


@dataclass(frozen=True)
class DataSpec:
    """Where the rows come from."""

    name: str
    source: Literal["hub", "folder", "sample"]
    path: PathText | None = None
    revision: Name | None = None
    limit: Count | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.source != "sample":
            refuse("path must be given")

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it: the same rows may lie in any folder."""
        meant = {"source": self.source, "revision": self.revision, "limit": self.limit}
        return {**meant, "path": self.path} if self.source == "hub" else meant


@dataclass(frozen=True)
class Scope:
    """Where a method may act. `None` means everywhere."""

    layers: tuple[Whole, ...] | None = None
    kinds: tuple[Kind, ...] | None = None


@dataclass(frozen=True)
class MethodSpec:
    """A method by name, the class that implements it, and its hyper-parameters."""

    name: str
    target: str
    arguments: dict[str, Any]

    @classmethod
    def from_keys(cls, name: str, keys: Mapping[str, Any]) -> "MethodSpec":
        """A method from the keys of its yaml: `_target_`, its hyper-parameters, and `default_lr`, which is none."""
        arguments = {key: value for key, value in keys.items() if key not in ("_target_", "default_lr")}
        return cls(name, str(keys.get("_target_")), arguments)

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it: a class of this package by its name, wherever it lies; others by address."""
        meant = without_neutral({"_target_": self.target, **self.arguments}, "method.")
        return {"name": self.name, **without_addresses(meant)}


@dataclass(frozen=True)
class Budget:
    """How many backbone entries may train: a number, a share of the backbone's, or as many as another method's.

    Where all are None the method's own hyper-parameters decide. `budgets.resolve` turns the others into `entries`.
    """

    name: str = "none"
    entries: Count | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    like: MethodSpec | None = None

    def given(self) -> list[str]:
        """What was asked for, as words of a command line."""
        like = None if self.like is None else self.like.name
        values = {"entries": self.entries, "fraction": self.fraction, "like": like}
        return [f"budget.{key}={value}" for key, value in values.items() if value is not None]

    @property
    def meaning(self) -> dict[str, Any]:
        """What a fingerprint holds of it."""
        like = None if self.like is None else self.like.meaning
        return {"entries": self.entries, "fraction": self.fraction, "like": like}


@dataclass(frozen=True)
class Attachment:
    """What is attached to a backbone: a method, where it may act, and how much of it may train."""

    method: MethodSpec
    scope: Scope
    budget: Budget


@dataclass(frozen=True)
class Protocol:
    """Everything but the method that decides a score. Units and sources stand in conf/protocol/default.yaml."""

    lr: Positive
    head_lr: Positive | None = None
    epochs: Annotated[int, Field(gt=0, le=100_000)] = 5
    max_steps: Count | None = None
    batch_size: Count = 32
    accumulation: Count = 1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.06
    weight_decay: NotNegative = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip: Positive | None = 1.0
    max_length: Annotated[int, Field(ge=8, le=MOST)] = 128
    bucketing: bool = True
    precision: Literal["bf16", "fp32"] = "bf16"
    evaluate_every: Literal["epoch"] | Count = "epoch"
    patience: Count | None = None
    selection: Literal["last", "best_dev", "held_out"] = "last"
    held_out: InnerShare = 0.1
    eval_batch_size: Count = 128
    keep_prefix: bool = False
    gradient_checkpointing: bool = False

    def steps(self, *rows: int) -> int:
        """Optimizer steps of a run on so many training rows, of each task; an epoch's last batch may be smaller."""
        return self.max_steps or self.epochs * sum(-(-of_task // self.batch_size) for of_task in rows)


@dataclass(frozen=True)
class Select:
    """What is chosen before a cell runs: the learning rate, the boundaries of strata, or nothing.

    Attributes:
        factors: the learning rates tried, as multiples of protocol.lr; None: it is used as it is.
        head_factors: the head's rates tried then, as multiples of protocol.head_lr; None: it is used as it is.
        trials: how many strata are tried, boundaries and what trains in each; None: they are used as they are.
        rows: those on which they are scored.
        seed: the seed that all tries run with.
        max_steps: optimizer steps of each try; None: as many as the cell itself takes.
        rule: how one of the tries is chosen; conf/select/none.yaml says what each word means.
    """

    factors: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    head_factors: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    rows: Literal["held_out", "dev"] = "held_out"
    seed: Whole = 0
    max_steps: Count | None = None
    rule: Literal["best", "one_se"] = "best"

    def __post_init__(self) -> None:
        if self.factors is not None and self.trials is not None:
            refuse(f"factors={shown([*self.factors])} and trials={self.trials} cannot both be given: one is searched")
        if self.trials is not None and self.rule == "one_se":
            refuse(f"rule=one_se takes the smallest of rates; strata (trials={self.trials}) have no order")
        if self.head_factors is not None and self.factors is None:
            refuse(f"head_factors={shown([*self.head_factors])} needs factors: it is searched at the rate they choose")

    @property
    def meaning(self) -> dict[str, Any] | None:
        """What a fingerprint holds of it; None: nothing is chosen."""
        return None if self.factors is None and self.trials is None else asdict(self)


@dataclass(frozen=True)
class TrackerSpec:
    """How a tracker follows a run.

    Attributes:
        mode: how W&B is used.
        project: where the run is found in the tracker.
        entity: W&B's team or user.
        tags: added to the cell's own.
        log_every: optimizer steps between two points.
    """

    kind: Literal["wandb", "trackio"] = "wandb"
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "peftbench"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    log_every: Count = 10

    def __post_init__(self) -> None:
        if self.kind == "trackio" and find_spec("trackio") is None:
            refuse("kind=trackio: trackio is not installed; pip install 'peftbench[trackio]'")


@dataclass(frozen=True)
class Cell:
    """One (model, task, data, method, scope, budget, protocol, seed): what one run executes."""

    model: ModelSpec
    task: Task
    data: DataSpec
    method: MethodSpec
    scope: Scope
    budget: Budget
    protocol: Protocol
    select: Select
    tracker: TrackerSpec
    seed: int
    study: str
    outputs: str
    cache: str
    init_from: str | None = None
    init_sha256: str | None = None
    init_head: Literal["new", "kept"] = "new"
    predict_test: bool = False
    progress: bool = True
    checkpoint_every: NotNegative | None = None
    shots: Shots = ALL_LABELS
    readout: ReadoutSpec = BY_CLASSIFIER
    selftrain: SelfTrain = NOT_SELF_TRAINED
    objective: ObjectiveSpec = BY_TASK
    old_sha256: str | None = None

    @property
    def attachment(self) -> Attachment:
        """What is attached to the backbone."""
        return Attachment(self.method, self.scope, self.budget)

    @property
    def keeps_head(self) -> bool:
        """Whether the head of the run in `init_from` goes on, too: it is to be kept (init_head), the task can only be
        evaluated (AX), or that run is updated. Elsewhere the head starts anew."""
        return self.init_head == "kept" or self.task.train is None or self.objective.updates

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with whatever decides the score, the seed and shots.split apart.

        Paths are left out (the same rows may lie elsewhere; the record holds the hash of what was read), and so is
        what only says how a run is watched, a key that was added and changes nothing, and where modules lie.
        """
        decides = {
            "model": {**self.model.meaning, "stream": self.model.stream},
            "task": self.task.meaning,
            "data": self.data.meaning,
            "method": self.method.meaning,
            "scope": asdict(self.scope),
            "budget": self.budget.meaning,
            "protocol": asdict(self.protocol),
            "init": self.init_sha256,
            "select": self.select.meaning,
            "init_head": self.init_head,
            "readout": self.readout.meaning(self.task.prompt),
            "selftrain": self.selftrain.meaning,
            "objective": self.objective.meaning(self.old_sha256),
            "shots": self.shots.meaning,
        }
        return digest(without_neutral(decides))[:16]

    @property
    def folder(self) -> str:
        """The cell's own folder under `outputs`, which follows from the cell alone."""
        words = [self.task.name, self.method.name, self.model.name]
        if self.budget.name != "none":
            words.insert(2, self.budget.name)
        draw = f"split{self.shots.split}-seed{self.seed}" if self.shots.few else f"seed{self.seed}"
        return f"{self.study}/{'-'.join(words)}-{self.fingerprint[:8]}/{draw}"
