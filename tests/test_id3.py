"""ID3 in whole runs: exact at every step, equal to a plain implementation and to the authors' package, lean."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assemble, values

from peftbench.config.spec import Cell
from peftbench.methods.selective import SelectiveTuner
from peftbench.runner.run import Outcome
from peftbench.sparse.schedule import unmasked

LINEAR = {  # of BERT's layers, by kind
    r"self\.(query|key|value)": None,
    r"attention\.output\.dense": "attention_output",
    r"intermediate\.dense": "intermediate",
    r"\d\.output\.dense": "output",
}


def place(name: str) -> str:
    """Layer and kind of a linear map, by its name in BERT."""
    (match, kind), *_ = ((found, kind) for words, kind in LINEAR.items() if (found := re.search(words, name)))
    layer = re.search(r"layer\.(\d+)", name)
    assert layer
    return f"{layer[1]} {kind or match[1]}"


SETTINGS = [
    ("uniform", 500, 1, 1),
    ("uniform", 3, 1, 1),  # fewer entries than steps
    ("uniform", 53, 1, 3),  # accumulated parts, and no multiple of the steps
    ("cosine", 97, 1, 1),
    ("front", 97, 4, 1),
]


def test_the_map_of_what_id3_chose_over_time_has_its_first_step_and_its_last(tiny: Callable[..., Cell]) -> None:
    _, tuner, trainer = assemble(tiny("method=id3", "budget=100", "protocol.max_steps=23"))
    assert isinstance(tuner, SelectiveTuner)
    seen: list[Counter[str]] = []
    step_done = tuner.after_step

    def after_step(step: int) -> None:
        step_done(step)
        sizes: Counter[str] = Counter()
        for i, name in enumerate(tuner.store.names):  # weight and bias of a map
            sizes[place(name)] += tuner.store.part(i)[1].numel()
        seen.append(+sizes)

    tuner.after_step = after_step  # type: ignore[method-assign]
    trainer.run()
    over_time = tuner.facts()["over_time"]
    times = [moment["step"] for moment in over_time]
    first = tuner.facts()["growth"][0][0]
    assert (len(times), times[0], times[-1]) == (10, first, first + 22)
    for moment in over_time:
        assert +Counter(moment["by_place"]) == seen[moment["step"] - first]
    assert sum(over_time[-1]["by_place"].values()) == 100
    assert over_time[-1]["by_place"] == tuner.facts()["by_place"]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("schedule", "budget", "every", "parts"), SETTINGS)
@pytest.mark.parametrize("kinds", ["null", "[query,output]"])
def test_id3_is_exact_at_every_step(
    tiny: Callable[..., Cell], schedule: str, budget: int, every: int, parts: int, precision: str, kinds: str
) -> None:
    steps = 10
    cell = tiny(
        "method=id3", f"budget={budget}", f"method.schedule={schedule}", f"method.every={every}",
        f"method.kinds={kinds}", "method.steps=7", f"protocol.accumulation={parts}", f"protocol.max_steps={steps}",
        f"protocol.precision={precision}", "protocol.weight_decay=0.3", "protocol.clip=0.01", "protocol.lr=0.01",
    )  # fmt: skip
    model, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    before, used, chosen = values(model), [], []
    step_done = tuner.after_step

    def after_step(step: int) -> None:
        step_done(step)
        used.append(tuner.store.used)
        chosen.append(tuner.store.ids.tolist())

    tuner.after_step = after_step  # type: ignore[method-assign]
    trainer.run()
    assert used == [unmasked(budget, 7, t + 1, schedule, every) for t in range(steps)]  # type: ignore[arg-type]
    assert used[6:] == [budget] * 4
    for earlier, later in pairwise(chosen):
        assert later[: len(earlier)] == earlier, "what is unmasked stays unmasked"
    assert len(set(chosen[-1])) == budget
    after, changed = values(model), 0
    for i, name in enumerate(tuner.store.names):
        inside = torch.zeros_like(before[name], dtype=torch.bool).view(-1)
        inside[tuner.store.part(i)[1]] = True
        different = (before[name] != after[name]).view(-1)
        assert not (different & ~inside).any(), f"{name}: an entry outside the mask changed"
        changed += int(different.sum())
    assert changed > 0.5 * budget
    assert all(torch.equal(before[n], after[n]) for n, _ in model.backbone() if n not in tuner.store.names)


def reference_id3(cell: Cell, steps: int, budget: int, eps: float, exp: float) -> tuple[list[set[int]], torch.Tensor]:
    """ID3 written plainly with dense tensors: masks, full sort, torch's own AdamW, one shared step counter."""
    model, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    tensors = tuner.store.tensors
    for tensor in tensors:
        tensor.requires_grad_(True)
    head = [p for _, p in model.head()]
    optimizer = torch.optim.AdamW([*tensors, *head], lr=cell.protocol.lr, weight_decay=0.0)
    mask = torch.zeros(tuner.store.total, dtype=torch.bool)
    sets: list[set[int]] = []
    torch.manual_seed(0)
    assert trainer.train is not None
    order = trainer.order(0)
    model.module.train()
    for t in range(steps):
        rows = order[t]
        (trainer.loss(rows) / len(rows)).backward()
        gradient = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.view(-1) for p in tensors])
        weight = torch.cat([p.detach().view(-1) for p in tensors])
        scores = gradient.abs() / (weight.abs() + eps) ** exp
        scores[mask] = -1
        mask[scores.argsort(descending=True, stable=True)[: budget // steps]] = True
        for p, part in zip(tensors, mask.split([p.numel() for p in tensors]), strict=True):
            if p.grad is not None:
                p.grad.view(-1)[~part] = 0
        optimizer.step()
        optimizer.zero_grad()
        sets.append(set(mask.nonzero().squeeze(1).tolist()))
    return sets, torch.cat([p.detach().view(-1) for p in tensors])


PARITY = [
    "method=id3", "method.kinds=null", "method.adam=shared", "method.eps=0.01", "protocol.precision=fp32",
    "protocol.batch_size=2", "protocol.clip=null", "protocol.schedule=constant", "protocol.warmup=0",
    "protocol.lr=0.002", "+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0",
]  # fmt: skip


def chosen_sets(cell: Cell) -> tuple[list[set[int]], torch.Tensor]:
    """Train a cell: the chosen set after every step, and all candidate entries at the end."""
    _, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    sets: list[set[int]] = []
    step_done = tuner.after_step

    def after_step(step: int) -> None:
        step_done(step)
        sets.append(set(tuner.store.ids.tolist()))

    tuner.after_step = after_step  # type: ignore[method-assign]
    trainer.run()
    return sets, torch.cat([t.detach().view(-1) for t in tuner.store.tensors])


def test_id3_equals_a_plain_dense_implementation(tiny: Callable[..., Cell]) -> None:
    """The same chosen set after every step for 20 steps, and the same weights, with the shared step counter."""
    steps, budget = 20, 400
    cell = tiny(*PARITY, f"budget={budget}", f"protocol.max_steps={steps}")
    expected, weights = reference_id3(cell, steps, budget, eps=0.01, exp=1.0)
    sets, ours = chosen_sets(cell)
    assert sets == expected
    torch.testing.assert_close(ours, weights, atol=1e-5, rtol=0)


def test_an_earlier_evaluation_is_put_back_whole(tiny: Callable[..., Cell]) -> None:
    """What joined later holds the backbone's values again, and is in no count, growth or map; also after a resume."""
    cell = tiny("method=id3", "budget=200", "protocol.max_steps=14", "protocol.lr=0.01")
    model, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    then: dict[str, Any] = {}
    step_done = tuner.after_step

    def after_step(step: int) -> None:
        step_done(step)
        if step == 11:
            then["state"], then["delta"] = tuner.state_dict(), {n: t.clone() for n, t in tuner.delta().items()}
            then["values"], then["facts"], then["ids"] = values(model), tuner.facts(), tuner.store.ids

    tuner.after_step = after_step  # type: ignore[method-assign]
    trainer.run()
    assert tuner.store.used == tuner.kept() == 200
    whole = tuner.facts()
    assert [moment["step"] for moment in whole["over_time"]] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert whole["over_time"][-1] == {"step": 13, **{key: whole[key] for key in ("by_kind", "by_layer", "by_place")}}

    tuner.load_delta(then["delta"])
    assert tuner.facts() == then["facts"]
    assert tuner.kept() == round(200 * 12 / 14)
    assert torch.equal(tuner.store.ids, then["ids"]), "in the order in which they were chosen"
    assert [n for n, p in model.backbone() if not torch.equal(p, then["values"][n])] == []

    _, other, _ = assemble(cell)
    assert isinstance(other, SelectiveTuner)
    other.load_state_dict(then["state"])
    assert torch.equal(other.store.before, tuner.store.before)  # type: ignore[arg-type]


@pytest.mark.parametrize(("selection", "kept"), [("last", 17), ("best_dev", 8)])
def test_counts_are_of_what_was_chosen_when_training_ended(
    run_tiny: Callable[..., Outcome], selection: str, kept: int
) -> None:
    """No score is better than the first, so patience ends it after the second."""
    words = [f"protocol.selection={selection}", "protocol.patience=1", "protocol.evaluate_every=1", "protocol.lr=1e-9"]
    record = run_tiny("method=id3", "budget=50", *words).record
    assert [evaluation.step for evaluation in record.metrics.evaluations] == [1, 2]
    assert record.counts is not None
    assert (record.counts.backbone, record.counts.kept, record.budget["chosen"]) == (50, kept, kept)
    assert record.counts.stored_bytes == 8 * kept + 4 * (2 * 128 + 2)


def test_a_run_that_ended_early_can_go_on_to_its_budget(run_tiny: Callable[..., Outcome]) -> None:
    """It starts with more entries than the schedule has at first: none joins until it has caught up."""
    words = ["method=id3", "budget=50"]
    early = run_tiny(*words, "protocol.patience=1", "protocol.evaluate_every=1", "protocol.lr=1e-9")
    on = run_tiny(*words, f"init_from={early.path.parent}")
    assert on.error is None, on.error
    assert on.record.budget["growth"] == [(0, 17), (2, 25), (3, 33), (4, 42), (5, 50)]


@pytest.mark.parametrize("method", ["id3", "random_masking"])
def test_state_costs_what_the_budget_says(tiny: Callable[..., Cell], method: str) -> None:
    """Values, index, order and Adam's moments: 16 bytes per entry; growing, 8 more."""
    _, tuner, trainer = assemble(tiny(f"method={method}", "budget=2000"))
    assert isinstance(tuner, SelectiveTuner)
    made: list[torch.optim.Optimizer] = []
    make = tuner.optimizer

    def keep(*groups: Any, **settings: Any) -> torch.optim.Optimizer:
        made.append(make(*groups, **settings))
        return made[0]

    tuner.optimizer = keep  # type: ignore[method-assign]
    trainer.run()
    state = made[0].state[tuner.store.values]
    held = [tuner.store.values, tuner.store.index, state["exp_avg"], state["exp_avg_sq"]]
    held += [] if tuner.store.by_id is None else [tuner.store.by_id]
    held += [] if tuner.store.before is None else [tuner.store.before]
    assert sum(t.numel() * t.element_size() for t in held) == (24 if method == "id3" else 16) * 2000
    assert not any(p.grad is not None for p in tuner.store.tensors), "no dense gradient is left"


def test_id3_equals_the_authors_package(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    """`selective-optimizers` 0.4: the same chosen set after every step for 20 steps, weights equal to 1e-5.

    Compared where that package is right: weight decay 0, the budget a multiple of the steps, head exempt (its budget
    counts the head, ours does not), fp32, the shared step counter.
    """
    from selective_optimizers.wrap import get_selective_optimizer

    steps, budget = 20, 400
    cell = tiny(*PARITY, f"budget={budget}", f"protocol.max_steps={steps}")
    model, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    for tensor in tuner.store.tensors:
        tensor.requires_grad_(True)
    head = [p for _, p in model.head()]
    optimizer = get_selective_optimizer(torch.optim.AdamW, "id3")(
        [{"params": tuner.store.tensors}, {"params": head, "choose_all": True}],
        lr=cell.protocol.lr, budget=budget + sum(p.numel() for p in head), max_steps=steps, eps=0.01, exp=1.0,
        verify=False,
    )  # fmt: skip
    expected: list[set[int]] = []
    assert trainer.train is not None
    order = trainer.order(0)
    model.module.train()
    for rows in order[:steps]:
        (trainer.loss(rows) / len(rows)).backward()
        for tensor in tuner.store.tensors:
            tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad  # it cannot do without
        optimizer.step()
        optimizer.zero_grad()
        masks = optimizer.param_groups[0]["chosen_masks"]
        expected.append(set(torch.cat([mask.view(-1) for mask in masks]).nonzero().squeeze(1).tolist()))
    theirs = torch.cat([t.detach().view(-1) for t in tuner.store.tensors])

    sets, ours = chosen_sets(cell)
    assert sets == expected
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
