"""BitFit (Ben Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199)."""

from dataclasses import dataclass

from peftbench.config import Budget, Kind, Scope
from peftbench.methods.base import ParameterTuner, narrowed, require
from peftbench.models import Model


@dataclass(frozen=True)
class BitFit:
    """Every bias of the backbone trains, nothing else: y = W x + b with W frozen (section 3).

    LayerNorm biases are biases, LayerNorm weights are not (some toolkits train every 1-D tensor). `kinds` chooses
    a subset by whole module, so that `output` never means `attention_output` as substring matching would.
    """

    kinds: tuple[Kind, ...] | None = None

    def attach(self, model: Model, scope: Scope, budget: Budget) -> ParameterTuner:
        """See `Method`."""
        scope = narrowed(scope, self.kinds)
        found = {name: p for name, p in model.within(scope) if name.endswith(".bias")}
        require(found, "no bias", scope)
        return ParameterTuner(found)
