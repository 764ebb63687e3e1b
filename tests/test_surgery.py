"""Model Surgery on plain tensors: against cosine similarity and top-k, its invariants and edge cases, its controls."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from peftbench.backbone.model import build
from peftbench.backbone.weights import WEIGHTS_FILE, weights_folder
from peftbench.config import compose
from peftbench.config.spec import Scope
from peftbench.data.split import Split, make_split
from peftbench.ground.errors import ConfigError, DataError
from peftbench.lifecycle import behaviour, surgery
from peftbench.lifecycle.surgery import Fitting
from peftbench.methods.surgery import Surgery, move, neurons

SEEDS = st.integers(0, 10_000)


def layers(seed: int, depth: int = 3, rows: int = 7, width: int = 5) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, width, generator=draws) for _ in range(depth)]


def moved(weights: list[torch.Tensor], rows: torch.Tensor, shifts: torch.Tensor) -> list[torch.Tensor]:
    copies = {str(i): weight.clone() for i, weight in enumerate(weights)}
    move(copies, {name: len(weight) for name, weight in copies.items()}, rows, shifts)
    return [*copies.values()]


@given(SEEDS, st.integers(0, 21), st.booleans(), st.floats(-3, 3))
def test_the_edit_is_that_of_cosine_similarity_and_top_k(seed: int, count: int, each: bool, strength: float) -> None:
    weights = layers(seed)
    v = torch.randn(3 if each else 1, 5, generator=torch.Generator().manual_seed(seed + 1))
    rows = surgery.lowest(surgery.cosines(weights, v), count)
    after = moved(weights, rows, surgery.scaled(v, strength, weights))

    flat, along = torch.cat(weights).double(), v.double().repeat_interleave(7 if each else 21, 0)
    cos = functional.cosine_similarity(flat, along, dim=1)
    chosen = torch.topk(-cos, count).indices
    alpha = strength * flat.norm(dim=1).mean() / along.norm(dim=1)
    expected = flat.clone()
    expected[chosen] += (alpha[:, None] * along)[chosen]
    torch.testing.assert_close(torch.cat(after).double(), expected, atol=1e-6, rtol=1e-6)
    untouched = torch.ones(21, dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(torch.cat(after)[untouched], torch.cat(weights)[untouched]), "nothing else changes"


@given(SEEDS, st.integers(1, 21), st.floats(0.01, 100), st.integers(0, 20))
def test_the_choice_does_not_depend_on_lengths_and_turns_round_with_the_direction(
    seed: int, count: int, times: float, row: int
) -> None:
    weights, v = layers(seed), layers(seed + 1, depth=1, rows=1)[0]
    rows = surgery.lowest(surgery.cosines(weights, v), count)
    longer = [weight.clone() for weight in weights]
    longer[row // 7][row % 7] *= times
    assert torch.equal(surgery.lowest(surgery.cosines(longer, times * v), count), rows)
    highest = surgery.lowest(-surgery.cosines(weights, -v), count)
    assert torch.equal(highest, rows)
    shifts = surgery.scaled(v, 0.5, weights)
    assert torch.equal(surgery.scaled(-v, 0.5, weights), -shifts), "the negated edit"
    torch.testing.assert_close(surgery.scaled(times * v, 0.5, weights), shifts)
    assert float(shifts.norm()) == pytest.approx(0.5 * float(torch.cat(weights).norm(dim=1).mean()), rel=1e-5)


@given(SEEDS, st.integers(0, 21))
def test_exactly_so_many_rows_change_by_one_vector(seed: int, count: int) -> None:
    weights, v = layers(seed), layers(seed + 1, depth=1, rows=1)[0]
    rows, shifts = surgery.lowest(surgery.cosines(weights, v), count), surgery.scaled(v, 1.0, weights)
    before, after = torch.cat(weights), torch.cat(moved(weights, rows, shifts))
    assert (before != after).any(1).sum() == count == len(set(rows.tolist()))
    assert torch.equal(after[rows], before[rows] + shifts[0]), "to the last bit"
    assert torch.equal(torch.cat(moved(weights, rows, 0 * shifts)), before), "alpha = 0 changes nothing"
    if count == 21:
        assert torch.equal(after, before + shifts[0])


def test_ties_go_to_the_first_and_a_row_of_zeros_has_cosine_zero() -> None:
    weights = [torch.tensor([[1.0, 0], [0, 0], [-1, 0]]), torch.tensor([[-2.0, 0], [0, 1], [-3, 0]])]
    cosines = surgery.cosines(weights, torch.tensor([[4.0, 0]]))
    assert cosines.tolist() == [1, 0, -1, -1, 0, -1]
    assert surgery.lowest(cosines, 2).tolist() == [2, 3]
    assert surgery.lowest(cosines, 4).tolist() == [1, 2, 3, 5]
    for use in (surgery.cosines, lambda rows, v: surgery.scaled(v, 1.0, rows)):
        with pytest.raises(ConfigError, match="direction is zero"):
            use(weights, torch.zeros(1, 2))


def test_chosen_neurons_read_what_the_direction_adds_for_every_input() -> None:
    model = build(compose.cell_from(["model=bert_tiny", "model.weights=random"]).model, 2)
    counts, weights = neurons(model), dict(model.backbone())
    rows = torch.tensor([3, 500, 512 + 7])
    shifts = torch.randn(1, 128, generator=torch.Generator().manual_seed(0))
    name = next(iter(counts)).removesuffix(".weight")
    read: list[torch.Tensor] = []
    linear = model.module.get_submodule(name)
    linear.register_forward_hook(lambda _, inputs, outputs: read.append((inputs[0], outputs)))  # type: ignore[arg-type]
    ids = {"input_ids": torch.arange(5, 17).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    model.module.eval()
    with torch.no_grad():
        model.forward(ids)
        move(weights, counts, rows, shifts)
        model.forward(ids)
    (x, before), (same, after) = read  # type: ignore[misc]
    assert torch.equal(x, same)
    torch.testing.assert_close((after - before)[..., [3, 500]], (x @ shifts[0])[..., None].expand(2, 6, 2))
    others = [row for row in range(512) if row not in (3, 500)]
    assert torch.equal(after[..., others], before[..., others])


def test_golden_sizes_of_minilm() -> None:
    """9,216 rows in six layers, of which the paper's share of 16,384 / 352,256 are 428; lengths from 1.09 to 1.38."""
    spec = compose.cell_from(["model=minilm_l6"]).model
    counts = neurons(build(spec, 2, "meta"))
    assert (sum(counts.values()), len(counts)) == (9_216, 6)
    assert int(16_384 / 352_256 * 9_216) == int(0.0465 * 9_216) == 428
    try:
        folder = weights_folder(spec)
    except DataError:
        pytest.skip("the packaged MiniLM is not installed")
    assert folder is not None
    by_layer = [row_lengths(folder, name).mean() for name in counts]
    assert min(by_layer) == pytest.approx(1.09, abs=0.005)
    assert max(by_layer) == pytest.approx(1.38, abs=0.005)


