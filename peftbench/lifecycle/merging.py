"""How changes of one backbone, each learned on its own task, become one: tau_t (tasks, entries) to tau* (entries,).

The merged weights are theta_0 + scale * tau*. What a method needs beyond the changes (curvature, inputs of linear maps)
is measured on rows of each task and handed in. Words and formulas as in the papers named; shares count the entries that
are handed in, all of them together or those of every weight apart (`within`).
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from peftbench.config.bounds import Count, InnerShare
from peftbench.ground.seeds import stream
from peftbench.lifecycle.held_out import HELD_OUT, Scaled

Keep = Annotated[float, Field(gt=0, le=1)]
Parts = Sequence[slice]  # where the entries of each weight lie


@dataclass(frozen=True)
class Changes:
    """What several runs changed, entry by entry.

    Attributes:
        rows: (tasks, entries) fp32.
        parts: where each weight's entries lie; together they are all entries.
        tasks: what each row was learned on.
        seed: that of the runs.
        curvature: diagonal Fisher information, (tasks, entries), where it is needed.
        inputs: of each weight of a linear map, by its place in `parts`: its shape and the tasks' X'X, (tasks, in, in).
    """

    rows: torch.Tensor
    parts: Parts
    tasks: Sequence[str]
    seed: int = 0
    curvature: torch.Tensor | None = None
    inputs: dict[int, tuple[torch.Size, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Merge(Scaled):
    """Keys that every way of merging has; units and sources stand in conf/merge.

    Attributes:
        needs: what it needs beside the changes.
        skips_unchanged: whether a run that changed nothing is left out.
    """

    over: Literal["touched", "backbone"]
    equalize: Literal["none", "norm"]
    heads: Literal["kept", "refit", "both"]
    refit_rows: Count

    needs: ClassVar[Literal["curvature", "inputs"] | None] = None
    skips_unchanged: ClassVar[bool] = False

    @property
    def keys(self) -> dict[str, Any]:
        """What of it decides the merged backbone."""
        idle = {"heads", "refit_rows"}
        idle |= set() if self.scale == HELD_OUT else {"grid"}
        idle |= {"choose_rows"} if self.is_given else set()
        return {key: one for key, one in {**asdict(self), "grid": sorted(self.grid)}.items() if key not in idle}

    @property
    def is_given(self) -> bool:
        """Whether nothing of it is chosen on held-out rows."""
        return self.scale != HELD_OUT

    def by_share(self) -> "dict[float | None, Merge]":
        """The same for every share of entries that is tried, by that share; None: there is no choice."""
        return {None: self}

    def merged(self, changes: Changes) -> torch.Tensor:
        """tau*, (entries,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sparsified(Merge):
    """A way that keeps a share of every run's entries.

    Attributes:
        keep: the share; held_out: the best of `keeps`, together with the scale.
    """

    keep: Keep | Literal["held_out"]
    keeps: Annotated[tuple[Keep, ...], Field(min_length=1, max_length=100)]

    @property
    def keys(self) -> dict[str, Any]:
        """See `Merge`; the shares that are tried decide nothing where one is given."""
        keys = {**super().keys, "keeps": sorted(self.keeps)}
        return {key: one for key, one in keys.items() if key != "keeps" or self.keep == HELD_OUT}

    @property
    def is_given(self) -> bool:
        """See `Merge`."""
        return super().is_given and self.keep != HELD_OUT

    def by_share(self) -> dict[float | None, Merge]:
        """See `Merge`."""
        return {keep: replace(self, keep=keep) for keep in self.keeps} if self.keep == HELD_OUT else {None: self}

    @property
    def share(self) -> float:
        """`keep` as a number, as `merged` needs it."""
        assert not isinstance(self.keep, str)
        return self.keep


@dataclass(frozen=True)
class Average(Merge):
    """The mean of the rows."""

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return changes.rows.mean(0)


@dataclass(frozen=True)
class TaskArithmetic(Merge):
    """The sum of the rows (Ilharco et al. 2023, arXiv 2212.04089)."""

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return changes.rows.sum(0)


@dataclass(frozen=True)
class Magnitude(Sparsified):
    """The sum of the rows, each cut to its share of largest magnitudes."""

    within: Literal["all", "tensor"]

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return _apart(changes, self.within, lambda rows: _largest(rows, self.share).sum(0))


@dataclass(frozen=True)
class Ties(Magnitude):
    """Trimmed, a sign elected by the sum, and the mean of the entries that agree (Yadav et al. 2023, arXiv 2306.01708).

    Where the sum is exactly zero there is no consensus, and the entry stays as it was.
    """

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return _apart(changes, self.within, lambda rows: _agreeing(_largest(rows, self.share)))


@dataclass(frozen=True)
class Dare(Sparsified):
    """Every entry kept with probability `keep` and divided by it, then summed (Yu et al. 2024, arXiv 2311.03099)."""

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return self._dropped(changes).sum(0)

    def _dropped(self, changes: Changes) -> torch.Tensor:
        if self.share == 1:
            return changes.rows
        kept = []
        for row, task in zip(changes.rows, changes.tasks, strict=True):
            drawn = torch.Generator().manual_seed(stream(changes.seed, "merge") ^ zlib.crc32(task.encode()))
            kept.append(row * (torch.rand(row.shape, generator=drawn) < self.share) / self.share)
        return torch.stack(kept)


@dataclass(frozen=True)
class DareTies(Dare):
    """The same, merged by elected signs; nothing is trimmed a second time."""

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return _agreeing(self._dropped(changes))


@dataclass(frozen=True)
class Fisher(Merge):
    """The mean weighted by each task's diagonal Fisher information (Matena and Raffel 2022, arXiv 2111.09832).

    Sum F_t theta_t / sum F_t, which is theta_0 + sum F_t tau_t / sum F_t; the plain mean where no task has any.
    """

    rows: Count
    needs: ClassVar[Literal["curvature", "inputs"] | None] = "curvature"

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        assert changes.curvature is not None
        total = changes.curvature.sum(0)
        weighted = (changes.curvature * changes.rows).sum(0) / total.where(total > 0, torch.ones(()))
        return weighted.where(total > 0, changes.rows.mean(0))


@dataclass(frozen=True)
class RegMean(Merge):
    """Per linear map (sum tau_t G_t)(sum G_t)^-1, G_t = X'X of its inputs with off-diagonals times `offdiagonal`.

    Jin et al. 2023 (arXiv 2212.09849); everything that is no matrix of a linear map is averaged. A matrix that no run
    changed is left alone.
    """

    rows: Count
    offdiagonal: Annotated[float, Field(ge=0, le=1)]
    needs: ClassVar[Literal["curvature", "inputs"] | None] = "inputs"

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        assert changes.inputs is not None
        merged = changes.rows.mean(0)
        for place, (shape, products) in changes.inputs.items():
            part = changes.parts[place]
            matrices = changes.rows[:, part].double().view(len(changes.rows), *shape)
            grams = products.double() * self.offdiagonal
            grams += torch.diag_embed(products.double().diagonal(dim1=1, dim2=2) * (1 - self.offdiagonal))
            solved = torch.linalg.lstsq(grams.sum(0), (matrices @ grams).sum(0).T, driver="gelsd").solution.T
            merged[part] = solved.reshape(-1).float()
        return merged


@dataclass(frozen=True)
class Pcb(Sparsified):
    """Parameter competition balancing (Du et al. 2024, arXiv 2410.02396), as in the repository's top-level file.

    With a_t = |tau_t| clamped to its own order statistics at `trim` and 1 - trim, u_t = a_t min-maxed to [0, 1]:
    s_t = exp(n u_t^2) * inter_t, all but its share `keep` of largest cut to the threshold, min-maxed; then
    tau* = sum sign(tau_t) a_t s_t / sum s_t. The expressions of the indices are the repository's. Computed in float64
    with exp(n u^2 - n), which min-max cancels, so that many tasks do not overflow. A row of zeros is left out.

    Attributes:
        inter: sum: tanh(tau_t sum_s tau_s), of the top-level file and of its NLP code; scaled: tanh(tau_t sum_s v_s)
            with v = sign * u, of its vision code; pairs: sum_s tanh(v_t v_s), of its evolutionary search.
    """

    trim: InnerShare
    inter: Literal["sum", "scaled", "pairs"]
    within: Literal["all", "tensor"]
    skips_unchanged: ClassVar[bool] = True

    def merged(self, changes: Changes) -> torch.Tensor:
        """See `Merge`."""
        return _apart(changes, self.within, self._balanced)

    def _balanced(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows[(rows != 0).any(1)]
        if len(rows) == 0 or rows.shape[1] == 0:
            return torch.zeros(rows.shape[1])
        clamped = [self._clamped(row) for row in rows]
        scaled = [row.sign() * _min_max(size) for row, size in zip(rows, clamped, strict=True)]
        raw_sum, scaled_sum = rows.double().sum(0), torch.stack(scaled).sum(0)
        total, weights = torch.zeros_like(raw_sum), torch.zeros_like(raw_sum)
        for row, size, signed in zip(rows, clamped, scaled, strict=True):
            if self.inter == "pairs":
                inter = torch.stack([torch.tanh(signed * other) for other in scaled]).sum(0)
            else:
                inter = torch.tanh(row.double() * (raw_sum if self.inter == "sum" else scaled_sum))
            score = torch.exp(len(rows) * (signed**2 - 1)) * inter
            score = _min_max(score.clamp(min=_order_statistic(score, int(len(score) * (1 - self.share)))))
            total += row.sign() * size * score
            weights += score
        return (total / weights.clamp(min=1e-12)).float()

    def _clamped(self, row: torch.Tensor) -> torch.Tensor:
        sizes, d = row.double().abs(), len(row)
        low, high = int(d * self.trim), int(d * (1 - self.trim) - 1)
        return sizes.clamp(_order_statistic(sizes, low), _order_statistic(sizes, max(low, high)))


def _apart(changes: Changes, within: str, merge: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Merge all entries together, or those of every weight by themselves."""
    if within == "all":
        return merge(changes.rows)
    return torch.cat([merge(changes.rows[:, part]) for part in changes.parts])


def _largest(rows: torch.Tensor, keep: float) -> torch.Tensor:
    """Every row with all but int(keep * entries) entries of largest magnitude set to zero; of equal ones the first."""
    number = int(keep * rows.shape[1])
    if number >= rows.shape[1]:
        return rows
    kept = torch.zeros_like(rows)
    for row, out in zip(rows, kept, strict=True):
        if number == 0:
            continue
        sizes = row.abs()
        least = _order_statistic(sizes, len(sizes) - number)
        mask = sizes > least
        equal = torch.nonzero(sizes == least).flatten()
        mask[equal[: number - int(mask.sum())]] = True
        out[mask] = row[mask]
    return kept


def _agreeing(rows: torch.Tensor) -> torch.Tensor:
    """The mean over the entries whose sign is that of their sum."""
    agree = (rows.sign() == rows.sum(0).sign()) & (rows != 0)
    return (rows * agree).sum(0) / agree.sum(0).clamp(min=1)


def _order_statistic(values: torch.Tensor, index: int) -> torch.Tensor:
    return values.kthvalue(min(index, len(values) - 1) + 1).values


def _min_max(values: torch.Tensor) -> torch.Tensor:
    """To [0, 1]; zero where all are equal."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


METHODS: dict[str, type[Merge]] = {
    "average": Average,
    "task_arithmetic": TaskArithmetic,
    "magnitude": Magnitude,
    "ties": Ties,
    "dare": Dare,
    "dare_ties": DareTies,
    "fisher": Fisher,
    "regmean": RegMean,
    "pcb": Pcb,
    "pcb_nlp": Pcb,
    "pcb_vision": Pcb,
    "pcb_search": Pcb,
}
