"""Full fine-tuning."""

from dataclasses import dataclass

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Scope
from peftbench.errors import ConfigError
from peftbench.methods.base import ParameterTuner, require


@dataclass(frozen=True)
class Full:
    """Every backbone entry in scope trains. With scope.layers it is the classic "top layers only"."""

    def attach(self, model: Model, scope: Scope, budget: Budget) -> ParameterTuner:
        """See `Method`. A budget is refused: scope.layers says how much trains."""
        if budget.entries is not None:
            raise ConfigError("budget: full fine-tuning takes none; limit it with scope.layers or scope.kinds")
        found = dict(model.within(scope))
        require(found, "no parameter", scope)
        return ParameterTuner(found)
