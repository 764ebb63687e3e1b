"""The selective engine: exact budgets, exact gradients, and nothing outside the selection ever changes."""

from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftbench.ground.errors import ConfigError, DataError
from peftbench.sparse.gradients import dense, sampled, watch_bias, watch_weight
from peftbench.sparse.schedule import unmasked
from peftbench.sparse.scores import Best, d3, magnitude
from peftbench.sparse.select import random_ids, weight_ids
from peftbench.sparse.store import SparseStore, quotas

shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


def store_of(sizes: list[tuple[int, int]], budget: int) -> SparseStore:
    random = torch.Generator().manual_seed(0)
    return SparseStore({f"t{i}": nn.Parameter(torch.randn(s, generator=random)) for i, s in enumerate(sizes)}, budget)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.data())
def test_quotas_are_exact_and_fair(sizes: list[int], data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, sum(sizes)))
    shares = quotas(sizes, budget)
    assert sum(shares) == budget
    for size, share in zip(sizes, shares, strict=True):
        assert abs(share - size * budget / sum(sizes)) < 1
        assert 0 <= share <= size


@given(st.integers(1, 5000), st.integers(1, 300), st.sampled_from(["uniform", "cosine", "front"]), st.integers(1, 20))
def test_a_schedule_rises_to_exactly_the_budget(budget: int, steps: int, shape: str, every: int) -> None:
    series = [unmasked(budget, steps, t, shape, every) for t in range(steps + 3)]  # type: ignore[arg-type]
    assert series[0] == 0
    assert all(a <= b for a, b in pairwise(series))
    assert series[steps:] == [budget] * 3
    if shape == "uniform" and every == 1:
        assert series[:-3] == [round(Fraction(budget * t, steps)) for t in range(steps)]
    for t in range(steps):
        if t % every:
            assert series[t] == series[t - 1]


@given(shapes, st.data())
def test_the_best_are_those_of_a_full_sort(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    store = store_of(sizes, 1)
    count = data.draw(st.integers(1, store.total))
    score = st.sampled_from([0.0, 0.5, 1.0, 2.0, -torch.inf])  # many ties
    scores = torch.tensor(data.draw(st.lists(score, min_size=store.total, max_size=store.total)))
    best = Best(count)
    for i in data.draw(st.permutations(range(len(sizes)))):
        cut = slice(store.offsets[i], store.offsets[i + 1])
        best.offer(scores[cut], store.offsets[i], extra=scores[cut] * 3)
    order = sorted((i for i in range(store.total) if scores[i] > -torch.inf), key=lambda i: (-scores[i], i))[:count]
    if not order:
        assert best.ids is None
        return
    assert best.ids is not None
    assert best.ids.tolist() == order
    assert best.extra is not None
    assert best.extra.tolist() == [3 * float(scores[i]) for i in order]


@given(shapes, st.data())
def test_a_store_gathers_writes_and_reloads(sizes: list[tuple[int, int]], data: st.DataObject) -> None:
    total = sum(a * b for a, b in sizes)
    store = store_of(sizes, total)
    before = [t.detach().clone() for t in store.tensors]
    left = list(range(total))
    while left and data.draw(st.booleans()):  # entries join in any order, a few at a time
        new = data.draw(st.lists(st.sampled_from(left), min_size=1, max_size=5, unique=True))
        store.add(torch.tensor(new, dtype=torch.int32))
        left = [i for i in left if i not in new]
    flat = torch.cat([t.reshape(-1) for t in before])
    chosen = store.ids.long()
    assert torch.equal(store.values.detach()[: store.used], flat[chosen])
    store.values.data[: store.used] += 1
    store.write_back()
    after = torch.cat([t.detach().reshape(-1) for t in store.tensors])
    expected = flat.clone()
    expected[chosen] += 1
    assert torch.equal(after, expected)

    other = store_of(sizes, total)
    other.load(store.tensors_by_name())
    assert torch.equal(torch.cat([t.detach().reshape(-1) for t in other.tensors]), after)
    assert sum(t.numel() * t.element_size() for t in store.tensors_by_name().values()) == 8 * store.used


def test_a_store_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="10 entries asked, the candidates have 6"):
        store_of([(2, 3)], 10)
    store = store_of([(2, 3)], 2)
    for tensors, message in (
        ({"x.index": torch.tensor([0]), "x.values": torch.zeros(1)}, "x is no candidate"),
        ({"t0.index": torch.tensor([6]), "t0.values": torch.zeros(1)}, "lies outside"),
        ({"t0.index": torch.tensor([0, 1, 2]), "t0.values": torch.zeros(3)}, "3 entries, the budget is 2"),
    ):
        with pytest.raises(DataError, match=message):
            store.load(tensors)


