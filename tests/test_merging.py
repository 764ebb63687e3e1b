"""Ways of merging: their definitions, the published golden values, and the libraries that have them, too."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbench.lifecycle.merging import METHODS, Changes, Dare, Fisher, Merge, RegMean
from peftbench.lifecycle.vectors import equalized

peft = pytest.importorskip("peft.utils.merge_utils")
SHARED: dict[str, Any] = {
    "scale": 1.0, "grid": (1.0,), "choose_rows": 1, "over": "touched", "equalize": "none", "heads": "kept",
    "refit_rows": 1,
}  # fmt: skip
GOLDEN = torch.tensor([[10.0, -4, 3, 0, 6, -2, 1, 8], [9, 5, -1, 2, -7, -3, 0, 4]]) * 1e-3
PLAIN = ("average", "task_arithmetic", "magnitude", "ties", "dare", "dare_ties", "pcb", "pcb_nlp", "pcb_vision")


def method(word: str, **keys: Any) -> Merge:
    kind = METHODS[word]
    every = {"keep": 0.5, "keeps": (0.5,), "within": "all", "rows": 1, "offdiagonal": 1.0, "trim": 1e-4, "inter": "sum"}
    if word == "pcb_vision":
        every["inter"] = "scaled"
    return kind(
        **SHARED, **{f.name: keys.get(f.name, every[f.name]) for f in dataclasses.fields(kind) if f.name not in SHARED}
    )


def changes(rows: torch.Tensor, **more: Any) -> Changes:
    parts = more.pop("parts", (slice(0, rows.shape[1]),))
    return Changes(rows, parts, [f"task{i}" for i in range(len(rows))], **more)


def drawn(tasks: int, entries: int, seed: int = 0) -> torch.Tensor:
    return 1e-3 * torch.randn(tasks, entries, generator=torch.Generator().manual_seed(seed))


def test_golden_values() -> None:
    def merged(word: str, keep: float) -> list[float]:
        return (method(word, keep=keep).merged(changes(GOLDEN)) * 1e3).tolist()

    assert merged("pcb", 0.5) == pytest.approx([7.5, 0, 0, 0, -7, -2, 0, 7.593578], abs=1e-5)
    assert merged("pcb", 0.25) == pytest.approx([7.5, 0, 0, 0, 0, 0, 0, 0], abs=1e-5)
    assert merged("ties", 0.5) == pytest.approx([9.5, 5, 0, 0, -7, 0, 0, 6])  # peft's
    assert merged("ties", 5 / 8) == pytest.approx([9.5, 5, 3, 0, -7, -3, 0, 6])  # the authors', who keep one more


@pytest.mark.parametrize("keep", [0.1, 0.37, 1.0])
def test_ties_magnitude_and_arithmetic_are_pefts(keep: float) -> None:
    rows, weights = drawn(4, 1001), torch.ones(4)
    for word in ("ties", "magnitude_prune"):
        theirs = getattr(peft, word)(list(rows), weights, keep)
        ours = method(word.removesuffix("_prune"), keep=keep).merged(changes(rows))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        method("task_arithmetic").merged(changes(rows)), peft.task_arithmetic(list(rows), weights)
    )


def test_trimming_within_tensors_is_pefts_tensor_by_tensor() -> None:
    rows, parts = drawn(3, 300), (slice(0, 17), slice(17, 120), slice(120, 300))
    theirs = torch.cat([peft.ties(list(rows[:, part]), torch.ones(3), 0.2) for part in parts])
    ours = method("ties", keep=0.2, within="tensor").merged(changes(rows, parts=parts))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    assert not torch.equal(ours, method("ties", keep=0.2).merged(changes(rows, parts=parts)))


def test_dare_keeps_its_share_scales_it_up_and_draws_by_seed_and_task(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dare = torch.ones(2, 20_000), method("dare", keep=0.2)
    merged = dare.merged(changes(rows))
    assert sorted(set(merged.tolist())) == [0, 5, 10]
    assert merged.mean() == pytest.approx(2, abs=0.1)
    assert torch.equal(merged, dare.merged(changes(rows)))
    assert not torch.equal(merged, dare.merged(changes(rows, seed=1)))
    assert torch.equal(method("dare", keep=1.0).merged(changes(rows)), rows.sum(0))
    masks = [Dare.merged(dare, Changes(rows[:1], (slice(0, 20_000),), [task])) > 0 for task in ("rte", "mrpc")]
    assert (masks[0] & masks[1]).float().mean() == pytest.approx(0.04, abs=0.01), "tasks are dropped independently"
    # peft's own, given our masks
    rows = drawn(2, 500)
    kept = iter(
        [Dare.merged(dare, Changes(torch.ones(1, 500), (slice(0, 500),), [f"task{i}"])) / 5 for i in (0, 1, 0, 1)]
    )
    monkeypatch.setattr(torch, "bernoulli", lambda _: next(kept))
    for word, theirs in (("dare", peft.dare_linear), ("dare_ties", peft.dare_ties)):
        expected = theirs(list(rows), torch.ones(2), 0.2)
        torch.testing.assert_close(method(word, keep=0.2).merged(changes(rows)), expected, rtol=0, atol=1e-8)


few = settings(max_examples=25)
matrices = st.tuples(st.integers(2, 4), st.integers(1, 30), st.integers(0, 10_000)).map(lambda sizes: drawn(*sizes))


@pytest.mark.parametrize("word", PLAIN)
@few
@given(rows=matrices)
def test_the_order_of_tasks_does_not_matter_and_signs_go_through(word: str, rows: torch.Tensor) -> None:
    way, forth = method(word), changes(rows)
    back = Changes(rows.flip(0), forth.parts, [*reversed(forth.tasks)])
    merged = way.merged(forth)
    torch.testing.assert_close(way.merged(back), merged, rtol=0, atol=1e-9)
    torch.testing.assert_close(way.merged(changes(-rows)), -merged, rtol=0, atol=1e-9)
    assert merged.isfinite().all()


@few
@given(matrices)
def test_one_task_and_equal_tasks(rows: torch.Tensor) -> None:
    one, twice = changes(rows[:1]), changes(rows[:1].expand(3, -1).contiguous())
    trimmed = method("magnitude").merged(one)
    for word, alone, together in (
        ("average", rows[0], rows[0]),
        ("task_arithmetic", rows[0], 3 * rows[0]),
        ("ties", trimmed, trimmed),
    ):
        torch.testing.assert_close(method(word).merged(one), alone, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(method(word).merged(twice), together, atol=1e-9, rtol=1e-6)
    kept = method("pcb").merged(one)
    assert (kept != 0).sum() <= max(0, rows.shape[1] - int(rows.shape[1] * 0.5) - 1)
    torch.testing.assert_close(
        method("pcb").merged(changes(rows[:1].expand(2, -1).contiguous())).sign().abs().sum(), kept.sign().abs().sum()
    )


@few
@given(rows=matrices, times=st.integers(1, 4))
def test_one_task_or_the_same_several_times_is_that_task_by_fisher_regmean_and_whole_dare(
    rows: torch.Tensor, times: int
) -> None:
    same = rows[:1].expand(times, -1).contiguous()
    assert torch.equal(method("dare", keep=1.0).merged(changes(rows[:1])), rows[0])
    by_fisher = method("fisher").merged(changes(same, curvature=torch.rand(times, rows.shape[1]) + 0.1))
    torch.testing.assert_close(by_fisher, rows[0], atol=1e-9, rtol=1e-5)
    x = torch.randn(times, 4 * rows.shape[1], rows.shape[1])
    inputs = {0: (torch.Size((1, rows.shape[1])), x.transpose(1, 2) @ x)}
    torch.testing.assert_close(method("regmean").merged(changes(same, inputs=inputs)), rows[0], atol=1e-6, rtol=1e-4)


@few
@given(st.integers(0, 10_000), st.integers(10, 60), st.sampled_from([0.1, 0.3, 0.7]))
def test_pcb_of_equal_tasks_is_their_clamped_largest_entries_unscaled(seed: int, entries: int, keep: float) -> None:
    row = drawn(1, entries, seed)
    merged = method("pcb", keep=keep).merged(changes(row.expand(3, -1).contiguous()))
    order = row[0].abs().sort()
    clamped = row[0].sign() * row[0].abs().clamp(order.values[0], order.values[int(entries * (1 - 1e-4) - 1)])
    kept = order.indices[int(entries * (1 - keep)) + 1 :]
    expected = torch.zeros(entries)
    expected[kept] = clamped[kept]
    torch.testing.assert_close(merged, expected, atol=1e-9, rtol=1e-5)


def test_pcb_does_not_see_the_scale_of_small_changes_and_does_see_that_of_large_ones() -> None:
    def differences(rows: torch.Tensor, keep: float, times: float) -> tuple[float, float]:
        """Of the largest entry, and of the whole in its own length."""
        small, large = (method("pcb", keep=keep).merged(changes(one)) for one in (rows, rows * times))
        apart = large / times - small
        return float(apart.abs().max() / small.abs().max()), float(apart.norm() / small.norm())

    assert differences(GOLDEN, 0.5, 10)[0] < 2e-7
    assert differences(GOLDEN, 0.5, 1000)[1] == pytest.approx(0.48, abs=0.005), "where tau * sum is about 1"
    largest, whole = differences(drawn(2, 20_000), 0.1, 100)
    assert largest == pytest.approx(0.41, abs=0.005), "an entry at the threshold comes or goes"
    assert whole == pytest.approx(0.014, abs=0.001)


def test_where_one_change_is_ten_times_as_long_ties_and_pcb_drown_the_other() -> None:
    rows = drawn(2, 20_000)
    rows *= torch.tensor([[1e-3], [1e-2]]) / rows.norm(dim=1, keepdim=True)

    def beside(word: str) -> list[float]:
        return torch.cosine_similarity(method(word, keep=0.1).merged(changes(rows))[None], rows).tolist()

    assert beside("pcb") == pytest.approx([0, 0.66], abs=0.02)
    assert beside("ties") == pytest.approx([0.04, 0.66], abs=0.02)
    assert beside("task_arithmetic") == pytest.approx([0.10, 0.995], abs=0.02)
    equal = equalized(rows)
    together = torch.cosine_similarity(method("pcb", keep=0.1).merged(changes(equal))[None], rows)
    assert together[0] == pytest.approx(float(together[1]), abs=0.05)


def test_shares_count_what_is_handed_in_also_where_no_run_changed_it() -> None:
    rows, pcb = drawn(3, 5000), method("pcb", keep=0.1)
    touched = int((pcb.merged(changes(rows)) != 0).sum())
    whole = int((pcb.merged(changes(torch.cat([rows, torch.zeros_like(rows)], 1))) != 0).sum())
    assert 1.6 * touched < whole < 2 * touched


def test_ties_of_lora_are_pefts_of_the_products_and_not_of_the_factors() -> None:
    from peft import LoraConfig, PeftModel

    tasks, out, inside, rank = ("a", "b", "c"), 12, 10, 3
    model: Any = torch.nn.Sequential(torch.nn.Linear(inside, out, bias=False))
    config = LoraConfig(r=rank, lora_alpha=6, target_modules=["0"])
    whole = PeftModel(model, config, adapter_name="a")
    for task in tasks[1:]:
        whole.add_adapter(task, config)
    layer = whole.base_model.model[0]
    random = torch.Generator().manual_seed(1)
    for task in tasks:
        for factors in (layer.lora_A, layer.lora_B):
            factors[task].weight.data = torch.randn(factors[task].weight.shape, generator=random)
    rows = torch.stack([layer.get_delta_weight(task).detach().flatten() for task in tasks])
    ours = method("ties", keep=0.2, within="tensor").merged(changes(rows)).view(out, inside)

    def theirs(how: str) -> torch.Tensor:
        more = {"svd_rank": inside} if how.endswith("_svd") else {}
        whole.add_weighted_adapter([*tasks], [1.0] * 3, how, combination_type=how, density=0.2, **more)
        return torch.as_tensor(layer.get_delta_weight(how).detach())

    torch.testing.assert_close(ours, theirs("ties_svd"), atol=1e-5, rtol=1e-4)
    factors = theirs("ties")
    turn, _ = torch.linalg.qr(torch.randn(rank, rank, generator=random))
    layer.lora_A["a"].weight.data = turn.T @ layer.lora_A["a"].weight.data
    layer.lora_B["a"].weight.data = layer.lora_B["a"].weight.data @ turn
    torch.testing.assert_close(layer.get_delta_weight("a").flatten(), rows[0], atol=1e-4, rtol=1e-4)
    whole.delete_adapter("ties")
    assert (theirs("ties") - factors).abs().max() > 1, "the same runs, written with other factors"


def test_pcb_keeps_what_its_indices_say_and_no_entry_against_the_sum() -> None:
    rows = drawn(1, 20_000)
    assert int((method("pcb", keep=0.1).merged(changes(rows)) != 0).sum()) == 1999
    assert int((method("pcb", keep=0.9).merged(changes(drawn(1, 1000))) != 0).sum()) == 900, "int(99.99...) is 99"
    rows = drawn(3, 5000)
    merged = method("pcb", keep=0.05).merged(changes(rows))
    assert (merged.sign() * rows.sum(0).sign() >= 0).all()


def test_pcb_of_rows_without_a_change_of_equal_sizes_and_of_many_tasks_is_finite() -> None:
    rows = drawn(2, 50)
    padded = torch.cat([rows, torch.zeros(1, 50)])
    torch.testing.assert_close(method("pcb").merged(changes(padded)), method("pcb").merged(changes(rows)))
    assert method("pcb").merged(changes(torch.zeros(2, 5))).tolist() == [0] * 5
    assert method("pcb").merged(changes(torch.full((2, 50), 1e-3))).isfinite().all()
    many = method("pcb").merged(changes(drawn(120, 50)))
    assert many.isfinite().all()
    assert many.any()


def test_pcb_is_the_formula_written_out() -> None:
    """Ten lines of plain Python from the paper's pseudo-code, entry by entry."""
    rows = drawn(3, 40, seed=5)
    n, d, keep, q = 3, 40, 0.3, 1e-4
    tau = rows.double().tolist()
    total = [sum(row[i] for row in tau) for i in range(d)]
    scores, sizes = [], []
    for row in tau:
        order = sorted(abs(x) for x in row)
        low, high = order[int(d * q)], order[int(d * (1 - q) - 1)]
        a = [min(max(abs(x), low), high) for x in row]
        u = [(x - min(a)) / (max(a) - min(a)) for x in a]
        s = [math.exp(n * v * v) * math.tanh(x * t) for v, x, t in zip(u, row, total, strict=True)]
        least = sorted(s)[int(d * (1 - keep))]
        s = [max(x, least) for x in s]
        scores.append([(x - min(s)) / (max(s) - min(s)) for x in s])
        sizes.append([math.copysign(x, y) for x, y in zip(a, row, strict=True)])
    expected = [
        sum(scores[t][i] * sizes[t][i] for t in range(n)) / max(sum(scores[t][i] for t in range(n)), 1e-12)
        for i in range(d)
    ]
    assert method("pcb", keep=keep).merged(changes(rows)).tolist() == pytest.approx(expected, abs=1e-8)


