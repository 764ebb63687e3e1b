"""MOS's training and alignment beside a form of ten lines, the released code's pull in training, and its options."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_sequence import SIZE, loaded, words
from torch.nn.functional import cross_entropy

from peftbench.ground.seeds import stream
from peftbench.lifecycle.sequence.classes import stages_of
from peftbench.lifecycle.sequence.stages import Stages
from peftbench.training.checkpoint import Checkpoints

EPOCHS, ROWS, LR, DECAY = 3, 16, 0.5, 0.01
WHOLE_BATCHES = [  # every epoch is one step on all rows, and nothing is drawn
    *("sequence.cap=16", f"learner.batch_size={ROWS}", f"learner.epochs={EPOCHS}", "learner.dropout=0"),
    *(f"learner.lr={LR}", f"learner.weight_decay={DECAY}"),
    *("+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0"),
]


def after_stages(run: Stages, folder: Path) -> list[dict[str, Any]]:
    """The learner's state after each stage, copied."""
    states: list[dict[str, Any]] = []

    def told(*_: Any) -> None:
        state = run.learner.state_dict()
        adapters = [{name: tensor.detach().clone() for name, tensor in one.items()} for one in state["adapters"]]
        head = {name: tensor.clone() for name, tensor in state["head"].items()}
        states.append({"adapters": adapters, "head": head, "gaussians": dict(state["gaussians"])})

    run.run(Checkpoints(folder, {}, None), told)
    return states


def sgd(parameters: list[torch.Tensor], loss: torch.Tensor, velocity: list[Any], rates: list[float], wd: float) -> None:
    """A step of SGD with momentum 0.9 and weight decay."""
    for place, (one, grad) in enumerate(zip(parameters, torch.autograd.grad(loss, parameters), strict=True)):
        velocity[place] = 0.9 * velocity[place] + grad + wd * one.detach()
        one.data -= rates[place] * velocity[place]


