"""Light-PEFT: what is pruned is exactly as much as asked, is what a mask of zeros would give, and is really gone."""

import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from matrix import D, F, L
from support import Signal, assemble, logged, values, what_is_left
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification
from uses import CLOSE, done, labelled, logits, written

import peftbench
from peftbench.backbone.model import Model, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import DELTA_FILE
from peftbench.methods.base import ParameterTuner, Training, Tuner
from peftbench.methods.light_peft import LightPEFTTuner
from peftbench.record import read_record
from peftbench.runner import apply
from peftbench.runner.counts import count_cell, kept_bounds
from peftbench.runner.delta import Delta
from peftbench.runner.run import Outcome
from peftbench.training.stopping import Stopped
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
Tiny = Callable[..., Cell]
ARCHITECTURES = ["bert_base_cased", "roberta_base", "electra_small", "distilbert", "mpnet_base", "deberta_v3_base"]
THREE = ["method=light_peft", "method.estimation=3", "protocol.precision=fp32", "protocol.lr=0.01"]
STILL = [f"+model.config.{key}_dropout_prob=0" for key in ("hidden", "attention_probs")] + ["method.dropout=0"]


def attached(tiny: Tiny, *words: str) -> tuple[Model, LightPEFTTuner, Trainer]:
    """A model with Light-PEFT on it; its masks and terms are drawn so that all of them matter."""
    model, tuner, trainer = assemble(tiny(*THREE, *words))
    assert isinstance(tuner, LightPEFTTuner)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in tuner.trainables().items():
            if not name.endswith("lora_A"):
                noise = torch.randn(p.shape, generator=random)
                p.copy_(1 + 0.3 * noise if name.endswith("mask") else 0.3 * noise)
    return model, tuner, trainer


def estimated(tuner: Tuner) -> None:
    """The estimation, without a step of the optimizer."""
    tuner.prepare(Training(9, lambda count: iter(()), lambda tensor: tensor))
    assert [tuner.after_step(step) for step in range(3)] == [False, False, True]


def bits(delta: Mapping[str, torch.Tensor], part: str) -> dict[str, np.ndarray]:
    """The stored patterns of this part, by the name of their map; filled up with zeros to whole bytes."""
    end = f".{part}"
    return {name.removesuffix(end): np.unpackbits(t.numpy()) for name, t in delta.items() if name.endswith(end)}


