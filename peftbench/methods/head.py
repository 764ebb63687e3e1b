"""Head only: the backbone as a fixed feature extractor."""

from dataclasses import dataclass

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Scope
from peftbench.methods.base import ParameterTuner


@dataclass(frozen=True)
class Head:
    """Nothing of the backbone trains; the head does, as with every method."""

    def attach(self, model: Model, scope: Scope, budget: Budget) -> ParameterTuner:
        """See `Method`."""
        return ParameterTuner({})
