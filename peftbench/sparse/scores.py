"""Scores of entries, and the best of them taken tensor by tensor. A score is one function here, or anybody's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator

from peftbench.ground.errors import ConfigError, near

Rank = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]


@dataclass(frozen=True)
class Score:
    """Ranks entries: those of the highest score train.

    Attributes:
        rank: (gradient, weight, eps, exp) -> scores of the weight's shape; eps and exp are the method's keys.
        gradient: what it is given as such: "mean" over batches, or of one step while a selection grows; "squares",
            the mean of the squared gradients over batches; "none", a single zero.
    """

    rank: Rank
    gradient: Literal["none", "mean", "squares"]


SCORES: dict[str, Score] = {}  # by the word that a method's yaml gives as `score`
RANDOM = "random"  # the one other word: drawn, not ranked (`sparse.select.random_ids`)


def score(gradient: Literal["none", "mean", "squares"]) -> Callable[[Rank], Rank]:
    """Make a function a score; its name is its word. See `Score` for what it is given."""

    def enter(rank: Rank) -> Rank:
        SCORES[rank.__name__] = Score(rank, gradient)
        return rank

    return enter


def _is_score(word: str) -> str:
    if word != RANDOM and word not in SCORES:
        raise ValueError(f"there is no such score; {near(word, [RANDOM, *SCORES])}")
    return word


ScoreName = Annotated[str, AfterValidator(_is_score)]


@score(gradient="none")
def magnitude(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
    """-|weight|: the smallest train (PaFi, Liao et al. 2023)."""
    return -weight.detach().float().abs()


@score(gradient="none")
def largest(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
    """|weight|: the largest train (Super-tuning, arXiv 2607.09287)."""
    return weight.detach().float().abs()


@score(gradient="squares")
def fisher(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
    """The diagonal of the empirical Fisher information (Fish mask, Sung et al. 2021)."""
    return gradient


@score(gradient="mean")
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

    Attributes:
        count: how many at most.
        threshold: what a score must exceed, as a multiple of the mean of all that are offered (see `cut`).
        ids, scores, extra: of the best; None: there is none yet.
    """

    count: int
    threshold: float | None = None
    ids: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    extra: torch.Tensor | None = None
    _sum: float | torch.Tensor = 0.0  # of all scores offered, in fp64
    _offered: int | torch.Tensor = 0

    def offer(self, scores: torch.Tensor, first_id: int, extra: torch.Tensor | None = None) -> None:
        """Offer a tensor's entries.

        Args:
            scores: flat (entries,); entries of -inf are never taken, and are none of those that the mean is of.
            first_id: id of the tensor's first entry.
            extra: something to keep beside each taken entry, flat (entries,), e.g. its gradient.
        """
        if self.count == 0:
            return
        if self.threshold is not None:
            free = scores > -torch.inf
            self._sum = self._sum + torch.where(free, scores, 0).sum(dtype=torch.float64)
            self._offered = self._offered + free.sum()
        floor: float | torch.Tensor = -torch.inf
        if self.scores is not None and len(self.scores) == self.count:
            floor = self.scores[-1]
        elif scores.numel() > 4 * self.count:
            # the count-th best of this tensor alone is a floor already, and topk finds it without sorting all
            floor = torch.topk(scores, self.count, sorted=True).values[-1]
        places = ((scores >= floor) & (scores > -torch.inf)).nonzero().squeeze(1)  # a GPU is waited for here alone
        if not places.numel():
            return
        ids, offered = places + first_id, scores[places]
        kept = None if extra is None else extra[places].float()
        if self.ids is not None and self.scores is not None:
            ids, offered = torch.cat([self.ids, ids]), torch.cat([self.scores, offered])
            kept = None if kept is None or self.extra is None else torch.cat([self.extra, kept])
        by_id = ids.argsort()
        best = by_id[offered[by_id].argsort(descending=True, stable=True)[: self.count]]
        self.ids, self.scores = ids[best], offered[best]
        self.extra = None if kept is None else kept[best]

    def cut(self, required: bool = True) -> None:
        """Once all were offered: let go of those whose score does not exceed the threshold.

        Args:
            required: whether one must be left.

        Raises:
            ConfigError: none is.
        """
        if self.threshold is None or self.ids is None or self.scores is None:
            return
        least = float(self.threshold * self._sum / self._offered)
        above = self.scores.double() > least
        if required and not above.any():
            raise ConfigError(
                f"method.threshold={self.threshold:g}: no score exceeds {least:.4g}, so many times the mean; "
                f"the highest is {float(self.scores[0]):.4g}"
            )
        self.ids, self.scores = self.ids[above], self.scores[above]
        self.extra = None if self.extra is None else self.extra[above]
