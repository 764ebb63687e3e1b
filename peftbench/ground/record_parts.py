"""What a record holds, part by part: typed and bounded, so that the record of a stranger is checked when read."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from peftbench.ground.quantity import quantity

Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=-1.001, le=1.001)]  # [-1, 1], and what rounding adds
Whole = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Place = Annotated[str, Field(min_length=1, max_length=4096)]  # a folder


@dataclass(frozen=True)
class CellName:
    """The words that name a cell."""

    task: Name
    method: Name
    model: Name
    data: Name
    budget: Name
    seed: Whole
    study: Name


@dataclass(frozen=True)
class Headline:
    """The metric that a table shows first: the selected evaluation's value in [-1, 1], and its standard error over
    the rows (bootstrap). Both are None where nothing was scored.
    """

    name: Name
    value: Score | None
    standard_error: Amount | None


@dataclass(frozen=True)
class Evaluation:
    """Scores at one moment of training, None where they were not finite.

    Attributes:
        step: optimizer steps done.
        epoch: passes over the training rows done.
        metrics: every metric of every scored split, in [-1, 1].
        collapsed: the predictions of a scored split are all the same.
        chosen_by: the number that selection looks at.
        loss: the task's own loss on the rows of that number, mean over rows; None in records before version 0.4.
    """

    step: Whole
    epoch: Amount
    metrics: dict[Name, Score | None]
    collapsed: bool
    chosen_by: Number | None
    loss: Number | None = None


@dataclass(frozen=True)
class Metrics:
    """The selected evaluation and all of them, in the order of time."""

    selected: Evaluation | None
    evaluations: list[Evaluation]
    selection: Name
    collapsed: bool

    @property
    def chosen(self) -> dict[str, float | None]:
        """The metrics of the selected evaluation; none where nothing was scored."""
        return self.selected.metrics if self.selected else {}


@dataclass(frozen=True)
class Counts:
    """Trainable entries (numbers, not tensors).

    Attributes:
        backbone: what the method trains, at most: all that ever trains at one time.
        head: what every method trains besides.
        total: both.
        model: all entries of backbone and head, trained or not, without what the method adds.
        stored_bytes: size of the delta's tensors; None before there is one.
        kept: of `backbone`, what is left when training ends; fewer where a method prunes what it trained. None in
            records of before version 0.3.
    """

    backbone: Whole
    head: Whole
    total: Whole
    model: Whole
    stored_bytes: Whole | None = None
    kept: Whole | None = None

    def as_dict(self) -> dict[str, int | None]:
        """The counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class Attention:
    """The backbone's attention modules, and how many of them this bench's own function computed: on a GPU none."""

    modules: Whole
    ours: Whole


@dataclass(frozen=True)
class Moment:
    """What a selection had chosen at a step: entries by kind, by layer, and by both ("3 query").

    Records of before version 0.4 say nothing by both.
    """

    step: Whole
    by_kind: dict[Name, Whole]
    by_layer: dict[Name, Whole]
    by_place: dict[Name, Whole] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetFacts:
    """What is known of every budget, and of one that a selection grew into; methods add facts of their own.

    Attributes:
        asked, used: backbone entries asked for, and trained.
        growth: (step, entries chosen by then).
        by_kind, by_layer, by_place: entries chosen at the end; see `Moment`.
        over_time: the same at up to ten moments.
    """

    name: Name
    asked: Whole | None
    used: Whole
    left: int | None
    growth: list[tuple[Whole, Whole]] = field(default_factory=list)
    by_kind: dict[Name, Whole] = field(default_factory=dict)
    by_layer: dict[Name, Whole] = field(default_factory=dict)
    by_place: dict[Name, Whole] = field(default_factory=dict)
    over_time: list[Moment] = field(default_factory=list)


@dataclass(frozen=True)
class Times:
    """Seconds by phase, and the moments of start and end (UTC, ISO 8601).

    The start is the first one, also of a run that was stopped and went on from its checkpoint (from version 0.5 on).
    """

    total_s: Amount
    train_s: Amount
    eval_s: Amount
    setup_s: Number
    started: Name
    ended: Name


@dataclass(frozen=True)
class Memory:
    """Peak of the process, or of the GPU where there is one, in MiB."""

    peak_mb: Amount


@dataclass(frozen=True)
class Throughput:
    """Speed of training, and the share of the tokens computed that was padding."""

    tokens_per_s: Amount
    steps_per_s: Amount
    padding_share: Amount


@dataclass(frozen=True)
class Flops:
    """Floating-point operations in products of matrices and in attention; a multiplication and an addition are two.

    Attributes:
        width: tokens of the row that `backbone` and `forward` are of.
        backbone: one row forward through backbone and head, before the method was attached.
        forward: the same with the method as training left it, not merged; None where it did not end well.
        training: all optimizer steps, forward and backward; None where it did not end well, or had several phases.
    """

    width: Whole
    backbone: Whole
    forward: Whole | None = None
    training: Whole | None = None

    @property
    def more(self) -> int | None:
        """What the method adds to a row, not merged; below 0 where it made the backbone smaller."""
        return None if self.forward is None else self.forward - self.backbone


