"""What a run with few labels is made of: how many rows have their labels, and how a prompt asks for them."""

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from peftbench.config.bounds import MOST, Count, Name, Positive, Whole, refuse

PART = re.compile(
    r"(?P<space>\+?)sent(?P<lower>l?)(?P<cut>-?)_(?P<text>[01])", re.ASCII
)  # a text, in LM-BFF's notation


@dataclass(frozen=True)
class Shots:
    """How many rows of train have their labels. Units and sources stand in conf/shots/none.yaml."""

    per_class: Count | None = None
    total: Count | None = None
    split: Annotated[int, Field(ge=1, le=MOST)] = 1
    stratified: bool = False
    dev: Literal["none", "same"] = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be true together."""
        if self.per_class is not None and self.total is not None:
            refuse(f"per_class={self.per_class} and total={self.total} cannot both be given: they are two conventions")
        if self.stratified and self.total is None:
            refuse("stratified=true is for total; per_class has as many rows of each class by itself")
        if self.dev == "same" and not self.few:
            refuse("dev=same: there are no shots to take as many of; give per_class or total")

    @property
    def few(self) -> bool:
        """Whether only some rows have their labels."""
        return self.per_class is not None or self.total is not None

    @property
    def meaning(self) -> dict[str, Any] | None:
        """What a fingerprint holds of it: not which rows are drawn; None: all have their labels."""
        return {key: value for key, value in asdict(self).items() if key != "split"} if self.few else None


ALL_LABELS = Shots()


@dataclass(frozen=True)
class PromptSpec:
    """How a row asks for its label.

    Attributes:
        template: LM-BFF's notation: parts between asterisks, which are cls, mask, sep+, a text (sent_0; sentl_1: with
            its first letter lowered; sent-_0: without its last character; +sent_1: after a space), or words with _ for
            a space.
        words: the label words, in the order of the labels; of a regression those of the lowest and the highest score.
    """

    template: Name
    words: Annotated[tuple[Name, ...], Field(min_length=2, max_length=1000)]

    def __post_init__(self) -> None:
        """Refuse a template that cannot be read."""
        parts = self.template.split("*")
        if parts.count("mask") != 1:
            refuse(f"template has {parts.count('mask')} masks, and the label is read at one")
        if wrong := [part for part in parts if "sent" in part and not PART.fullmatch(part)]:
            refuse(f"template: {wrong[0]} is no text; sent_0, sentl_1, sent-_0 or +sent_1 would be")

    def check(self, classes: int, texts: int) -> None:
        """Refuse a prompt that is not one for so many classes (0: a regression) and texts of a row."""
        if len(self.words) != (classes or 2):
            refuse(f"prompt.words names {len(self.words)} words, and there are {classes or 2} labels to tell apart")
        places = [int(match["text"]) for part in self.template.split("*") if (match := PART.fullmatch(part))]
        if not places or max(places) >= texts:
            refuse(f"prompt.template names sent_{max(places, default='?')}, and a row has the texts 0 to {texts - 1}")


@dataclass(frozen=True)
class ReadoutSpec:
    """How hidden states become logits. Sources stand in conf/readout."""

    kind: Literal["classifier", "prompt"] = "classifier"
    head: Literal["trains", "rows", "all", "frozen"] = "trains"

    def __post_init__(self) -> None:
        """Refuse what cannot be true together."""
        if self.kind == "classifier" and self.head != "trains":
            refuse(f"head={self.head} is for kind=prompt; a classifier is drawn from the seed, and must train")

    def meaning(self, prompt: PromptSpec | None) -> dict[str, Any] | None:
        """What a fingerprint holds of it with the task's prompt; None: a classifier, which asks for none."""
        if self.kind == "classifier":
            return None
        return {**asdict(self), "prompt": None if prompt is None else asdict(prompt)}


BY_CLASSIFIER = ReadoutSpec()


@dataclass(frozen=True)
class SelfTrain:
    """How rows without labels are used. Units and sources stand in conf/selftrain/none.yaml."""

    kind: Literal["none", "list"] = "none"
    sessions: Whole = 6
    steps: Whole = 1000
    batch_size: Count = 16
    lr: Positive = 1e-4
    epochs: Whole = 50
    labels: Literal["soft", "hard"] = "soft"
    weights: Literal["uniform", "meta"] = "meta"
    meta_after: Annotated[float, Field(ge=0, le=1)] = 0.6
    meta_rows: Count = 4
    fresh: bool = True

    def __post_init__(self) -> None:
        """Refuse a session without a step."""
        if self.sessions and not (self.steps or self.epochs):
            refuse("steps=0 and epochs=0: a session would train nothing; sessions=0 is the teacher alone")

    @property
    def meaning(self) -> dict[str, Any] | None:
        """What a fingerprint holds of it; None: rows without labels are not used."""
        return None if self.kind == "none" else asdict(self)


NOT_SELF_TRAINED = SelfTrain()
