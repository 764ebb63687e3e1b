"""What a run with few labels is made of: how many rows have their labels."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from peftbench.config.bounds import MOST, Count, refuse


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
            refuse("per_class and total cannot both be given: they are two conventions")
        if self.stratified and self.total is None:
            refuse("stratified=true is for total; per_class has as many rows of each class by itself")
        if self.dev == "same" and not self.few:
            refuse("dev=same: there are no shots to take as many of; give per_class or total")

    @property
    def few(self) -> bool:
        """Whether only some rows have their labels."""
        return self.per_class is not None or self.total is not None


ALL_LABELS = Shots()