def test_a_tie_of_signs_is_no_consensus() -> None:
    rows = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    assert method("ties", keep=1.0).merged(changes(rows)).tolist() == [0, 2]


def test_fisher_is_the_weighted_mean_and_the_plain_one_where_there_is_no_information() -> None:
    rows = drawn(3, 6)
    curvature = torch.rand(3, 6)
    curvature[:, 4] = 0
    before = torch.randn(6)
    merged = before + method("fisher").merged(changes(rows, curvature=curvature))
    expected = (curvature * (before + rows)).sum(0) / curvature.sum(0)
    expected[4] = before[4] + rows[:, 4].mean()
    torch.testing.assert_close(merged, expected)
    assert Fisher.needs == "curvature"


def test_regmean_solves_least_squares_and_with_equal_inputs_is_the_average() -> None:
    tasks, out, inside = 3, 4, 5
    random = torch.Generator().manual_seed(0)
    tau = torch.randn(tasks, out, inside, generator=random)
    x = torch.randn(tasks, 50, inside, generator=random)
    bias = torch.randn(tasks, 2, generator=random)
    rows, parts = torch.cat([tau.flatten(1), bias], 1), (slice(0, 20), slice(20, 22))
    grams = x.transpose(1, 2) @ x

    def merged(grams: torch.Tensor, a: float) -> torch.Tensor:
        return method("regmean", offdiagonal=a).merged(
            changes(rows, parts=parts, inputs={0: (torch.Size((out, inside)), grams)})
        )

    whole = torch.linalg.lstsq(x.flatten(0, 1).double(), torch.cat([x[t] @ tau[t].T for t in range(tasks)]).double())
    torch.testing.assert_close(
        merged(grams, 1.0)[:20].view(out, inside), whole.solution.T.float(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(merged(grams, 1.0)[20:], bias.mean(0))
    torch.testing.assert_close(merged(torch.eye(inside).expand(tasks, -1, -1), 0.7), rows.mean(0))
    diagonal = grams.diagonal(dim1=1, dim2=2)[:, None]
    expected = (tau * diagonal).sum(0) / diagonal.sum(0)
    torch.testing.assert_close(merged(grams, 0.0)[:20].view(out, inside), expected, atol=1e-5, rtol=1e-5)
    assert merged(torch.zeros(tasks, inside, inside), 1.0).isfinite().all()
    assert RegMean.needs == "inputs"
