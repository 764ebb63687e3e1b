"""Scores of entries, and the best of them taken tensor by tensor."""

from dataclasses import dataclass

import torch


def d3(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
    """|gradient| / (|weight| + eps)^exp, in fp32 (Agarwal et al. 2024, arXiv 2408.14470; D3)."""
    bottom = weight.detach().abs().float().add_(eps)  # abs makes the copy that the rest works on
    if exp != 1:
        bottom.pow_(exp)
    return gradient.abs().float().div_(bottom)


@dataclass
class Best:
    """The `count` best entries seen so far: highest score first, equal scores by rising id.

    Tensors are offered one at a time, in any order, and nothing of their size is kept.
    """

    count: int
    ids: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    extra: torch.Tensor | None = None

    def offer(self, scores: torch.Tensor, first_id: int, extra: torch.Tensor | None = None) -> None:
        """Offer a tensor's entries.

        Args:
            scores: flat (entries,); entries of -inf are never taken.
            first_id: id of the tensor's first entry.
            extra: something to keep beside each taken entry, flat (entries,), e.g. its gradient.
        """
        if self.count == 0:
            return
        floor: float | torch.Tensor = -torch.inf
        if self.scores is not None and len(self.scores) == self.count:
            floor = self.scores[-1]
        elif scores.numel() > 4 * self.count:
            # the count-th best of this tensor alone is a floor already, and topk finds it without sorting all
            floor = torch.topk(scores, self.count, sorted=True).values[-1]
        places = ((scores >= floor) & (scores > -torch.inf)).nonzero().squeeze(1)  # a GPU is waited for here alone
        if not places.numel():
            return
        ids, found = places + first_id, scores[places]
        kept = None if extra is None else extra[places].float()
        if self.ids is not None and self.scores is not None:
            ids, found = torch.cat([self.ids, ids]), torch.cat([self.scores, found])
            kept = None if kept is None or self.extra is None else torch.cat([self.extra, kept])
        by_id = ids.argsort()
        best = by_id[found[by_id].argsort(descending=True, stable=True)[: self.count]]
        self.ids, self.scores = ids[best], found[best]
        self.extra = None if kept is None else kept[best]