def row_lengths(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        (key,) = (key for key in file.keys() if name.endswith(key))  # noqa: SIM118
        return torch.as_tensor(file.get_tensor(key)).float().norm(dim=1)


@pytest.mark.parametrize("word", ["roberta_base", "distilbert", "mpnet_base", "modernbert_base"])
def test_every_architecture_has_its_neurons(word: str) -> None:
    model = build(compose.cell_from([f"model={word}"]).model, 2, "meta")
    counts = neurons(model)
    assert len(counts) == model.depth
    seconds = model.linears(Scope(None, ("output",)))
    assert [*counts.values()] == [linear.in_features for _, linear in seconds]


def test_an_edit_is_stored_and_put_back_to_the_bit_and_a_wrong_one_is_refused() -> None:
    spec = compose.cell_from(["model=bert_tiny", "model.weights=random"]).model
    one, other = build(spec, 2), build(spec, 2)
    before = {name: p.detach().clone() for name, p in one.backbone()}
    tensors = {"rows": torch.tensor([0, 511, 512, 1023], dtype=torch.int32), "shifts": torch.randn(2, 128)}
    tuner = Surgery(4, 2).attach(one, Scope())
    tuner.load_delta(tensors)
    change = dict(tuner.update(before))
    assert [int(c.any(1).sum()) for c in change.values()] == [2, 2]
    again = Surgery(4, 2).attach(other, Scope())
    again.load_delta(tuner.delta())
    for (name, p), (_, q) in zip(one.backbone(), other.backbone(), strict=True):
        assert torch.equal(p, q), name
    for rows in ([0, 511, 512, 1024], [-1, 0, 1, 2], [0, 0, 1, 2], [3, 2, 1, 0]):
        fresh = Surgery(4, 2).attach(build(spec, 2), Scope())
        with pytest.raises(DataError, match="does not fit: rows must"):
            fresh.load_delta({**tensors, "rows": torch.tensor(rows, dtype=torch.int32)})
    for sizes in ((1025, 1), (4, 3), (2**31 - 1, 1)):
        with pytest.raises(ConfigError, match="1,024 rows in 2 layers"):
            Surgery(*sizes).attach(build(spec, 2, "meta"), Scope())


def test_a_probe_learns_what_can_be_told_and_each_place_by_itself() -> None:
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(400, 2, 8, generator=draws)
    carried = (features[:, 0, 3] > 0).numpy()
    how = Fitting(lr=1e-2, epochs=20, batch=16)
    probe = surgery.fit_probe(features, carried, how, seed=0)
    there, not_there = probe.accuracy(features, carried)
    assert there > 0.97
    assert not_there < 0.7
    assert probe.directions.shape == (2, 8)
    assert int(probe.directions[0].argmax()) == 3, "the row of the class that carries it"
    features[:, 1] = 0
    alone = surgery.fit_probe(features, carried, how, seed=0)
    assert torch.equal(alone.weights[0], probe.weights[0])
    assert not torch.equal(surgery.fit_probe(features, carried, how, seed=1).weights, probe.weights)


@given(st.data())
def test_a_shift_of_the_bias_reaches_any_rate(data: st.DataObject) -> None:
    rows, labels = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 4))
    logits = np.random.default_rng(data.draw(SEEDS)).normal(size=(rows, labels)).astype(np.float32)
    answer, shown = data.draw(st.integers(0, labels - 1)), data.draw(st.integers(0, rows))
    shift = surgery.shift_to(logits, answer, shown)
    shifted = logits.copy()
    shifted[:, answer] += shift
    assert (shifted.argmax(1) == answer).sum() == shown
    assert (shift == 0) == ((logits.argmax(1) == answer).sum() == shown)


