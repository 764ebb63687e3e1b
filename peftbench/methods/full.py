"""Full fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from peftbench.backbone.model import Model
from peftbench.config.spec import Scope
from peftbench.methods.base import ParameterTuner, require


@dataclass(frozen=True)
class Full:
    """Every backbone entry in scope trains. With scope.layers it is the classic "top layers only"."""

    dial: ClassVar[str | None] = None  # scope.layers says how much trains

    def attach(self, model: Model, scope: Scope) -> ParameterTuner:
        """See `Method`."""
        parameters = dict(model.within(scope))
        require(parameters, "no parameter", scope)
        return ParameterTuner(parameters)
