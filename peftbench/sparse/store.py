"""Chosen entries of many tensors as one flat fp32 parameter, with an int32 index beside it.

Entries are numbered through all candidate tensors: tensor i covers the ids [offsets[i], offsets[i + 1]). Per chosen
entry the store keeps its value (4 bytes) and position (4 bytes), and where the selection grows its order and what the
tensor held before (8 bytes); with Adam's two moments that is 16 to 24 bytes. Nothing else grows with the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.quantity import quantity


class SparseStore:
    """The chosen entries.

    Attributes:
        values: what the optimizer steps, (budget,) fp32, in the order in which entries were chosen; the tail that
            is not chosen yet is zero and gets zero gradients, so that Adam leaves it alone.
        index: flat positions of the chosen entries in their tensors, (used,) int32, by rising id.
        by_id: places of the chosen entries in `values`, (used,) int32, by rising id; None: they rise already.
        before: of a selection that grows, what the tensors held when entries were chosen, (used,) fp32, in that order:
            `load` puts it back where it lets go of entries. None of any other: it has the same entries for good.
    """

    def __init__(self, candidates: Mapping[str, nn.Parameter], budget: int, grows: bool = False) -> None:
        self.names, self.tensors = list(candidates), list(candidates.values())
        sizes = [tensor.numel() for tensor in self.tensors]
        self.offsets = [0]
        for size in sizes:
            self.offsets.append(self.offsets[-1] + size)
        self.total = self.offsets[-1]
        if budget > self.total:
            raise ConfigError(f"budget: {quantity(budget, 'entry')} asked, the candidates have {self.total:,}")
        if self.total >= 2**31:
            raise ConfigError(f"scope: {self.total:,} candidate entries; an int32 index reaches 2,147,483,647")
        device = self.tensors[0].device
        self.values = nn.Parameter(torch.zeros(budget, device=device))
        self.index = torch.zeros(0, dtype=torch.int32, device=device)
        self.by_id: torch.Tensor | None = None
        self.before = torch.zeros(0, device=device) if grows else None
        self._cuts = [0] * len(self.offsets)  # tensor i's entries are the sorted places [cuts[i], cuts[i + 1])

    @property
    def budget(self) -> int:
        """How many entries may be chosen."""
        return self.values.numel()

    @property
    def used(self) -> int:
        """How many are chosen so far."""
        return self.index.numel()

    @property
    def ids(self) -> torch.Tensor:
        """Ids of the chosen entries, (used,) int32, in the order in which they were chosen."""
        ids = self.index + self._offsets()
        return ids if self.by_id is None else torch.empty_like(ids).scatter_(0, self.by_id.long(), ids)

    def add(self, ids: torch.Tensor) -> torch.Tensor:
        """Choose more entries by id; their values are what the tensors hold now.

        Returns:
            Their places in `values`.
        """
        start = self.used
        held = self._held(ids)
        self._choose(torch.cat([self.ids, ids]))
        self.values.data[start : self.used] = held
        if self.before is not None:
            self.before = torch.cat([self.before, held])
        return torch.arange(start, self.used, device=ids.device)

    def _held(self, ids: torch.Tensor) -> torch.Tensor:
        """What the tensors hold now at these ids, fp32, in their order."""
        rising, order = ids.sort()
        held = torch.zeros(len(ids), device=ids.device)
        for i, (first, last) in enumerate(pairwise(self._cut(rising))):
            if first < last:
                index = rising[first:last].long() - self.offsets[i]
                held[order[first:last]] = self.tensors[i].detach().view(-1)[index].float().to(ids.device)
        return held

    def part(self, i: int) -> tuple[slice | torch.Tensor, torch.Tensor]:
        """Tensor i's chosen entries: places in `values`, and flat positions in the tensor (int32, rising)."""
        return self.places(i), self.index[self._cuts[i] : self._cuts[i + 1]]

    def places(self, i: int) -> slice | torch.Tensor:
        """Where tensor i's chosen entries lie in `values`."""
        cut = slice(self._cuts[i], self._cuts[i + 1])
        return cut if self.by_id is None else self.by_id[cut].long()

    def counts(self, first: int) -> list[int]:
        """How many of the entries that were chosen first each tensor has."""
        cuts = self._cut(self.ids[:first].sort().values)
        return [last - start for start, last in pairwise(cuts)]

    def write_back(self) -> None:
        """Put the values into the tensors, in the tensors' own precision."""
        self._write(self.values.detach())

    def _write(self, values: torch.Tensor) -> None:
        """Put numbers, in the order in which entries were chosen, into the tensors at these entries."""
        for i, tensor in enumerate(self.tensors):
            places, index = self.part(i)
            if index.numel():
                tensor.detach().view(-1)[index] = values[places].to(tensor.dtype)

    def to(self, device: torch.device) -> None:
        """Move values and ids to where the tensors are."""
        self.values.data, self.index = self.values.data.to(device), self.index.to(device)
        self.by_id = None if self.by_id is None else self.by_id.to(device)
        self.before = None if self.before is None else self.before.to(device)

    def tensors_by_name(self) -> dict[str, torch.Tensor]:
        """The chosen entries as "<tensor>.index" (int32, rising) and "<tensor>.values" (fp32): 8 bytes per entry."""
        tensors = {}
        for i, name in enumerate(self.names):
            places, index = self.part(i)
            if index.numel():
                tensors[f"{name}.index"] = index
                tensors[f"{name}.values"] = self.values.detach()[places]
        return tensors

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take up chosen entries as `tensors_by_name` gives them, and write them into the tensors.

        Where they are those that this store chose first, they keep that order; the others are let go.

        Raises:
            DataError: a name is no candidate, an index does not fit, or there are more entries than the budget.
        """
        ids, values = [self.index[:0].long()], [self.values.detach()[:0]]
        for i, index in self._stored(tensors):
            ids.append(index.to(self.index.device) + self.offsets[i])
            values.append(tensors[f"{self.names[i]}.values"].to(self.values.device))
        every, order = torch.cat(ids).sort()
        stored, count = torch.cat(values)[order], every.numel()
        if count > self.budget:
            raise DataError(f"the delta does not fit: {quantity(count, 'entry')}, the budget is {self.budget:,}")
        first = self.ids[:count].long()
        if torch.equal(first.sort().values, every):
            every, stored = first, stored[torch.searchsorted(every, first)]
        self._let_go()
        self.add(every.int())
        self.values.data[:count] = stored
        self.write_back()

    def _let_go(self) -> None:
        """Of all entries; those of a selection that grows hold again what they held before."""
        if self.before is not None:
            self._write(self.before)
            self.before = self.before[:0]
        self.values.data.zero_()
        self._choose(self.index[:0])

    def untouched(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Such tensors with what the candidates themselves hold at these entries.

        Raises:
            DataError: as `load`.
        """
        held = {}
        for i, index in self._stored(tensors):
            name = self.names[i]
            held[f"{name}.index"] = tensors[f"{name}.index"]
            held[f"{name}.values"] = self.tensors[i].detach().view(-1)[index].float()
        return held

    def _stored(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """The number of every tensor of a delta, and its flat positions, int64."""
        for name in sorted(key.removesuffix(".index") for key in tensors if key.endswith(".index")):
            if name not in self.names or f"{name}.values" not in tensors:
                raise DataError(f"the delta does not fit: {name} is no candidate here")
            i, index = self.names.index(name), tensors[f"{name}.index"].long()
            if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.tensors[i].numel()):
                raise DataError(f"the delta does not fit: an index of {name} lies outside it")
            yield i, index

    def restore(self, ids: torch.Tensor) -> None:
        """Take up ids in the order in which they were chosen; the tensors hold what they did before that.

        The values come with the trainables.
        """
        self._choose(ids.to(self.index.device))
        if self.before is not None:
            self.before = self._held(self.ids)

    def _choose(self, ids: torch.Tensor) -> None:
        """These entries and no others, in the order in which they were chosen."""
        assert ids.numel() <= self.budget, "more entries than the budget"
        rising, order = ids.sort()
        self.by_id = None if bool((ids == rising).all()) else order.int()
        self._cuts = self._cut(rising)
        self.index = rising - self._offsets()

    def _offsets(self) -> torch.Tensor:
        """Where the tensor of every chosen entry begins, by rising id."""
        starts, cuts = torch.tensor(self.offsets[:-1], dtype=torch.int32), torch.tensor(self._cuts)
        return starts.repeat_interleave(cuts.diff()).to(self.index.device)

    def _cut(self, rising: torch.Tensor) -> list[int]:
        """Where each tensor's ids begin among rising ones, and where the last one's end."""
        bounds = torch.tensor(self.offsets, device=rising.device, dtype=torch.int32)
        cuts: list[int] = torch.searchsorted(rising.contiguous(), bounds).tolist()
        return cuts


def quotas(sizes: Sequence[int], budget: int) -> list[int]:
    """Share a budget out over tensors in proportion to their sizes, exactly: largest remainders get the rest."""
    total = sum(sizes)
    exact = [size * budget for size in sizes]
    shares = [value // total for value in exact]
    left = budget - sum(shares)
    order = sorted(range(len(sizes)), key=lambda i: (-(exact[i] % total), i))
    for i in order[:left]:
        shares[i] += 1
    return shares