@dataclass(frozen=True)
class Energy:
    """Joules that the machine's meters counted during the run: of all CPU packages, whatever ran on them, and of the
    GPU. None: there is no such meter, or it may not be read.
    """

    cpu: Amount | None
    gpu: Amount | None


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of what a run was made of and made, as hexadecimal digits; None where there was none.

    Attributes:
        data: of the rows of every split.
        weights: of the file of weights; None for random ones.
        tokenizer: of the tokenizer (records of version 0.3 on).
        beside: of the configuration and the tokenizer's files, where the weights were in a folder that was named
            (records of version 0.4 on).
        delta: of the delta's file.
        parents: of the deltas of the runs that an artefact or an update was made of, by their folders (`files.place`).
    """

    data: dict[Name, Name] = field(default_factory=dict)
    weights: Name | None = None
    tokenizer: Name | None = None
    beside: Name | None = None
    delta: Name | None = None
    parents: dict[Place, Name] = field(default_factory=dict)


@dataclass(frozen=True)
class Glance:
    """What is seen of a record without looking at the rest.

    Attributes:
        status: how the run ended; None: there is no record, or a damaged one. One of another schema counts as "done":
            it is never run over.
        hashes: what the run was made of.
        seconds: what it took; peak_mb: MiB that it took at most. None: it does not say.
        failed_on: hosts on which the cell failed.
    """

    status: str | None = None
    hashes: Hashes = field(default_factory=Hashes)
    seconds: Amount | None = None
    peak_mb: Amount | None = None
    failed_on: list[Name] = field(default_factory=list)


@dataclass(frozen=True)
class Made:
    """How an artefact was made of finished runs.

    Attributes:
        by: the command.
        keys: its settings, by name.
        facts: what it saw on the way, JSON-like.
    """

    by: Name
    keys: dict[Name, Any]
    facts: dict[Name, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Git:
    """Commit of the source and whether it was changed since; None outside a checkout."""

    commit: Name | None
    dirty: bool | None


@dataclass(frozen=True)
class Hardware:
    """What the run was computed on."""

    device: Name
    processes: Whole
    threads: Whole
    cores: Whole | None


@dataclass(frozen=True)
class Worker:
    """Who computed a run: a process of a host."""

    host: Name
    process: Whole


@dataclass(frozen=True)
class FewLabels:
    """How many rows of train had their labels, and which split of few this is."""

    split: Whole
    per_class: Whole | None = None
    total: Whole | None = None

    @property
    def words(self) -> str:
        """The number as a table says it; empty where all rows had theirs."""
        if self.per_class is not None:
            return f"{self.per_class}/class"
        return "" if self.total is None else quantity(self.total, "row")


@dataclass(frozen=True)
class ReadBy:
    """How a run read its logits: by a classifier or a prompt, and what of the prompt's head trained."""

    kind: Name = "classifier"
    head: Name = "trains"

    @property
    def words(self) -> str:
        """As a table says it; empty for a classifier."""
        if self.kind == "classifier":
            return ""
        return self.kind if self.head == "trains" else f"{self.kind}-{self.head}"


@dataclass(frozen=True)
class SelfTrained:
    """How a run used rows without labels."""

    kind: Name = "none"
    weights: Name = "meta"
    labels: Name = "soft"
    fresh: bool = True

    @property
    def words(self) -> str:
        """As a table says it; empty where it did not."""
        if self.kind == "none":
            return ""
        changed = [self.weights != "meta" and self.weights, self.labels != "soft" and self.labels]
        return "-".join([self.kind, *(word for word in changed if word), *([] if self.fresh else ["kept"])])


@dataclass(frozen=True)
class TaughtBy:
    """What a run's training made small, and who taught it."""

    kind: Name = "task"
    teacher: Name = "student_wrong"

    @property
    def words(self) -> str:
        """As a table says it; empty for the task's own loss."""
        if self.kind == "task":
            return ""
        return self.kind if self.teacher == "student_wrong" else f"{self.kind}-{self.teacher}"


@dataclass(frozen=True)
class Taken:
    """What a search chose for a stratum: its last layer (from zero; None: the top), and whose methods train there."""

    last: Annotated[int, Field(ge=-1)] | None
    like: Name


@dataclass(frozen=True)
class Search:
    """How the learning rate, or the strata of a method, were chosen.

    Attributes:
        chosen: the learning rate with the best score; of equal ones, or where all tries predict one class, that of
            the least loss, then that nearest to protocol.lr.
        rows: where the tries were scored: held_out or dev.
        scores: score of every learning rate (or strata) tried; None where that try failed or diverged.
        folders: the tries' folders under `outputs`.
        seconds: what the tries cost together.
        strata: those chosen likewise, of equal ones the first, by name; empty: they were not searched.
        losses: of every learning rate tried, as `scores`.
        chosen_head: the head's rate, chosen likewise; None: it was not searched.
        head_scores, head_losses: of every rate of the head tried at the chosen learning rate.
        rule: best, as said of `chosen`; one_se: the smallest rate within one standard error of the best.
        error, head_error: the standard error of the best score over its rows; None where it had no part in the choice.
    """

    chosen: Rate
    rows: Name
    scores: dict[Name, Number | None]
    folders: list[str]
    seconds: Amount
    strata: dict[Name, Taken] = field(default_factory=dict)
    losses: dict[Name, Number | None] = field(default_factory=dict)
    chosen_head: Rate | None = None
    head_scores: dict[Name, Number | None] = field(default_factory=dict)
    head_losses: dict[Name, Number | None] = field(default_factory=dict)
    rule: Name = "best"
    error: Amount | None = None
    head_error: Amount | None = None
