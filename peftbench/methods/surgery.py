"""Model Surgery (Wang et al. 2024, arXiv 2407.08770): rows of the feed-forward maps moved along a direction.

Nothing trains: it is what an edit of a finished run is stored as. The rows and the direction are chosen in
`lifecycle.surgery`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, Whole
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError, DataError
from peftbench.methods.base import ParameterTuner, check_fit


@dataclass(frozen=True)
class Surgery:
    """g <- g + alpha v for some rows g: what single neurons of the feed-forward sub-layers read.

    Attributes:
        rows: how many are moved.
        directions: how many vectors alpha v there are: one for all layers, or one for each.
    """

    rows: Whole
    directions: Count = 1
    dial: ClassVar[str | None] = None

    def attach(self, model: Model, scope: Scope) -> "SurgeryTuner":
        """See `Method`; the scope is not asked, since rows are chosen among all layers.

        Raises:
            ConfigError: the backbone's feed-forward sub-layers are no pairs of maps, or have fewer rows.
        """
        return SurgeryTuner(self, model, neurons(model))


def neurons(model: Model) -> dict[str, int]:
    """What every feed-forward sub-layer reads, layer by layer: the name of its first map's weight -> neurons.

    The neurons' rows (neurons, hidden) are the first of that weight. A gated map (ModernBERT's, of twice as many rows)
    holds first those under the activation, which correspond to the paper's `gate_proj`, then what they multiply.

    Raises:
        ConfigError: the sub-layers are no pairs of maps (a low-rank backbone).
    """
    pairs = [model.linears(Scope(None, (kind,))) for kind in ("intermediate", "output")]
    if not pairs[0] or len(pairs[0]) != len(pairs[1]):
        raise ConfigError(
            f"model={model.name}: its feed-forward sub-layers are no pairs of maps, whose rows are edited"
        )
    return {f"{name}.weight": second.in_features for (name, _), (_, second) in zip(*pairs, strict=True)}


@torch.no_grad()
def move(
    weights: Mapping[str, torch.Tensor], counts: Mapping[str, int], rows: torch.Tensor, shifts: torch.Tensor
) -> None:
    """Add alpha v to rows, in place.

    Args:
        weights: of the first maps, (at least so many rows, hidden).
        counts: as `neurons` gives them.
        rows: numbers (N,) of rows, each once, counted through all layers.
        shifts: alpha v: (1, hidden) of all layers, or (layers, hidden).
    """
    for name, chosen, shift in _by_layer(counts, rows, shifts):
        weights[name][chosen.to(weights[name].device)] += shift.to(weights[name])


def _by_layer(
    counts: Mapping[str, int], rows: torch.Tensor, shifts: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Of every layer with rows: the weight's name, their numbers in it, and what is added to them."""
    first = 0
    for layer, (name, count) in enumerate(counts.items()):
        chosen = rows[(rows >= first) & (rows < first + count)].long() - first
        if len(chosen):
            yield name, chosen, shifts[layer if len(shifts) > 1 else 0]
        first += count


class SurgeryTuner(ParameterTuner):
    """Rows of the model's own weights, moved when a delta is put in."""

    def __init__(self, method: Surgery, model: Model, counts: Mapping[str, int]) -> None:
        super().__init__({})
        parameters = dict(model.backbone())
        self._counts, self._weights = counts, {name: parameters[name] for name in counts}
        total, width = sum(counts.values()), next(iter(self._weights.values())).shape[1]
        if method.rows > total or method.directions not in (1, len(counts)):
            raise ConfigError(f"method: {total:,} rows in {len(counts)} layers of model={model.name}, not as many")
        self._total = total
        self._moved = {
            "rows": torch.arange(method.rows, dtype=torch.int32),
            "shifts": torch.zeros(method.directions, width),
        }

    def touched(self) -> Iterable[str]:
        """The first maps of the feed-forward sub-layers."""
        return list(self._weights)

    def delta(self) -> Mapping[str, torch.Tensor]:
        """`rows` (N,) int32, counted through all layers, and `shifts` (1 or layers, hidden): alpha v."""
        return dict(self._moved)

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`; asked once.

        Raises:
            DataError: it is no edit of these rows.
        """
        check_fit(self._moved, tensors)
        rows = tensors["rows"]
        if rows.dtype != torch.int32 or (len(rows) and not (rows[0] >= 0 and rows[-1] < self._total)):
            raise DataError(f"the delta does not fit: rows must be numbers below {self._total:,}")
        if not (rows[1:] > rows[:-1]).all():
            raise DataError("the delta does not fit: rows must rise")
        self._moved = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        move(self._weights, self._counts, rows, tensors["shifts"])

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """What was added to rows, zero elsewhere."""
        for name, weight in self._weights.items():
            yield name, weight.detach().float() - before[name].to(weight.device).float()

    def kept(self) -> int:
        """The entries of the rows."""
        return len(self._moved["rows"]) * self._moved["shifts"].shape[1]

    def kept_bounds(self) -> tuple[int, int]:
        """The same."""
        return self.kept(), self.kept()
