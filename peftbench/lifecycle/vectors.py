"""The changes that runs made to one backbone, as rows of entries, and rows of entries as weights again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Weights = Mapping[str, torch.Tensor]
Over = Literal["touched", "weights", "backbone"]


@dataclass(frozen=True)
class Vectors:
    """Task vectors: what every run changed.

    Attributes:
        before: the backbone's own weights, fp32.
        rows: (runs, entries) fp32, weights one after another.
        places: of each weight that has entries there: its name, and which of its entries they are (None: all).
    """

    before: Weights
    rows: torch.Tensor
    places: Sequence[tuple[str, torch.Tensor | None]]

    @property
    def parts(self) -> list[slice]:
        """Where the entries of each place lie."""
        ends = torch.tensor([self._size(name, chosen) for name, chosen in self.places]).cumsum(0).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _size(self, name: str, chosen: torch.Tensor | None) -> int:
        return self.before[name].numel() if chosen is None else len(chosen)

    def picked(self, tensors: Weights) -> torch.Tensor:
        """The same entries of other tensors of the backbone's shapes, (entries,)."""
        flat = [tensors[name].flatten() if at is None else tensors[name].flatten()[at] for name, at in self.places]
        return torch.cat(flat) if flat else torch.zeros(0)

    def added(self, change: torch.Tensor, scale: float) -> dict[str, torch.Tensor]:
        """The backbone's weights plus `scale` times a change (entries,): those that have entries there."""
        weights = {}
        for (name, at), part in zip(self.places, self.parts, strict=True):
            flat = self.before[name].flatten().clone()
            if at is None:
                flat += scale * change[part]
            else:
                flat[at] += scale * change[part]
            weights[name] = flat.view_as(self.before[name])
        return weights


def vectors(before: Weights, after: Sequence[Weights], over: Over) -> Vectors:
    """The task vectors of runs.

    Args:
        before: the backbone's own weights.
        after: those of every run.
        over: whose entries count: touched: the entries that any run changed; weights: all of the weights that any run
            changed; backbone: all.
    """
    rows, places = [], []
    for name, weight in before.items():
        change = torch.stack([(one[name].float() - weight.float()).flatten() for one in after])
        changed = (change != 0).any(0)
        if over != "backbone" and not changed.any():
            continue
        at = torch.nonzero(changed).flatten() if over == "touched" and not changed.all() else None
        places.append((name, at))
        rows.append(change if at is None else change[:, at])
    whole = torch.cat(rows, 1) if rows else torch.zeros(len(after), 0)
    return Vectors({name: weight.float() for name, weight in before.items()}, whole, places)


def equalized(rows: torch.Tensor) -> torch.Tensor:
    """Rows of one length, the mean of theirs; a row of zeros stays."""
    norms = rows.norm(dim=1, keepdim=True)
    return rows * norms.mean() / norms.where(norms > 0, torch.ones(()))


def geometry(rows: torch.Tensor, tasks: Sequence[str]) -> dict[str, Any]:
    """Lengths of rows (runs, entries), and for every two their cosine and how often their signs agree.

    Signs are compared where both changed.
    """
    norms = [float(row.norm()) for row in rows]
    cosines, agreement = {}, {}
    for i, one in enumerate(tasks):
        for j in range(i):
            pair, both = f"{tasks[j]}, {one}", (rows[i] != 0) & (rows[j] != 0)
            length = norms[i] * norms[j]
            cosines[pair] = float(rows[i] @ rows[j]) / length if length else 0.0
            same = (rows[i].sign() == rows[j].sign())[both]
            agreement[pair] = float(same.float().mean()) if len(same) else 0.0
    return {"norms": dict(zip(tasks, norms, strict=True)), "cosines": cosines, "sign_agreement": agreement}