def test_a_task_is_trained_as_the_equations_say(tmp_path: Path) -> None:
    run = loaded(*words("mos", *WHOLE_BATCHES, "learner.align_epochs=0"))
    first, second = after_stages(run, tmp_path)
    rte = run.classes.of([0])
    tokens = run.tokens["train_rte"]
    assert tokens.labels is not None
    batch, labels = run.encoder.batch(tokens, np.arange(ROWS)), torch.from_numpy(tokens.labels.astype(np.int64))
    start = first["adapters"][0]
    adapters = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    weight, bias = (first["head"][part][rte].clone().requires_grad_() for part in ("weight", "bias"))
    known = torch.stack([mean for mean, _ in first["gaussians"].values()])
    trained = [*adapters.values(), weight, bias]
    velocity: list[Any] = [0] * len(trained)
    for epoch in range(EPOCHS):
        lr = LR * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        features = run.encoder(batch, adapters)
        rows = torch.cat([known, features])
        loss = cross_entropy(features @ weight.T + bias, labels)
        loss = loss + 0.1 * cross_entropy(rows @ rows.T / 0.8, torch.arange(len(rows)))
        sgd(trained, loss, velocity, [lr] * len(adapters) + [lr / 10] * 2, DECAY)
        for name, one in adapters.items():
            one.data = 0.9 * one.data + 0.1 * start[name]
    moved = 0.0
    for name, one in adapters.items():
        torch.testing.assert_close(second["adapters"][1][name], one.detach(), rtol=1e-4, atol=1e-6)
        moved = max(moved, float((one.detach() - start[name]).abs().max()))
    assert moved > 1e-3
    torch.testing.assert_close(second["head"]["weight"][rte], weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second["head"]["bias"][rte], bias.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("covariance", ["full", "variance"])
def test_a_head_is_aligned_on_draws_from_all_classes(covariance: str, tmp_path: Path) -> None:
    words_of = [*WHOLE_BATCHES, f"learner.covariance={covariance}"]
    before, after = (
        after_stages(loaded(*words("mos", *words_of, f"learner.align_epochs={epochs}")), tmp_path / str(epochs))[1]
        for epochs in (0, 2)
    )
    random = torch.Generator().manual_seed(stream(0, "sequence") + 1)
    weight, bias = (before["head"][part].clone().requires_grad_() for part in ("weight", "bias"))
    count, velocity = 5 * ROWS, [torch.zeros(()), torch.zeros(())]
    targets = torch.arange(4).repeat_interleave(count)
    for epoch in range(2):
        lr, draws = 0.005 * (1 + math.cos(math.pi * epoch / 2)) / 2, []
        for _, (mean, spread) in sorted(after["gaussians"].items()):
            noise = torch.randn(count, SIZE, generator=random)
            if covariance == "full":
                values, vectors = torch.linalg.eigh(spread.double())
                draws.append(mean + noise @ (vectors * values.clamp(min=0).sqrt()).float().T)
            else:
                draws.append(mean + noise * spread.sqrt())
        x = torch.cat(draws)
        for rows in torch.randperm(len(x), generator=random).split(count):
            loss = cross_entropy(x[rows] @ weight.T + bias, targets[rows])
            sgd([weight, bias], loss, velocity, [lr, lr], 5e-4)
    assert not torch.allclose(before["head"]["weight"], after["head"]["weight"], atol=1e-3)
    torch.testing.assert_close(after["head"]["weight"], weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["head"]["bias"], bias.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("per_forward", "pulls"),
    [
        (False, 1),  # after the one step
        (True, 12 + 1 + 12),  # a training forward of twelve layers (0.9^12 = 0.282), the step, and one for statistics
    ],
)
def test_a_training_step_pulls_once_and_as_released_once_more_for_each_layer(per_forward: bool, pulls: int) -> None:
    sizes = ["model.config.num_hidden_layers=12", "model.config.hidden_size=16", "model.config.intermediate_size=24"]
    step = ["sequence.cap=16", "learner.batch_size=16", "learner.epochs=1", "learner.lr=1e-9", "learner.align_epochs=0"]
    run = loaded(*words("mos", *sizes, *step, f"learner.merge_per_forward={str(per_forward).lower()}"))
    state, tokens = run.learner.state_dict(), [run.tokens[f"train_{name}"] for name in ("rte", "sst2")]
    assert run.encoder.adapters is not None
    fresh = run.encoder.adapters.fresh(16)
    sets = [{name: torch.full_like(tensor, value) for name, tensor in fresh.items()} for value in (0.0, 1.0)]
    run.learner.load_state_dict({**state, "adapters": sets, "tasks": [5, 6]})  # whose mean is a half
    (stage,) = stages_of([0], tokens, run.classes)
    run.learner.learn(replace(stage, number=2))
    for tensor in run.learner.state_dict()["adapters"][2].values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.5 + 0.5 * 0.9**pulls), rtol=0, atol=1e-4)


def test_variances_alone_are_kept_where_they_are_asked_for_and_a_given_task_is_always_found(tmp_path: Path) -> None:
    full, variance = (
        loaded(*words("mos", f"learner.covariance={kind}", "learner.feature=cls", "learner.retrieval=oracle"))
        for kind in ("full", "variance")
    )
    spreads = []
    for run, place in ((full, "full"), (variance, "variance")):
        state = after_stages(run, tmp_path / place)[1]
        spreads.append([spread for _, spread in state["gaussians"].values()])
        for task, name in ((0, "rte"), (1, "sst2")):
            given = run.learner.answer(run.dev(name), task)
            assert given.retrieved is not None
            assert (given.retrieved == task).all()
    assert [tuple(spread.shape) for spread in spreads[1]] == [(SIZE,)] * 4
    # SST-2's, the first task's, are of the same features
    for whole, diagonal in zip(spreads[0][:2], spreads[1][:2], strict=True):
        torch.testing.assert_close(whole.diagonal(), diagonal)
