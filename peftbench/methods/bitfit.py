"""BitFit (Ben Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199)."""

from dataclasses import dataclass

from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Budget, Kind, Scope
from peftbench.errors import ConfigError
from peftbench.methods.base import ParameterTuner, narrowed, require

# Under a budget: first what the paper found to matter most (query and intermediate, section 4.2), then the rest.
PREFERRED = (
    "query",
    "intermediate",
    "output",
    "layer_norm",
    "attention_output",
    "value",
    "key",
    "pooler",
    "embeddings",
)


@dataclass(frozen=True)
class BitFit:
    """Every bias of the backbone trains, nothing else: y = W x + b with W frozen (section 3).

    LayerNorm biases are biases, LayerNorm weights are not (some toolkits train every 1-D tensor). `kinds` chooses
    a subset by whole module, so that `output` never means `attention_output` as substring matching would.
    """

    kinds: tuple[Kind, ...] | None = None

    def attach(self, model: Model, scope: Scope, budget: Budget) -> ParameterTuner:
        """See `Method`. A budget keeps whole biases: by `PREFERRED` kind, from the top layer down, whatever fits."""
        found = self._biases(model, scope)
        require(found, "no bias", narrowed(scope, self.kinds))
        if budget.entries is not None:
            found = _within_budget(model, found, budget.entries)
        return ParameterTuner(found)

    def entries(self, model: Model, scope: Scope) -> int:
        """How many entries would train there."""
        return sum(bias.numel() for bias in self._biases(model, scope).values())

    def _biases(self, model: Model, scope: Scope) -> dict[str, nn.Parameter]:
        return {name: p for name, p in model.within(narrowed(scope, self.kinds)) if name.endswith(".bias")}


def _within_budget(model: Model, biases: dict[str, nn.Parameter], entries: int) -> dict[str, nn.Parameter]:
    def preference(name: str) -> tuple[int, int]:
        place = model.place(name)
        kind = min(PREFERRED.index(kind) for kind in place.kinds if kind in PREFERRED)
        return kind, -(place.layer if place.layer is not None else -1)

    kept: dict[str, nn.Parameter] = {}
    for name in sorted(biases, key=preference):
        if biases[name].numel() <= entries:
            kept[name] = biases[name]
            entries -= biases[name].numel()
    if not kept:
        smallest = min(p.numel() for p in biases.values())
        raise ConfigError(f"budget: {entries:,} entries; the smallest bias here has {smallest:,}")
    return {name: p for name, p in biases.items() if name in kept}
