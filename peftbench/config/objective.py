"""What training makes small, as a person asks for it. Units and sources stand in conf/objective."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from peftbench.config.bounds import PathText, Positive, refuse
from peftbench.ground.errors import shown

Teacher = Literal["student_wrong", "old_right", "old", "none"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """The task's own loss, or one that keeps an update compatible with an older run.

    Attributes:
        old: folder of the older run.
        teacher: which rows are taught by the older run; the others are by the newer one.
        temperature: that teachers' and student's logits are divided by.
        mix: weight of the distillation; the rest is the task's loss.
    """

    kind: Literal["task", "muscle"] = "task"
    old: PathText | None = None
    teacher: Teacher = "student_wrong"
    temperature: Positive = 2.0
    mix: Annotated[float, Field(ge=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        """Refuse a run that nothing would ask."""
        if self.kind == "task" and self.old is not None:
            refuse(f"old={shown(self.old)} is for kind=muscle; the task's own loss asks no older run")

    @property
    def updates(self) -> bool:
        """Whether training goes on from the run in `init_from` as it is, its head included."""
        return self.kind == "muscle"

    @property
    def asks_old(self) -> bool:
        """Whether the older run teaches."""
        return self.kind == "muscle" and self.teacher != "none"

    @property
    def asks_new(self) -> bool:
        """Whether the newer run teaches, beside being where training starts."""
        return self.kind == "muscle" and self.teacher in ("student_wrong", "old_right")

    def meaning(self, old_sha256: str | None) -> dict[str, Any] | None:
        """What a fingerprint holds of it: the older run by what it learned, and nothing of what is not asked; None: the
        task's own loss.

        Args:
            old_sha256: the hash of that run's delta.
        """
        if self.kind == "task":
            return None
        if not self.asks_old:
            return {"kind": self.kind, "teacher": self.teacher}
        return {**asdict(self), "old": old_sha256}


BY_TASK = ObjectiveSpec()