def scored(trainer: Trainer) -> np.ndarray:
    return trainer.evaluator.predict(trainer.scored["dev"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pruned_is_masked_with_zeros(name: str, tiny: Tiny, tmp_path: Path) -> None:
    """Held against the plain model with masks, and zeros for what is pruned, multiplied into its weights by hand."""
    words = checkpoint(name, tmp_path / "encoder")
    model, tuner, trainer = attached(tiny, *words)
    whole = dict(tuner.delta())
    estimated(tuner)
    delta = tuner.delta()
    kept, ranks = bits(delta, "kept"), bits(delta, "ranks")
    plain, _ = load_model(tiny(*words).model, 2, 0)
    with torch.no_grad():
        for part, left in ranks.items():
            term = whole[f"{part}.lora_B"] * torch.from_numpy(left[:8]).float() @ whole[f"{part}.lora_A"]
            plain.module.get_parameter(f"{part}.weight").add_(2 * term)
        for part, left in kept.items():
            mask, weight = whole[f"{part}.mask"], plain.module.get_parameter(f"{part}.weight")
            masked = mask * torch.from_numpy(left[: len(mask)]).float()
            weight.mul_(masked.repeat_interleave(weight.shape[1] // len(mask)))
    cell = tiny(*THREE, *words)
    expected = scored(Trainer(plain, ParameterTuner({}), cell.protocol, cell.task, None, trainer.scored, "accuracy", 0))
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(scored(trainer), expected, rtol=1e-5, atol=1e-5)
    tuner.merge()
    np.testing.assert_allclose(scored(trainer), expected, rtol=1e-5, atol=1e-5)
    assert {n: p.shape for n, p in model.backbone()} == {n: p.shape for n, p in plain.backbone()}


@pytest.mark.parametrize("name", ["roberta_base", "mpnet_base", "deberta_v3_base"])
def test_every_use_of_a_run_gives_its_logits(name: str, run_tiny: Run, tmp_path: Path) -> None:
    """A fresh backbone with the delta, and a plain transformers folder."""
    masks = "method.masks=drop" if name == "mpnet_base" else "method.masks=fold"
    run = done(run_tiny(*checkpoint(name, tmp_path / "encoder"), *THREE, masks))
    np.testing.assert_array_equal(labelled(run, tmp_path), written(run))
    apply.write_model(run, tmp_path / "applied")
    applied = AutoModelForSequenceClassification.from_pretrained(tmp_path / "applied")
    np.testing.assert_allclose(logits(applied, tmp_path / "applied"), written(run), atol=CLOSE)


def test_what_is_pruned_is_gone(tiny: Tiny) -> None:
    """From memory, from the count and from the work of a forward pass."""
    cell = tiny(*THREE, "protocol.max_steps=6", "method.kinds=[query]", "method.prune_modules=0")
    model, tuner, trainer = assemble(cell)
    before, originals = values(model), [weakref.ref(p) for n, p in model.backbone() if "dense.weight" in n]

    def work() -> int:
        with FlopCounterMode(display=False) as counter:
            model.forward({"input_ids": torch.ones(2, 16, dtype=torch.long)})
        return counter.get_total_flops()

    costs = work()
    trainer.run()
    assert [ref() is None for ref in originals] == [True] * (3 * L) + [False]  # but the pooler's
    facts = tuner.facts()
    heads = D // 2  # entries of the one head that is left of two
    layers = L * (4 * D * heads + 3 * heads + D + D + 4 * D) + 683 * (2 * D + 1)
    outside = sum(p.numel() for n, p in before.items() if "encoder" not in n and "classifier" not in n)
    assert facts["entries"]["after"] == layers + outside
    assert sum(p.numel() for _, p in model.backbone()) == layers + outside + tuner.kept()
    assert work() < 0.7 * costs
    for name, p in model.backbone():
        if "LayerNorm" in name or "embeddings" in name or name.endswith("output.dense.bias"):
            assert torch.equal(p, before[name]), name


def test_masks_that_are_dropped_leave_the_backbones_own_entries(tiny: Tiny) -> None:
    """The released code's choice changes what the model computes; kept entries are the backbone's, bit for bit."""
    outputs = {}
    for masks in ("fold", "drop"):
        model, tuner, trainer = attached(tiny, f"method.masks={masks}", "method.prune_ranks=0")
        before = {n: p for n, p in values(model).items() if n.endswith("weight") and "layer" in n}
        estimated(tuner)
        outputs[masks] = scored(trainer)
    assert np.abs(outputs["fold"] - outputs["drop"]).max() > 1e-3
    assert not [name for name in tuner.delta() if name.endswith(".mask")]
    for name, left in bits(tuner.delta(), "kept").items():
        count, size = (2, D // 2) if "attention" in name else (F, 1)
        columns = torch.from_numpy(left.astype(bool))[:count].repeat_interleave(size)
        assert torch.equal(model.module.get_parameter(f"{name}.weight"), before[f"{name}.weight"][:, columns])


@pytest.mark.parametrize("shares", [(0.5, 0.9, 0.5, 0.3), (0.333, 0.997, 0.9, 0.9), (0, 0, 0, 0), (0, 0.5, 0, 0)])
def test_counts_are_exact_under_ties(shares: tuple[float, ...], tiny: Tiny) -> None:
    """All masks equal, all estimates zero; a layer keeps a neuron though all others would go."""
    keys = [f"method.prune_{k}={v}" for k, v in zip(("heads", "neurons", "modules", "ranks"), shares, strict=True)]
    _, tuner, trainer = assemble(tiny(*THREE, *keys))
    if shares[1] == 0.997:  # of layer 0 no neuron is among the best
        with torch.no_grad():
            tuner.trainables()["bert.encoder.layer.0.output.dense.mask"].zero_()
    estimated(tuner)
    kept, ranks = bits(tuner.delta(), "kept"), bits(tuner.delta(), "ranks")
    heads, neurons, modules, share = shares
    assert [row.sum() for n, row in kept.items() if "attention" in n] == [2 - round(2 * heads)] * (L if heads else 0)
    of_neurons = [int(row.sum()) for n, row in kept.items() if "attention" not in n]
    assert sum(of_neurons) == (2 * F - round(2 * F * neurons) if neurons else 0)
    assert all(of_neurons)
    left = 6 * L - round(6 * L * modules)
    total = left * 8 - round(left * 8 * share)
    assert sum(int(row.sum()) for row in ranks.values()) == total
    assert sum(bool(row.any()) for row in ranks.values()) <= left
    assert np.isfinite(scored(trainer)).all()
    assert not any(name.endswith("mask") for name in tuner.trainables())


def test_estimates_are_those_of_the_paper(tiny: Tiny) -> None:
    """Of one step: norms over tokens that are no padding, and gradients before clipping, by hand."""
    model, tuner, trainer = attached(tiny, *STILL, "method.estimation=2", "protocol.clip=1e-3", "protocol.max_steps=4")
    name = "bert.encoder.layer.1.intermediate.dense"
    layer, inputs = model.module.get_submodule(name), []
    trainer.begin(total=4)
    trainer.step(0, trainer.order(0)[0])
    before = {key: p.detach().clone() for key, p in layer.named_parameters()}
    assert not tuner.state_dict()["modules"].any(), "the second half counts"
    gradients: dict[str, torch.Tensor] = {}
    for key in ("lora_A", "lora_B"):
        getattr(layer, key).register_hook(lambda gradient, key=key: gradients.update({key: gradient.clone()}))
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    rows = trainer.order(0)[1]
    trainer.step(1, rows)
    hook.remove()
    assert trainer.train is not None
    inside = trainer.forward.batch(trainer.train, rows).inputs["attention_mask"].bool()
    assert not inside.all()
    x = inputs[0][inside]
    change = 2 * x @ before["lora_A"].T @ before["lora_B"].T
    ratio = (change.norm(dim=1) / (x @ before["weight"].T + before["bias"]).norm(dim=1)).mean()
    a, b = (before[key] * gradients[key] for key in ("lora_A", "lora_B"))
    state, number = tuner.state_dict(), list(bits(tuner.delta(), "ranks")).index(name)
    torch.testing.assert_close(state["modules"][number], ratio)
    torch.testing.assert_close(state["ranks"][number], a.mean(1).abs() + b.mean(0).abs())
    assert tuner.settles() == 2


def test_the_penalty_pulls_on_masks_alone(tiny: Tiny) -> None:
    words = ["method.penalty=2", *STILL, "protocol.lr=0.1", "protocol.max_steps=4", "protocol.warmup=0"]
    model, tuner, trainer = assemble(tiny(*THREE, *words, "protocol.weight_decay=0.5"))
    masks = {name: p for name, p in tuner.trainables().items() if name.endswith("mask")}
    penalty = tuner.penalty()
    assert penalty is not None
    assert penalty.item() == 2 * L * (2 + F)
    useless = "bert.encoder.layer.1.attention.output.dense"
    with torch.no_grad():
        model.module.get_parameter(f"{useless}.weight")[:, : D // 2] = 0
    trainer.begin(total=4)
    model.module.train()
    trainer.loss(trainer.order(0)[0]).backward()
    gradient = masks[f"{useless}.mask"].grad
    assert gradient is not None
    assert gradient[0] == 0 != gradient[1]
    model.module.zero_grad()
    trainer.step(0, trainer.order(0)[0])
    for mask in masks.values():
        torch.testing.assert_close(mask.detach(), torch.full_like(mask, 0.9), atol=1e-3, rtol=0)
    for step in (1, 2):
        trainer.step(step, trainer.order(0)[step])
    assert tuner.penalty() is None


def test_accumulated_parts_leave_the_same(run_tiny: Run, tmp_path: Path) -> None:
    patterns = []
    for parts in (1, 3):
        words = [f"protocol.accumulation={parts}", f"outputs={tmp_path / str(parts)}", "protocol.max_steps=6"]
        tensors = Delta.load(done(run_tiny(*THREE, *STILL, *words)) / DELTA_FILE).tensors
        patterns.append({n: t.tolist() for n, t in tensors.items() if n.endswith((".kept", ".ranks"))})
    assert patterns[0] == patterns[1]


def test_a_run_stopped_before_and_at_pruning_ends_as_an_undisturbed_one(
    run_tiny: Run, signal_at: Signal, tmp_path: Path
) -> None:
    """And after it: the method matrix."""
    words = [*THREE, "protocol.precision=bf16", "protocol.selection=best_dev", "protocol.evaluate_every=2"]
    whole = run_tiny(*words, f"outputs={tmp_path / 'whole'}")
    for step in (1, 2):
        signal_at(step)
        with pytest.raises(Stopped):
            run_tiny(*words, f"outputs={tmp_path / str(step)}")
        signal_at(0)
        resumed = run_tiny(*words, f"outputs={tmp_path / str(step)}")
        assert what_is_left(resumed) == what_is_left(whole)
        assert logged(resumed) == logged(whole)


def test_no_model_that_will_not_stay_is_selected(run_tiny: Run) -> None:
    """Neither does it use up patience; the selected one is stored, within the bounds told before."""
    words = ["protocol.max_steps=8", "protocol.evaluate_every=1", "protocol.selection=best_dev", "protocol.patience=2"]
    run = done(run_tiny(*THREE, "method.estimation=5", "protocol.lr=1e-6", *words))
    record = read_record(run / "result.json")
    steps = [evaluation.step for evaluation in record.metrics.evaluations]
    assert (record.metrics.selected.step, steps) == (5, [1, 2, 3, 4, 5, 6, 7])  # type: ignore[union-attr]
    np.testing.assert_array_equal(labelled(run, run), written(run))
    least, most = kept_bounds(compose.cell_from(record.overrides))
    stored = sum(t.numel() for n, t in Delta.load(run / DELTA_FILE).tensors.items() if "lora" in n)
    assert least <= record.counts.kept == stored <= most < record.counts.backbone


def test_a_run_goes_on_from_a_pruned_one(run_tiny: Run, tmp_path: Path) -> None:
    """By the same method without another estimation, by another on the zeros that are left of it."""
    run = done(run_tiny(*THREE, *(words := checkpoint("bert_base_cased", tmp_path / "encoder"))))
    only = [f"init_from={run}", "task.train=null", "task.test=[]", "seed=5"]
    for method, close in ((THREE, 0.0), (["method=full", "protocol.precision=fp32"], CLOSE)):
        np.testing.assert_allclose(written(done(run_tiny(*method, *words, *only))), written(run), atol=close)
    further = done(run_tiny(*THREE, *words, f"init_from={run}", "seed=5"))
    patterns = [bits(Delta.load(folder / DELTA_FILE).tensors, "kept") for folder in (run, further)]
    np.testing.assert_equal(*patterns)
    assert read_record(further / "result.json").budget["estimation"] == 0


def test_in_bf16_masks_are_folded_into_the_same_rounded_weights_when_a_run_comes_back(
    run_tiny: Run, tmp_path: Path
) -> None:
    """Training folds them into weights that are bf16 already; a restored backbone is rounded after it was pruned."""
    words = [*THREE, "protocol.precision=bf16", *checkpoint("bert_base_cased", tmp_path / "encoder")]
    run = done(run_tiny(*words))
    again = done(run_tiny(*words, f"init_from={run}", "task.train=null", "task.test=[]", "seed=5"))
    np.testing.assert_array_equal(written(again), written(run))


def test_a_scope_limits_what_is_pruned(run_tiny: Run, tiny: Tiny) -> None:
    run = done(run_tiny(*THREE, "scope.layers=[1]", "protocol.keep_prefix=true"))
    assert {name.split(".")[3] for name in bits(Delta.load(run / DELTA_FILE).tensors, "kept")} == {"1"}
    facts = assemble(tiny(*THREE, "scope.kinds=[intermediate,output]"))[1].facts()
    assert [name for name in facts["units"] if "attention" in name] == []
    assert count_cell(tiny(*THREE, "scope.kinds=[query]", "method.prune_modules=0.5")).backbone == L * 2 * D * 8


@pytest.mark.parametrize("budget", [3000, 20_000])
def test_a_budget_is_what_is_left_at_most(budget: int, tiny: Tiny) -> None:
    cell = tiny(*THREE, f"budget={budget}")
    least, most = kept_bounds(cell)
    assert 0 < least < most <= budget < count_cell(cell).backbone
    with pytest.raises(ConfigError, match=r"LightPEFT here needs at least .* \(rank 1\)"):
        count_cell(tiny(*THREE, "budget=10"))


def test_entries_by_closed_form() -> None:
    for model, d, layers, heads in (("minilm_l6", 384, 6, 12), ("bert_large_cased", 1024, 24, 16)):
        f = 4 * d
        counts = count_cell(compose.cell_from([f"model={model}", "method=light_peft"]))
        assert counts.backbone == 8 * layers * (8 * d + 2 * (d + f)) + layers * (heads + f)
        sizes = (d + (heads - round(heads / 3)) * d // heads) * 4 + 2 * (
            d + (layers * f - round(layers * f / 3)) / layers
        )
        assert counts.kept == round(sizes / 6 * 12 * layers / 2)


FORGED: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "all heads": lambda t: t.update({f"{HEAD}.kept": torch.tensor([0b11000000], dtype=torch.uint8)}),
    "no neurons": lambda t: t.update({f"{FFN}.kept": torch.zeros(F // 8, dtype=torch.uint8)}),
    "other bits": lambda t: t.update({f"{FFN}.kept": torch.zeros(3, dtype=torch.uint8)}),
    "no mask": lambda t: t.pop(f"{FFN}.mask"),
    "longer mask": lambda t: t.update({f"{FFN}.mask": torch.ones(F)}),
    "mask of integers": lambda t: t.update({f"{FFN}.mask": t[f"{FFN}.mask"].long()}),
    "all ranks": lambda t: t.update({f"{FFN}.ranks": torch.tensor([255], dtype=torch.uint8)}),
    "no term": lambda t: t.pop(min(name for name in t if name.endswith("lora_A"))),
    "a term too much": lambda t: t.update({f"{HEAD}.other": torch.zeros(1)}),
    "wide term": lambda t: t.update({min(n for n in t if n.endswith("lora_A")): torch.zeros(8, 3 * D)}),
}  # fmt: skip
HEAD, FFN = "bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"


def test_a_forged_pattern_is_refused_in_a_line(tiny: Tiny) -> None:
    tuner, fresh = attached(tiny)[1], attached(tiny)[1]
    estimated(tuner)
    tuner.load_delta(good := dict(tuner.delta()))
    for forge in FORGED.values():
        tensors = dict(good)
        forge(tensors)
        for other in (tuner, fresh):
            with pytest.raises(DataError, match="the delta does not fit") as caught:
                other.load_delta(tensors)
            assert len(str(caught.value)) < 200


def test_another_pattern_than_the_one_that_was_pruned_is_refused(tiny: Tiny) -> None:
    one, other = attached(tiny)[1], attached(tiny)[1]
    with torch.no_grad():
        other.trainables()[f"{HEAD}.mask"].neg_()
    for tuner in (one, other):
        estimated(tuner)
    with pytest.raises(DataError, match="pruned otherwise"):
        one.load_delta(other.delta())


def test_the_command_says_that_the_folder_holds_zeros(
    run_tiny: Run, tmp_path: Path, command: Callable[..., Said]
) -> None:
    run, folder = done(run_tiny(*THREE)), str(tmp_path / "plain")
    code, out, err = command("apply", str(run), "--output", folder)
    assert (code, out.strip()) == (0, folder)
    assert "zeros" in err.splitlines()[-1]
    with pytest.warns(UserWarning, match="zeros"):
        peftbench.apply(run, tmp_path / "again")