def test_rows_that_change_together_give_the_nearest_rate() -> None:
    logits = np.array([[1.0, 0]] * 3 + [[0.0, 1]])
    for wanted, reached in ((0, 0), (1, 1), (2, 1), (3, 4), (4, 4)):
        shifted = logits + np.array([0, surgery.shift_to(logits, 1, wanted)])
        assert (shifted.argmax(1) == 1).sum() == reached


PAIRS = {
    ("a cat sat here", "a cat sat"): 0,
    ("a cat sat there", "a cat sat not"): 1,
    ("the dog runs", "nobody runs"): 1,
    ("one two three", "four five six"): 0,
    ("one two", "two one"): 1,
}


def pairs(name: str = "train") -> Split:
    return make_split(name, tuple(zip(*PAIRS, strict=True)), np.array([*PAIRS.values()]))


def test_behaviours_say_which_rows_carry_and_which_can_show_them() -> None:
    task = compose.cell_from(["task=rte"]).task.parts[0]
    rows = pairs()

    def masks(word: str) -> tuple[int, list[bool], list[bool]]:
        made = behaviour.behaviour_of(word, task, rows)
        return made.answer, made.carried(rows).tolist(), made.prone(rows).tolist()

    assert masks("predicts:not_entailment") == (1, [False, True, True, False, True], [True] * 5)
    assert masks("negation") == (1, [False, True, True, False, False], [False, True, True, False, False])
    # Jaccard 3/4, 3/5, 1/4, 0, 1; the median is 3/5; a false yes needs the label not_entailment
    assert masks("overlap") == (0, [True, False, False, False, True], [False, False, False, False, True])


def test_what_no_task_or_rows_can_show_is_refused() -> None:
    def refused(word: str, task: str, rows: Split | None = None) -> str:
        spec = compose.cell_from([f"task={task}"]).task.parts[0]
        with pytest.raises(ConfigError) as error:
            behaviour.behaviour_of(word, spec, rows or pairs())
        return str(error.value)

    assert "did you mean entailment" in refused("predicts:entailmen", "rte")
    assert "did you mean overlap" in refused("overlaps", "rte")
    assert "needs pairs with a label" in refused("overlap", "sst2")
    assert "needs pairs with a label contradiction or not_entailment" in refused("negation", "mrpc")
    assert "task=stsb is a regression" in refused("overlap", "stsb")
    one_class = make_split("train", pairs().texts, np.zeros(5, dtype=np.int64))
    assert "all of the 5 rows" in refused("predicts:entailment", "rte", one_class)
    assert "none of the 5 rows" in refused("predicts:not_entailment", "rte", one_class)
    negation = behaviour.Negation(1)
    with pytest.raises(ConfigError, match="none of the 1 rows of dev can show it"):
        behaviour.check_prone("negation", negation, pairs("dev").first(1))


def test_the_effect_is_counted_inside_and_outside() -> None:
    rows = make_split("dev", (("x",) * 6,), np.array([1, 1, 0, 0, 1, 0]))
    answers = {"before": [1, 1, 1, 0, 0, 0], "after": [0, 1, 0, 0, 1, 0]}
    before, after = (np.eye(2)[answers[word]] for word in ("before", "after"))
    seen = behaviour.effect(behaviour.Predicts(1), rows, before, after, "accuracy")
    assert seen == {
        "rows": 6, "prone": 6, "rate_before": 0.5, "rate": pytest.approx(1 / 3), "shown": 3,
        "cured": pytest.approx(2 / 3), "outside": 3, "moved": pytest.approx(1 / 3),
        "score_before": pytest.approx(2 / 3), "score": 1.0, "prone_rows": None,
    }  # fmt: skip
    none = behaviour.effect(behaviour.Predicts(1), rows, np.eye(2)[[1] * 6], after, "accuracy")
    assert (none["outside"], none["moved"], none["score"]) == (0, None, None)
