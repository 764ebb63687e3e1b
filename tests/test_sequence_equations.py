"""The equations of sequences of tasks, against independent forms: prototypes, MOS's steps, adapters, the matrix."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from peftbench.backbone.model import Model, build
from peftbench.config import compose
from peftbench.data.split import make_split
from peftbench.lifecycle.sequence import classes, prototypes
from peftbench.lifecycle.sequence.adapter_steps import ensemble, mean_of, orthogonality, pull, refined
from peftbench.lifecycle.sequence.encoder import Pooled
from peftbench.lifecycle.sequence.fitting import LinearHead
from peftbench.lifecycle.sequence.matrix import TaskScores, after, scored, summary
from peftbench.lifecycle.sequence.side_adapters import SideAdapters

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@given(seed=SEEDS, share=st.floats(0, 1), earlier=st.integers(1, 4), steps=st.integers(1, 5))
def test_a_pull_shrinks_the_distance_to_the_mean_of_earlier_adapters(
    seed: int, share: float, earlier: int, steps: int
) -> None:
    before = [{"up": normal(seed + one, 3, 2), "down": normal(seed + one + 20, 2)} for one in range(earlier)]
    mean = mean_of(before)
    for name, tensor in mean.items():
        np.testing.assert_allclose(tensor, sum(one[name].numpy() for one in before) / earlier, atol=1e-6)
    start = {"up": normal(seed + 9, 3, 2), "down": normal(seed + 8, 2)}
    moved = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    for _ in range(steps):
        pull(moved, mean, share)
    for name, tensor in moved.items():
        expected = mean[name] + (1 - share) ** steps * (start[name] - mean[name])
        torch.testing.assert_close(tensor.detach(), expected, atol=1e-5, rtol=1e-5)


def test_no_pull_changes_no_bit() -> None:
    start = {"up": normal(0, 4, 4)}
    moved = {"up": start["up"].clone()}
    pull(moved, {"up": normal(1, 4, 4)}, 0.0)
    assert torch.equal(moved["up"], start["up"])


@given(seed=SEEDS, known=st.integers(0, 4), rows=st.integers(1, 5))
def test_orthogonality_is_the_cross_entropy_of_similarities_with_the_diagonal(seed: int, known: int, rows: int) -> None:
    means, features = normal(seed, known, 6), normal(seed + 1, rows, 6)
    every = np.concatenate([means, features]).astype(np.float64)
    expected = -np.mean([log_softmax(every @ row / 0.8)[place] for place, row in enumerate(every)])
    assert float(orthogonality(means, features, 0.8)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(
    seed=SEEDS,
    stages=st.integers(1, 5),
    rows=st.integers(1, 6),
    rounds=st.integers(0, 5),
    each=st.integers(1, 3),
)
def test_retrieval_is_refined_row_by_row_until_it_agrees_with_itself(
    seed: int, stages: int, rows: int, rounds: int, each: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(stages, rows, stages * each))
    stage_of = random.permutation(np.repeat(np.arange(stages), each))
    first = random.integers(stages, size=rows)
    expected = []
    for row, at in enumerate(first):
        for _ in range(rounds):
            answered = stage_of[np.argmax(logits[at, row])]
            if answered == at:
                break
            at = answered
        expected.append(at)
    assert refined(first, logits, stage_of, rounds).tolist() == expected
    if stages == 1:
        assert expected == [0] * rows


def test_retrieval_that_goes_in_a_circle_ends_after_its_rounds() -> None:
    logits = np.array([[[0.0, 1.0]], [[1.0, 0.0]]])  # each stage says the other's class
    stage_of = np.array([0, 1])
    ends = [int(refined(np.array([0]), logits, stage_of, rounds)[0]) for rounds in range(5)]
    assert ends == [0, 1, 0, 1, 0]


@given(seed=SEEDS, stages=st.integers(1, 6))
def test_two_classifiers_add_their_probabilities_and_unseen_classes_never_win(seed: int, stages: int) -> None:
    logits, cosines = normal(seed, 4, 5), normal(seed + 1, 4, 5).tanh()
    unseen = [1, 4]
    logits[:, unseen] = cosines[:, unseen] = -torch.inf
    both = ensemble(logits, cosines, stages)
    expected = softmax(logits, axis=1) + softmax(stages * cosines.numpy(), axis=1)
    seen = [0, 2, 3]
    np.testing.assert_allclose(both[:, seen], expected[:, seen], atol=1e-6)
    assert not set(both.argmax(1).tolist()) & set(unseen)
    assert torch.isneginf(both[:, unseen]).all()


@given(seed=SEEDS, rows=st.integers(1, 12))
def test_prototypes_are_class_means_and_scores_their_cosines(seed: int, rows: int) -> None:
    features, labels = normal(seed, rows, 3), torch.from_numpy(np.random.default_rng(seed).integers(0, 3, rows))
    means = prototypes.class_means(features, labels, 4)
    scores = prototypes.cosines(features, means)
    for label in range(4):
        own = features[labels == label].numpy()
        if not len(own):
            assert torch.isneginf(scores[:, label]).all()
            continue
        np.testing.assert_allclose(means[label], own.mean(0), atol=1e-6)
        lengths = np.linalg.norm(features, axis=1) * np.linalg.norm(own.mean(0))
        np.testing.assert_allclose(scores[:, label] * lengths, features.numpy() @ own.mean(0), atol=1e-4)
    assert torch.isneginf(scores[:, 3]).all(), "no row has that class"


def test_of_equal_prototypes_the_first_class_is_the_answer() -> None:
    same = torch.ones(3, 2)
    assert prototypes.cosines(normal(0, 5, 2), same).argmax(1).tolist() == [0] * 5


@given(seed=SEEDS, rows=st.integers(2, 8), full=st.booleans())
def test_a_class_is_a_gaussian_also_where_it_has_fewer_rows_than_features(seed: int, rows: int, full: bool) -> None:
    features = normal(seed, rows, 5)
    mean, covariance = prototypes.gaussian(features, 1e-4, full)
    expected = np.cov(features.numpy().astype(np.float64), rowvar=False) + 1e-4 * np.eye(5)
    np.testing.assert_allclose(covariance, expected if full else np.diag(expected), atol=1e-5)
    np.testing.assert_allclose(mean, features.numpy().mean(0), atol=1e-6)
    of_root = prototypes.root(covariance)
    again = of_root @ of_root.T if full else of_root**2
    torch.testing.assert_close(again, covariance, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_draws_have_the_mean_and_covariance_of_their_class(full: bool) -> None:
    mean, covariance = prototypes.gaussian(normal(3, 40, 4), 1e-4, full)
    random = torch.Generator().manual_seed(0)
    drawn = prototypes.samples(mean, prototypes.root(covariance), 40_000, random)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.03, rtol=0)
    found = torch.cov(drawn.T)
    torch.testing.assert_close(found if full else found.diagonal(), covariance, atol=0.06, rtol=0)
    if not full:
        assert (found - torch.diag(found.diagonal())).abs().max() < 0.06


@pytest.mark.parametrize("full", [True, False])
def test_without_variance_draws_are_the_mean_and_one_row_has_none_but_the_ridge(full: bool) -> None:
    row = normal(1, 1, 6)
    mean, covariance = prototypes.gaussian(row, 1e-4, full)
    assert torch.equal(covariance, 1e-4 * (torch.eye(6) if full else torch.ones(6)))
    still = prototypes.samples(mean, prototypes.root(torch.zeros_like(covariance)), 3, torch.Generator().manual_seed(0))
    assert torch.equal(still, row.expand(3, 6))


def small(layers: int, kind: str = "bert_tiny") -> Model:
    sizes = ["hidden_size=16", f"num_hidden_layers={layers}", "intermediate_size=24", "vocab_size=50"]
    words = [f"model={kind}", "model.weights=random", *(f"model.config.{size}" for size in sizes)]
    return build(compose.cell_from(words).model, 1, readout=Pooled(how="mean"))


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids)}


def test_an_adapter_lies_beside_the_feed_forward_network_before_the_norm() -> None:
    model = small(1)
    model.module.eval()
    plain = model.forward(inputs())
    beside = SideAdapters(model, 0.1, 0.5)
    fresh = beside.fresh(4)
    with beside.using(fresh), torch.no_grad():
        assert torch.equal(model.forward(inputs()), plain), "new adapters change nothing"
    adapters = {name: normal(place, *tensor.shape) for place, (name, tensor) in enumerate(fresh.items())}
    with beside.using(adapters), torch.no_grad():
        found = model.forward(inputs())
    layer = model.module.bert.encoder.layer[0]  # type: ignore[union-attr, index]
    read: list[torch.Tensor] = []
    hook = layer.intermediate.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    with torch.no_grad():
        assert torch.equal(model.forward(inputs()), plain), "none are in use any more"
    hook.remove()
    with torch.no_grad():
        x = read[0]
        inner = torch.relu(x @ adapters["0.down.weight"].T + adapters["0.down.bias"])
        added = 0.1 * (inner @ adapters["0.up.weight"].T + adapters["0.up.bias"])
        last = layer.output.LayerNorm(layer.output.dense(layer.intermediate(x)) + x + added)
    mask = inputs()["attention_mask"][..., None]
    torch.testing.assert_close(found, (last * mask).sum(1) / mask.sum(1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("kind", ["roberta_base", "distilbert", "electra_small", "mpnet_base", "modernbert_base"])
def test_every_architecture_has_places_for_adapters(kind: str) -> None:
    cell = compose.cell_from([f"model={kind}", "model.weights=random"])
    model = build(cell.model, 1, device="meta", readout=Pooled(how="cls"))
    beside = SideAdapters(model, 0.1, 0.0)
    size = int(model.module.config.hidden_size)  # type: ignore[union-attr, arg-type]
    assert sum(one.numel() for one in beside.fresh(16).values()) == cell.model.depth * (2 * 16 * size + 16 + size)


def test_features_are_means_over_tokens_or_the_first_token() -> None:
    model = small(2)
    model.module.eval()
    hidden = model.module.bert(**inputs()).last_hidden_state  # type: ignore[operator]
    torch.testing.assert_close(Pooled(how="cls").logits(model.module, inputs()), hidden[:, 0])
    expected = torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)])
    torch.testing.assert_close(Pooled(how="mean").logits(model.module, inputs()), expected)


def test_a_head_says_nothing_of_classes_that_were_not_seen() -> None:
    head = LinearHead(4, 3, seed=0)
    head.seen[1] = True
    assert head.logits(normal(0, 5, 3)).argmax(1).tolist() == [1] * 5
    other = LinearHead(4, 3, seed=1)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.logits(normal(0, 5, 3)), head.logits(normal(0, 5, 3)))


def of(accuracy: float, rows: int = 100) -> TaskScores:
    return TaskScores(accuracy, 1.0, accuracy, rows)


def test_the_metrics_of_a_matrix_that_can_be_reckoned_by_hand() -> None:
    stages = [
        {"a": of(0.9, 10)},
        {"a": of(0.7, 10), "b": of(0.8, 30)},
        {"a": of(0.5, 10), "b": of(0.85, 30), "c": of(0.6, 60)},
    ]
    found = summary(stages)
    assert found["last"] == pytest.approx((0.5 + 0.85 + 0.6) / 3)
    assert found["last_by_rows"] == pytest.approx(0.1 * 0.5 + 0.3 * 0.85 + 0.6 * 0.6)
    assert found["mean"] == pytest.approx((0.9 + 0.75 + 0.65) / 3)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.5) + 0.0) / 2)
    assert "retrieval" not in found
    assert summary(stages[:1]) == after(stages[0])
    assert not {"mean", "forgetting"} & summary(stages[:1]).keys()


@given(seed=SEEDS, tasks=st.integers(2, 5))
def test_metrics_follow_from_the_matrix_alone(seed: int, tasks: int) -> None:
    table = np.random.default_rng(seed).random((tasks, tasks))
    found = summary([{str(task): of(table[task, stage]) for task in range(stage + 1)} for stage in range(tasks)])
    means = [table[: stage + 1, stage].mean() for stage in range(tasks)]
    drops = [max(table[task, task:]) - table[task, -1] for task in range(tasks - 1)]
    assert (found["mean"], found["last"]) == (pytest.approx(np.mean(means)), pytest.approx(means[-1]))
    assert found["forgetting"] == pytest.approx(np.mean(drops))
    assert found["forgetting"] >= 0


def test_rows_are_counted_right_in_the_right_task_and_right_once_the_task_is_given() -> None:
    none = -np.inf
    scores = np.array([[3, 2, 1, none], [1, 0, 2, none], [1, 2, 0, none], [0.0, 1, 2, none]])
    found = scored(scores, np.array([0, 0, 0, 1]), np.array([0, 1]), 0, np.array([0, 1, 0, 1]))
    assert found == TaskScores(accuracy=0.25, identified=0.5, given_task=0.75, rows=4, retrieved=0.5)


def test_orders_are_the_same_for_everybody_and_caps_for_every_seed() -> None:
    tasks = ("rte", "mrpc", "cola", "sst2", "qnli")
    assert classes.ordered(tasks, 0) == tasks
    orders = [classes.ordered(tasks, number) for number in range(4)]
    assert orders == [classes.ordered(tasks, number) for number in range(4)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == sorted(tasks) for order in orders)
    split = make_split("train_rte", (tuple(map(str, range(30))),), np.arange(30) % 2)
    dev = make_split("dev_rte", (("a", "b"),), np.array([0, 1]))
    once, again = (classes.capped({"train_rte": split, "dev_rte": dev}, 7) for _ in range(2))
    assert once["train_rte"].sha256 == again["train_rte"].sha256
    assert (len(once["train_rte"]), once["dev_rte"]) == (7, dev)
    assert once["train_rte"].labels is not None
    assert [int(text) % 2 for text in once["train_rte"].texts[0]] == once["train_rte"].labels.tolist()
    assert classes.capped({"train_rte": split}, None)["train_rte"] is split


def test_labels_of_several_tasks_are_classes_of_their_own() -> None:
    tasks = [
        compose.cell_from([f"task={task}", "data=folder", "data.path=."]).task.parts[0] for task in ("qnli", "rte")
    ]
    both = classes.classes_of(tasks)
    assert both.names == ("qnli:entailment", "qnli:not_entailment", "rte:entailment", "rte:not_entailment")
    assert both.of([1]).tolist() == [2, 3]
    assert both.of([0, 1]).tolist() == [0, 1, 2, 3]


def test_the_cosine_of_epochs_starts_at_the_peak_and_ends_before_zero() -> None:
    from peftbench.lifecycle.sequence.fitting import cosine_share

    shares = [cosine_share(epoch, 4) for epoch in range(4)]
    assert shares == pytest.approx([0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])
    assert shares[0] == 1
    assert all(one > other > 0 for one, other in itertools.pairwise(shares))
