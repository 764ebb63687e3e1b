"""Floating-point operations: what a record says is what the products of its run's steps cost, whatever the method."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matrix import EVERY, D, F, L
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from peftbench.runner.run import Outcome
from peftbench.training import flops
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
JOINT = ["task=joint", "task.tasks=[stsb,rte,sst2]"]


@pytest.mark.parametrize(
    "words",
    [
        ["method=full"],
        ["method=head"],
        ["method=lora", "protocol.accumulation=2"],
        ["method=random_masking", "budget=500"],
        ["method=pfeiffer"],
        ["method=adalora", "method.rank=2"],  # with a penalty
        ["method=hut"],  # which computes its weights anew in every pass
        ["method=prefix_tuning"],
        ["method=lst", "method.examples=2", "method.reduction=8", "protocol.keep_prefix=true"],
        ["method=gradual_unfreeze"],  # parameters join on the way
        ["method=light_peft", "method.estimation=3"],  # the model shrinks on the way
        ["method=id3", "budget=500"],
        ["method=lora", "protocol.gradient_checkpointing=true"],
        ["method=lora", *JOINT],
    ],
    ids=" ".join,
)
def test_the_steps_of_a_run_cost_what_its_record_says(
    words: list[str], run_tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent, step = [], Trainer.step

    def counting(trainer: Trainer, number: int, rows: np.ndarray) -> None:
        with FlopCounterMode(display=False) as counter:
            step(trainer, number, rows)
        spent.append(counter.get_total_flops())

    monkeypatch.setattr(Trainer, "step", counting)
    record = run_tiny(*words, "protocol.batch_size=7").record
    assert record.status == "done", record.error
    assert record.flops is not None
    assert len(spent) == 6
    assert record.flops.training == sum(spent) > 0


def test_a_row_costs_its_closed_form_and_lora_twice_its_entries_a_token(row_run: Callable[[str], Outcome]) -> None:
    lora, full = (row_run(name).record for name in ("lora", "full"))
    assert lora.flops is not None
    assert full.flops is not None
    assert lora.counts is not None
    width = lora.flops.width
    layer = 2 * width * (4 * D * D + 2 * D * F) + 4 * width * width * D
    assert lora.flops.backbone == L * layer + 2 * D * D + 2 * D * 2  # pooler and classifier see one token
    assert lora.flops.more == 2 * width * lora.counts.backbone
    assert full.flops.more == 0
    assert full.flops.training > 2 * lora.flops.backbone


@pytest.mark.parametrize("name", EVERY)
def test_every_method_is_counted(name: str, row_run: Callable[[str], Outcome]) -> None:
    found = row_run(name).record.flops
    assert found is not None
    assert found.training is not None
    assert found.training > found.backbone


def test_attention_in_one_kernel_costs_its_products() -> None:
    """Two forward; back four, and the scores once more: torch's kernel keeps none."""
    query, key, value = (torch.randn(3, 2, 16, 8, requires_grad=True) for _ in range(3))
    product = 2 * 3 * 2 * 16 * 16 * 8
    made: list[torch.Tensor] = []
    assert flops.counted(lambda: made.append(scaled_dot_product_attention(query, key, value))) == 2 * product
    assert flops.counted(lambda: made[0].sum().backward()) == 5 * product


made = st.tuples(st.integers(1, 3), st.integers(1, 9), st.booleans())  # rows, width, whether the model changes then


@given(st.lists(made, max_size=40))
def test_few_passes_are_counted_and_tell_the_cost_of_all(every: list[tuple[int, int, bool]]) -> None:
    """Of a map and an attention of one head, whose size changes now and then."""
    passes, size, expected, sizes = flops.Passes(), 2, 0, 1
    for rows, width, changes in every:
        x = torch.ones(rows, width, size)
        weight = torch.ones(size, size)
        expected += 2 * rows * width * size**2 + 2 * rows * width**2 * size
        assert passes.make(flops.Kind(rows=rows), width, lambda x=x, weight=weight: bool((x @ weight @ x.mT).all()))
        passes = reloaded(passes)
        if changes:
            passes.change()
            size, sizes = size + 1, sizes + 1
    assert passes.total == expected


def reloaded(passes: flops.Passes) -> flops.Passes:
    """The same from a checkpoint."""
    other = flops.Passes()
    other.load_state_dict(json.loads(json.dumps(passes.state_dict()), object_pairs_hook=whole_keys))
    return other


def whole_keys(pairs: list[tuple[str, object]]) -> dict[object, object]:
    return {int(key) if key.isdigit() else key: value for key, value in pairs}


def test_three_widths_of_a_kind_are_counted_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, passes = [], flops.Passes()

    def counted(work: Callable[[], object]) -> int:
        work()
        seen.append(width)
        return width

    monkeypatch.setattr(flops, "counted", counted)
    for width in (8, 16, 8, 24, 32, 40, 16):
        assert passes.make(flops.Kind(rows=4), width, lambda: True)
    assert seen == [8, 16, 24]
    assert passes.total == 8 + 16 + 8 + 24 + 32 + 40 + 16
    passes.make(flops.Kind(rows=3), width, lambda: True)
    assert seen == [8, 16, 24, 16]
