"""Types of peft one by one: where each starts, what its own seed does, and AdaLoRA's allocator on this loop."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import assemble

from peftbench.backbone.model import Model, build, load_model
from peftbench.config.spec import Attachment, Budget, Cell, MethodSpec, Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import DELTA_FILE
from peftbench.methods import peft_types
from peftbench.methods.base import Tuner
from peftbench.methods.dial import trained_entries
from peftbench.methods.peft import Peft
from peftbench.methods.peft_tuners import AdaLoRATuner, PeftTuner
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell
from peftbench.runner.run import Outcome

pytest.importorskip("peft", reason="peft is not installed: pip install 'peftbench[peft]'")

D, L = 128, 2  # bert_tiny
Make, Run = Callable[..., Cell], Callable[..., Outcome]
IDS = {"input_ids": torch.arange(3, 43).reshape(4, 10), "attention_mask": torch.ones(4, 10).long()}
NEEDS: Mapping[str, dict[str, Any]] = {
    "vblora": {"vector_length": 32},  # to act on maps of this size
    "c3a": {"init_weights": True},  # to start at the backbone
}
DRAWS: Mapping[str, dict[str, Any]] = {"psoft": {"psoft_svd": "lowrank"}}  # what draws anything at all
DIALLED = [kind for kind, facts in peft_types.TYPES.items() if facts.dial and not facts.is_prompt]
SEEDED = [kind for kind, facts in peft_types.TYPES.items() if facts.seed]
STARTS_ELSEWHERE = ("fourierft", "unilora", "vblora")  # so peft has it; the page of types says how far


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        model.module.eval()
        return model.forward(IDS)


@pytest.mark.parametrize("kind", DIALLED)
def test_the_size_that_a_budget_finds_starts_at_the_backbone(tiny: Make, kind: str) -> None:
    """Where the next size would not fit: of blocks, that is the next divisor; else a fifth unit would."""
    model, empty = load_model(tiny().model, 2, 0)[0], build(tiny().model, 2, "meta")
    dial, expected = peft_types.TYPES[kind].dial, logits(model)
    config = NEEDS.get(kind, {})
    sizes = peft_types.fitting(kind, config, {D})[2:4] if peft_types.TYPES[kind].divides else (4, 6)
    few, more = (trained_entries(Peft(kind, {**config, str(dial): size}), empty, Scope()) for size in sizes)
    fitted = Peft(kind, config).within(empty, Scope(), (few + more) // 2)
    torch.manual_seed(0)
    tuner = fitted.attach(model, Scope())
    assert few <= sum(p.numel() for p in tuner.trainables().values()) <= (few + more) // 2
    if kind not in STARTS_ELSEWHERE:
        assert float((logits(model) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", DIALLED)
def test_a_budget_above_all_that_a_type_can_train_is_no_error(tiny: Make, kind: str) -> None:
    empty, used = build(tiny().model, 2, "meta"), []
    for budget in (70_000, 140_000):  # every map twice as large as it is: 131,072
        fitted = Peft(kind, NEEDS.get(kind, {})).within(empty, Scope(), budget)
        used.append(trained_entries(fitted, empty, Scope()))
    assert 0 < used[0] <= 70_000
    assert used[0] <= used[1] <= 140_000


@pytest.mark.parametrize(("kind", "beside"), [("supertuning", 0), ("frod", D)])
def test_a_share_of_entries_is_inverted_to_the_last_one_that_a_budget_holds(tiny: Make, kind: str, beside: int) -> None:
    """Of maps of two shapes, with `beside` more entries for each input: a part is an entry of the smaller ones."""
    model = build(tiny().model, 2, "meta")
    square, wide = (D * D, 512 * D if kind == "supertuning" else D * D)
    part = L * (square + wide) // square  # query, and intermediate with four times the outputs
    least, most = part + 2 * L * beside, L * (square + wide) - (2 * L * D if kind == "frod" else 0) + 2 * L * beside
    method = Peft(kind, {}, ("query", "intermediate"))
    with pytest.raises(ConfigError, match=f"needs at least {least}"):
        method.within(model, Scope(), least - 1)
    for budget in (least, 1234, 5000, 20_011, 10**9):
        fitted = method.within(model, Scope(), budget)
        used = trained_entries(fitted, model, Scope())
        assert used == most < budget or budget - part < used <= budget
    real = load_model(tiny().model, 2, 0)[0]
    assert sum(p.numel() for p in fitted.attach(real, Scope()).trainables().values()) == used


@pytest.mark.parametrize("kind", SEEDED)
def test_what_ignores_torchs_generator_follows_the_runs_seed(tiny: Make, kind: str) -> None:
    """And the key that carries it is the one that matters: with another value equal entries compute something else."""
    key = str(peft_types.TYPES[kind].seed)

    def attached(seed: int, config: Mapping[str, Any]) -> tuple[Model, PeftTuner]:
        spec = MethodSpec.from_keys("x", {"_target_": "peftbench.methods.peft.Peft", "type": kind, "config": config})
        model = load_model(tiny().model, 2, 0)[0]
        tuner: Tuner = deltas.attach(Attachment(spec, Scope(), Budget()), model, seed)
        assert isinstance(tuner, PeftTuner)
        for parameter in tuner.trainables().values():
            parameter.data = torch.linspace(-0.3, 0.4, parameter.numel()).reshape(parameter.shape)
        return model, tuner

    one, same, other = (getattr(attached(seed, {})[1].config, key) for seed in (1, 1, 2))
    assert one == same != other
    (first, _), (again, _), (second, _) = (attached(1, {**DRAWS.get(kind, {}), key: value}) for value in (5, 5, 6))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(second))


ADALORA = ["method=peft", "method.type=adalora", "method.config.init_r=4", "method.config.tinit=1"]
ADALORA += ["method.config.tfinal=2", "protocol.lr=0.05"]
PRUNED = [*ADALORA, "method.config.target_r=2"]


@pytest.mark.parametrize(
    ("words", "evaluated"),
    [
        ((), [6]),
        (("protocol.selection=best_dev", "protocol.evaluate_every=1"), [1, 2, 3, 4, 5, 6]),
        (("protocol.patience=1", "protocol.evaluate_every=1", "protocol.lr=1e-9"), [1, 2, 3, 4, 5]),
        (("method.config.deltaT=4", "method.config.tfinal=0"), [6]),
    ],
    ids=["last", "best dev", "early stopping", "rare masks"],
)
def test_adalora_is_scored_and_stored_with_its_target(
    run_tiny: Run, words: tuple[str, ...], evaluated: list[int]
) -> None:
    outcome = run_tiny(*PRUNED, *words)
    counts, metrics = outcome.record.counts, outcome.record.metrics
    assert counts is not None
    assert [evaluation.step for evaluation in metrics.evaluations] == evaluated
    assert metrics.selected is not None
    stored = load_file(outcome.path.parent / DELTA_FILE)
    live = sum(int(tensor.count_nonzero()) for name, tensor in stored.items() if "lora_E" in name)
    assert counts.backbone == 2 * L * 4 * (2 * D + 1)
    assert counts.kept == live * (2 * D + 1)
    assert live == 2 * L * 2
    assert metrics.selected.step >= (6 if "method.config.tfinal=0" in words else 4)


def test_adalora_counts_what_it_aims_at_and_adds_its_penalty(run_tiny: Run, tiny: Make) -> None:
    lines = (run_tiny(*PRUNED).path.parent / "metrics.jsonl").read_text().splitlines()
    assert [line["penalty"] > 0 for line in map(json.loads, lines) if "penalty" in line] == [True] * 6
    assert count_cell(tiny(*PRUNED)).kept == 2 * L * 2 * (2 * D + 1)
    with pytest.raises(ConfigError, match="tinit=4 and tfinal=2 leave nothing of 6 steps"):
        count_cell(tiny(*PRUNED, "method.config.tinit=4"), 6)
    _, tuner, _ = assemble(tiny(*PRUNED))
    assert isinstance(tuner, AdaLoRATuner)
    assert tuner.kept_bounds() == (0, 2 * L * 2 * (2 * D + 1)), "peft prunes all modes that tie"
    factors = [p for name, p in tuner.trainables().items() if "lora_A" in name]
    away = [(p @ p.T - torch.eye(4)).norm() for p in factors]
    others = [p for name, p in tuner.trainables().items() if "lora_B" in name]
    away += [(p.T @ p - torch.eye(4)).norm() for p in others]
    torch.testing.assert_close(tuner.penalty(), 0.5 * torch.stack(away).mean())


def test_adalora_whose_target_is_its_start_is_a_lora_with_a_penalty(run_tiny: Run) -> None:
    outcome = run_tiny(*ADALORA, "method.config.target_r=4", "protocol.selection=best_dev", "protocol.evaluate_every=3")
    assert outcome.error is None, outcome.error
    assert outcome.record.counts is not None
    assert outcome.record.counts.kept == outcome.record.counts.backbone
