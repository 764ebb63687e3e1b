"""BitFit (Ben Zaken, Ravfogel and Goldberg 2022, arXiv 2106.10199)."""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
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
    a subset by whole module, so that `output` never means `attention_output` as substring matching would; `at_most`
    holds it to so many entries.
    """

    kinds: tuple[Kind, ...] | None = None
    at_most: Count | None = None
    dial: ClassVar[str | None] = None  # whole biases are kept or left out

    def attach(self, model: Model, scope: Scope) -> ParameterTuner:
        """See `Method`. Under a budget: by `PREFERRED` kind, from the top layer down, whatever fits."""
        scope = narrowed(scope, self.kinds)
        biases = {name: p for name, p in model.within(scope) if name.endswith(".bias")}
        require(biases, "no bias", scope)
        return ParameterTuner(biases if self.at_most is None else _those_that_fit(model, biases, self.at_most))

    def within(self, model: Model, scope: Scope, entries: int) -> "BitFit":
        """See `Method`."""
        return replace(self, at_most=entries)


def _those_that_fit(model: Model, biases: dict[str, nn.Parameter], entries: int) -> dict[str, nn.Parameter]:
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
        raise ConfigError(f"budget: {quantity(entries, 'entry')}; the smallest bias here has {smallest:,}")
    return {name: p for name, p in biases.items() if name in kept}