@settings(max_examples=40)
@given(shapes, st.booleans(), st.booleans(), st.integers(0, 9), st.data())
def test_random_masks_are_exact(
    sizes: list[tuple[int, int]], per_tensor: bool, structured: bool, seed: int, data: st.DataObject
) -> None:
    total = sum(a * b for a, b in sizes)
    budget = data.draw(st.integers(1, total))
    store = store_of(sizes, budget)
    torch.manual_seed(seed)
    ids = random_ids(store, per_tensor, structured).tolist()
    assert len(ids) == len(set(ids)) == budget
    assert ids == sorted(ids)
    assert ids[0] >= 0
    assert ids[-1] < total
    shares = [sum(a <= i < b for i in ids) for a, b in pairwise(store.offsets)]
    if per_tensor:
        assert shares == quotas([a * b for a, b in sizes], budget)
    if structured:
        for (rows, width), share, offset in zip(sizes, shares, store.offsets, strict=False):
            columns = {(i - offset) % width for i in ids if offset <= i < offset + rows * width}
            assert len(columns) == -(-share // rows)
    torch.manual_seed(seed)
    assert random_ids(store, per_tensor, structured).tolist() == ids


def test_the_smallest_are_the_smallest() -> None:
    store = store_of([(5, 7), (3, 3)], 9)
    flat = torch.cat([t.detach().reshape(-1) for t in store.tensors]).abs()
    ids = weight_ids(store, lambda gradient, weight: magnitude(gradient, weight, 0.1, 1.0))
    assert sorted(ids.tolist()) == sorted(flat.argsort()[:9].tolist())


@settings(max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 23), st.integers(1, 31), st.sampled_from([0.001, 0.05, 1.0]), st.integers(0, 99)
)
def test_a_sampled_gradient_is_the_gathered_dense_one(t: int, out: int, width: int, density: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(t, width, generator=random), torch.randn(t, out, generator=random)
    count = max(1, round(density * out * width))
    ids = torch.randperm(out * width, generator=random)[:count]
    exact = (dy.double().t() @ x.double()).view(-1)[ids].float()
    for product in (sampled, dense):
        torch.testing.assert_close(product(x, dy, ids.int()), exact, atol=1e-5, rtol=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 41), st.integers(1, 23), st.integers(1, 31), st.sampled_from([0.01, 1.0]), st.integers(0, 99))
def test_in_bf16_it_is_the_exact_sum_too_on_any_number_of_threads(
    t: int, out: int, width: int, density: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    x, dy = torch.randn(t, width, generator=random), torch.randn(t, out, generator=random).bfloat16()
    ids = torch.randperm(out * width, generator=random)[: max(1, round(density * out * width))]
    exact = (dy.double().t() @ x.bfloat16().double()).view(-1)[ids].float()
    threads = torch.get_num_threads()
    try:
        sums = []
        for count in (1, 2):
            torch.set_num_threads(count)
            sums.append(sampled(x, dy, ids.int()))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(sums[0], exact, atol=1e-5, rtol=1e-6)
    assert torch.equal(*sums)


@pytest.mark.parametrize(("watch", "name"), [(watch_weight, "weight"), (watch_bias, "bias")])
def test_a_watched_linear_map_gets_its_gradient_even_where_nothing_below_trains(watch: Any, name: str) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 4), torch.randn(3, 2, 5)
    index = torch.tensor([0, 3]).int()
    plain = torch.autograd.grad(linear(x).square().sum(), getattr(linear, name))[0].view(-1)[index]
    for parameter in linear.parameters():
        parameter.requires_grad_(False)
    gradients: list[torch.Tensor] = []
    hook = watch(linear, lambda: index, gradients.append)
    linear(x).square().sum().backward()
    torch.testing.assert_close(gradients[0], plain)
    hook.remove()
    assert not linear(x).requires_grad


def test_d3_is_the_formula() -> None:
    g, w = torch.tensor([[-2.0, 0.5]]), torch.tensor([[0.25, -1.0]])
    torch.testing.assert_close(d3(g, w, eps=0.5, exp=2.0), torch.tensor([[2 / 0.75**2, 0.5 / 1.5**2]]))
    torch.testing.assert_close(d3(g, w, eps=0.5, exp=0.0), g.abs())
    assert torch.equal(w, torch.tensor([[0.25, -1.0]]))


def test_entries_that_join_late_do_not_overshoot() -> None:
    """Under a constant gradient Adam moves by lr a step; with one shared counter a late entry moves up to 4 lr."""
    from peftbench.sparse.adam import EntryAdamW

    for shared, largest in ((False, 1.01), (True, 3.0)):
        p, born, now = nn.Parameter(torch.zeros(2)), torch.tensor([0, 500]), [0]
        settings = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        own = EntryAdamW([p], p, lambda now=now, born=born: (now[0] - born + 1).clamp(min=1), **settings)
        optimizer = torch.optim.AdamW([p], **settings) if shared else own
        moves = []
        for step in range(530):
            now[0], before = step, p.detach().clone()
            p.grad = torch.tensor([1.0, float(step >= 500)])
            optimizer.step()
            moves.append((before - p.detach())[1].item())
        assert moves[499] == 0
        assert (max(moves) < largest) != shared
        if not shared:
            np.testing.assert_allclose(moves[500:], 1.0, rtol=1e-3)


def test_entry_adam_is_adam_where_all_join_at_once() -> None:
    from peftbench.sparse.adam import EntryAdamW

    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(50)) for _ in range(2))
    head_a, head_b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    step = [0]
    a = EntryAdamW([{"params": [ours, head_a]}], ours, lambda: torch.full((50,), step[0] + 1), **settings)
    b = torch.optim.AdamW([{"params": [theirs, head_b]}], **settings)
    for step[0] in range(30):
        ours.grad = torch.randn(50)
        theirs.grad = ours.grad.clone()
        head_a.grad = torch.randn(3)
        head_b.grad = head_a.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(head_a, head_b)
