"""Head only: the backbone as a fixed feature extractor."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.backbone.model import Model
from peftbench.config.spec import Scope
from peftbench.methods.base import ParameterTuner


@dataclass(frozen=True)
class Head:
    """Nothing of the backbone trains; the head does, as with every method."""

    dial: ClassVar[str | None] = None

    def attach(self, model: Model, scope: Scope) -> ParameterTuner:
        """See `Method`."""
        return ParameterTuner({})
