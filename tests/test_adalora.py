"""AdaLoRA against its closed forms and against peft's: schedule, penalty, masks, and what is left wherever it ends."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import TINY, assemble, values
from torch import nn

from peftbench import papers
from peftbench.backbone.model import Model, build, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import DELTA_FILE
from peftbench.methods.adalora import AdaLoRA, AdaLoRALinear, AdaLoRATuner
from peftbench.methods.base import Training, Tuner, copy_into
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell
from peftbench.runner.delta import Delta
from peftbench.runner.run import Outcome
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
Tiny = Callable[..., Cell]
FACTS = yaml.safe_load((Path(__file__).parent / "data" / "counts.yaml").read_text(encoding="utf-8"))
# two layers of six maps with rank 6: 72 triplets, of which 48 stay
SIXTY = [
    "method=adalora", "method.rank=6", "method.target_rank=4", "method.initial=5", "method.final=20", "method.every=3",
    "protocol.max_steps=60", "protocol.precision=fp32", "protocol.lr=0.01", "protocol.schedule=constant",
    "protocol.warmup=0", "+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0",
]  # fmt: skip
BUDGET = {5: 72, 6: 70, 9: 64, 10: 63, 20: 52, 30: 48, 40: 48, 59: 48}
TRAINING = Training(60, lambda count: iter(()), lambda tensor: tensor)


def attached(tiny: Tiny, *overrides: str) -> tuple[Model, AdaLoRATuner]:
    """The small model with AdaLoRA on it, and its tuner."""
    model, tuner, _ = assemble(tiny(*SIXTY, *overrides))
    assert isinstance(tuner, AdaLoRATuner)
    return model, tuner


def alive(tuner: AdaLoRATuner) -> dict[str, list[bool]]:
    """Which E are not zero, by name."""
    return {n: (p != 0).flatten().tolist() for n, p in tuner.trainables().items() if n.endswith("lora_E")}


def total(pattern: Mapping[str, list[bool]]) -> int:
    return sum(sum(row) for row in pattern.values())


def triplets(delta: Mapping[str, torch.Tensor]) -> int:
    return sum(len(tensor) for name, tensor in delta.items() if name.endswith("lora_E"))


def gradients(tuner: AdaLoRATuner, seed: int, dead: str = "nothing", ties: bool = False) -> None:
    """Give every trainable a gradient that depends on its name; none to those whose name contains `dead`."""
    for name, p in tuner.trainables().items():
        random = torch.Generator().manual_seed(sum(map(ord, name)) * 1000 + seed)
        p.grad = torch.ones_like(p) if ties else torch.randn(p.shape, generator=random)
        if dead in name:
            p.grad = None


def test_the_budget_falls_by_the_cube() -> None:
    schedule = AdaLoRA(initial=5, final=20, every=3).schedule(60, 72, 48)
    assert {step: schedule.budget(step) for step in BUDGET} == BUDGET
    assert [step for step in range(42) if schedule.masks(step)] == [*range(6, 40, 3), 40, 41]


@pytest.mark.parametrize(
    ("width", "rank", "norm"), [(768, 12, 2.404), (3072, 12, 0.840), (768, 4, 1.386), (1024, 12, 2.051)]
)
def test_the_penalty_at_the_start_is_the_mean_of_unsquared_norms(width: int, rank: int, norm: float) -> None:
    spec = build(compose.cell_from(["model=bert_tiny"]).model, 2, device="meta")
    torch.manual_seed(0)
    method = AdaLoRA(rank=rank)
    maps = {str(i): AdaLoRALinear(nn.Linear(width, width), rank, 16, nn.Identity()) for i in range(4)}
    tuner = AdaLoRATuner(spec, maps, method)
    penalty = tuner.penalty()
    assert penalty is not None
    assert penalty.item() / 0.1 == pytest.approx(norm, abs=0.02)
    own = [
        torch.linalg.norm(f @ f.T - torch.eye(rank)).item()
        for layer in tuner.layers.values()
        for f in (layer.lora_A, layer.lora_B.T)
    ]
    assert penalty.item() == pytest.approx(0.1 * np.mean(own), rel=1e-5)
    penalty.backward()
    for layer in tuner.layers.values():  # in closed form
        factor, grad = layer.lora_A.detach(), layer.lora_A.grad
        gram = factor @ factor.T - torch.eye(rank)
        torch.testing.assert_close(grad, 0.1 / len(own) * 2 * gram @ factor / gram.norm(), rtol=1e-4, atol=1e-7)
        assert layer.lora_E.grad is None


def test_the_penalty_of_a_layer_is_two_and_not_sixty(tiny: Tiny) -> None:
    """BERT-base's six maps; the paper's formula as printed, squares summed, would give 59.2 a layer."""
    model, _ = attached(tiny)
    torch.manual_seed(0)
    sides = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
    maps = {str(i): AdaLoRALinear(nn.Linear(*side), 12, 16, nn.Identity()) for i, side in enumerate(sides)}
    penalty = AdaLoRATuner(model, maps, AdaLoRA(rank=12, orthogonality=1)).penalty()
    assert penalty is not None
    assert penalty.item() == pytest.approx(2.143, abs=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_start_is_the_backbone_bit_for_bit(precision: str, tiny: Tiny) -> None:
    logits = []
    for method in ("adalora", "head"):
        _, _, trainer = assemble(tiny(f"method={method}", f"protocol.precision={precision}"))
        logits.append(trainer.evaluator.predict(trainer.scored["dev"]))
    np.testing.assert_array_equal(*logits)


def test_every_step_leaves_as_many_triplets_as_the_schedule_says(tiny: Tiny) -> None:
    """And not only at the end: after a mask b(t), between masks whatever grows again, at last b_T for ever."""
    _, tuner, trainer = assemble(tiny(*SIXTY))
    assert isinstance(tuner, AdaLoRATuner)
    frozen = {name: p for name, p in values(trainer.model).items() if name not in tuner.trainables()}
    trainer.begin(total=60)
    schedule = AdaLoRA(initial=5, final=20, every=3).schedule(60, 72, 48)
    penalties = []
    for step in range(60):
        before = {name: p.detach().clone() for name, p in tuner.trainables().items()}
        batches = trainer.order(step // 6)
        trainer.step(step, batches[step % 6])
        living = alive(tuner)
        if schedule.masks(step):
            assert total(living) == schedule.budget(step), step
        assert triplets(tuner.delta()) == 48
        if step == 10:
            assert total(living) == 72, "what was masked grows again until the next mask"
        if step == 50:  # A and B of a pruned triplet go on
            name, row = next((n, row) for n, row in living.items() if not all(row))
            factor = name.replace("lora_E", "lora_A")
            assert not torch.equal(before[factor][row.index(False)], tuner.trainables()[factor][row.index(False)])
        penalty = tuner.penalty()
        assert penalty is not None
        penalties.append(penalty.item())
    assert penalties[-1] < 0.8 * penalties[0]
    assert total(alive(tuner)) == 48
    for name, p in trainer.model.backbone():
        if name in frozen:
            assert torch.equal(frozen[name], p), name


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_sixty_steps_are_those_of_peft(dtype: torch.dtype, close: float, tiny: Tiny) -> None:
    """On copied weights: the same loss series, and the same E alive after every step.

    peft masks step T - t_f too; the released code does not, unless a mask falls on it.
    """
    peft = pytest.importorskip("peft", reason="peft is an extra that is not installed")
    model, tuner, trainer = assemble(tiny(*SIXTY))
    assert isinstance(tuner, AdaLoRATuner)
    theirs = copy.deepcopy(load_model(tiny(*SIXTY).model, 2, 0)[0].module)
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(
        init_r=6, target_r=4, lora_alpha=16, lora_dropout=0.0, tinit=5, tfinal=20, deltaT=3, beta1=0.85, beta2=0.85,
        orth_reg_weight=0.1, total_step=60, target_modules=list(tuner.wrapped),
    )  # fmt: skip
    wrapped = peft.get_peft_model(theirs, config)
    theirs.to(dtype)
    model.module.to(dtype)
    for name, layer in tuner.wrapped.items():
        other = theirs.get_submodule(name)
        for factor in ("lora_A", "lora_B"):
            getattr(layer, factor).data.copy_(getattr(other, factor)["default"])
    for (name, p), (_, q) in zip(model.head(), theirs.classifier.named_parameters(), strict=True):
        q.requires_grad_(True)
        assert torch.equal(p, q), name

    def stepped(module: torch.nn.Module) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        trained = [p for p in module.parameters() if p.requires_grad]
        return trained, torch.optim.AdamW(trained, lr=0.01, weight_decay=0.01)

    (ours_p, ours), (theirs_p, others) = stepped(model.module), stepped(theirs)
    tuner.prepare(TRAINING)
    series: list[tuple[float, float]] = []
    for step in range(60):
        batch = trainer.forward.batch(trainer.train, trainer.order(step // 6)[step % 6])  # type: ignore[arg-type]
        model.module.train()
        theirs.train()
        penalty = tuner.penalty()
        assert penalty is not None
        loss = torch.nn.functional.cross_entropy(model.module(**batch.inputs).logits, batch.labels) + penalty
        loss.backward()
        their_loss = wrapped.base_model(**batch.inputs, labels=batch.labels).loss
        their_loss.backward()
        series.append((loss.item(), their_loss.item()))
        for parameters, optimizer in ((ours_p, ours), (theirs_p, others)):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        tuner.after_step(step)
        wrapped.base_model.update_and_allocate(step)
        ours.zero_grad()
        others.zero_grad()
        kept = {n: (theirs.get_submodule(n).lora_E["default"] != 0).flatten().tolist() for n in tuner.wrapped}
        assert kept == {n.removesuffix(".lora_E"): row for n, row in alive(tuner).items()}, step
    np.testing.assert_allclose(*np.array(series).T, rtol=0, atol=close)
    assert total(alive(tuner)) == 48
    assert len({sum(row) for row in kept.values()}) > 1, "the maps share unequally, or nothing was compared"


@pytest.mark.parametrize("case", ["ties", "dead", "all dead"])
def test_exactly_the_target_is_left_under_ties_and_with_dead_maps(case: str, tiny: Tiny) -> None:
    _, tuner = attached(tiny, "method.orthogonality=0")
    assert tuner.penalty() is None
    tuner.prepare(TRAINING)
    dead = {"ties": "nothing", "dead": "layer.0.", "all dead": "lora_"}[case]
    for step in range(60):
        gradients(tuner, step, dead, ties=case == "ties")
        with torch.no_grad():
            for name, p in tuner.trainables().items():
                if case == "ties":
                    p.fill_(1.0)
                elif name.endswith("lora_E"):
                    p.fill_(0.5)
        tuner.after_step(step)
        if step >= 40:
            assert total(alive(tuner)) == 48
    if case == "dead":
        assert sum(sum(row) for n, row in alive(tuner).items() if "layer.1." in n) == 36
    assert triplets(tuner.delta()) == 48


def test_the_order_of_the_maps_does_not_matter(tiny: Tiny) -> None:
    patterns = []
    for backwards in (False, True):
        model, tuner = attached(tiny)
        if backwards:
            tuner = AdaLoRATuner(
                model,
                dict(reversed(tuner.layers.items())),
                AdaLoRA(rank=6, target_rank=4, initial=5, final=20, every=3),
            )
        tuner.prepare(TRAINING)
        for step in range(45):
            gradients(tuner, step)
            with torch.no_grad():
                for name, p in tuner.trainables().items():
                    p.copy_(p.grad if name.endswith("lora_E") else p)  # type: ignore[arg-type]
            tuner.after_step(step)
        patterns.append(alive(tuner))
    assert patterns[0] == patterns[1]
    assert total(patterns[0]) == 48


def test_a_state_carries_the_importance_that_decides_what_is_pruned(tiny: Tiny) -> None:
    """Taken up in the middle of the fall: the same triplets with it, others without."""

    def go_on(tuner: AdaLoRATuner, start: int, end: int) -> AdaLoRATuner:
        tuner.prepare(TRAINING)
        for step in range(start, end):
            gradients(tuner, step)
            with torch.no_grad():
                for name, p in tuner.trainables().items():
                    if name.endswith("lora_E"):
                        p.copy_(p.grad)  # type: ignore[arg-type]
            tuner.after_step(step)
        return tuner

    half = go_on(attached(tiny)[1], 0, 20)
    state, parameters = half.state_dict(), {n: p.detach().clone() for n, p in half.trainables().items()}
    state = copy.deepcopy(state)
    patterns = [alive(go_on(half, 20, 45))]
    for taken in ((state,), ({**state, "sensitivity": [], "uncertainty": []},)):
        _, other = attached(tiny)
        copy_into(other.trainables(), parameters)
        other.load_state_dict(*taken)
        patterns.append(alive(go_on(other, 20, 45)))
    assert patterns[0] == patterns[1]
    assert patterns[0] != patterns[2]


def test_pruning_by_hand_takes_exactly_those_terms_away(tiny: Tiny) -> None:
    """The scale keeps the initial rank; what is at rest is what is stored."""
    _, tuner = attached(tiny)
    name, layer = next(iter(tuner.layers.items()))
    with torch.no_grad():
        layer.lora_E.normal_()
    whole, x = dict(tuner.delta()), torch.randn(5, 128)
    before = layer.eval()(x)
    gone = [0, 2, 5]
    s = 16 / (6 + 1e-5)
    terms = s * (layer.lora_B[:, gone] @ (layer.lora_A[gone] * layer.lora_E[gone])) @ x.T
    rest = [1, 3, 4]
    cut = {f"{name}.lora_{f}": whole[f"{name}.lora_{f}"][rest] for f in "AE"}
    cut |= {f"{name}.lora_B": whole[f"{name}.lora_B"][:, rest]}
    cut |= {f"{name}.kept": torch.tensor([0b01011000], dtype=torch.uint8)}
    tuner.load_delta({**whole, **cut})
    torch.testing.assert_close(layer(x), before - terms.T)
    torch.testing.assert_close(layer.merged()(x), before - terms.T, atol=1e-5, rtol=1e-4)
    for broken in (
        {f"{name}.kept": torch.tensor([0b01011100], dtype=torch.uint8)},
        {f"{name}.kept": torch.zeros(6)},
        {f"{name}.lora_A": whole[f"{name}.lora_A"]},
        {"other": torch.zeros(1)},
    ):
        with pytest.raises(DataError, match="the delta does not fit"):
            tuner.load_delta({**whole, **cut, **broken})


@pytest.mark.parametrize(
    "words",
    [
        ("protocol.patience=1", "protocol.evaluate_every=1"),
        ("protocol.selection=best_dev", "protocol.evaluate_every=1", "protocol.lr=0.02"),
        ("method.final=0", "method.every=4"),
        ("method.final=3", "method.every=4"),
    ],
    ids=["early stopping", "best dev", "no final phase", "final phase"],
)
def test_what_is_scored_and_stored_has_exactly_the_target_wherever_training_ends(
    words: tuple[str, ...], run_tiny: Run
) -> None:
    overrides = ("method=adalora", "method.rank=6", "method.target_rank=4", "method.initial=0", "protocol.max_steps=12")
    outcome = run_tiny(*overrides, "protocol.precision=fp32", "protocol.lr=0.02", *words)
    record, run = outcome.record, outcome.path.parent
    assert outcome.error is None, outcome.error
    stored = Delta.load(run / DELTA_FILE).tensors
    assert triplets(stored) == 48
    assert record.budget["triplets"] == {"initial": 72, "target": 48, "kept": 48}
    assert record.counts is not None
    own = {n: t for n, t in stored.items() if "lora_" in n}
    assert record.counts.kept == sum(t.numel() for t in own.values())
    assert record.counts.backbone == 6 * (2 * (4 * 257 + 2 * 641))
    if "protocol.patience=1" in words:
        assert record.metrics.evaluations[-1].step < 12
    else:
        assert record.metrics.evaluations[-1].step == 12
    model, tuner, _ = deltas.reload(run)
    again = assemble_scored(model, tuner)
    lines = [line.split("\t") for line in (run / "predictions" / "dev.tsv").read_text().splitlines()[1:]]
    np.testing.assert_allclose(again, np.array([line[-2:] for line in lines], dtype=float), atol=2e-5)


def assemble_scored(model: Model, tuner: Tuner) -> np.ndarray:
    """The dev logits of a reloaded run, in the order of its rows."""
    cell = compose.cell_from([*TINY, "method=adalora", "protocol.precision=fp32"])
    scored = assemble(cell)[2].scored
    trainer = Trainer(model, tuner, cell.protocol, cell.task, None, scored, "accuracy", 0)
    return trainer.evaluator.predict(scored["dev"])


SCRIPTS = {  # steps at batch 32, then t_i, t_f and the steps between two masks of the released scripts
    "mnli": (85_904, 8000, 50_000, 100), "rte": (3900, 600, 1800, 1), "qnli": (16_370, 2000, 8000, 100),
    "mrpc": (3450, 600, 1800, 1), "qqp": (56_855, 8000, 25_000, 100), "sst2": (50_520, 6000, 22_000, 100),
    "cola": (6700, 800, 3500, 10), "stsb": (4500, 800, 2000, 10),
}  # fmt: skip


def test_a_papers_schedule_is_kept_as_shares_of_the_steps() -> None:
    tasks = papers.load("adalora_deberta_v3_base").tasks
    for task, (steps, *expected) in SCRIPTS.items():
        keys = {key: tasks[task][f"method.{key}"] for key in ("initial", "final", "every")}
        schedule = AdaLoRA(**keys).schedule(steps, 864, 576)
        assert [schedule.initial, schedule.final, schedule.every] == expected, task
    default = AdaLoRA().schedule(10_000, 864, 576)
    assert sum(default.masks(step) for step in range(5501)) == 200  # the last is final


def test_a_budget_is_what_trains(tiny: Tiny) -> None:
    every = 2 * (4 * (2 * 128 + 1) + 2 * (128 + 512 + 1))  # of rank 1
    counts = count_cell(tiny("method=adalora", f"budget={9 * every + 5}"))
    assert (counts.backbone, counts.kept) == (9 * every, 6 * every)
    assert count_cell(tiny("method=adalora", f"budget={9 * every}", "method.target_rank=3")).kept == 3 * every


def test_a_target_of_the_initial_rank_is_a_lora_with_a_penalty(run_tiny: Run) -> None:
    words = ("method=adalora", "method.rank=4", "method.initial=1", "method.final=2", "protocol.lr=0.01")
    outcome = run_tiny(*words, "method.target_rank=4")
    assert outcome.error is None, outcome.error
    assert outcome.record.counts is not None
    assert outcome.record.counts.kept == outcome.record.counts.backbone
    lines = (outcome.path.parent / "metrics.jsonl").read_text()
    assert '"penalty"' in lines
    assert "nan" not in lines.lower()


def test_accumulated_parts_leave_the_same_triplets(run_tiny: Run, tmp_path: Path) -> None:
    words = [word for word in SIXTY if "max_steps" not in word and "initial" not in word and "final" not in word]
    patterns = []
    for parts in (1, 3):
        outcome = run_tiny(
            *words,
            "method.initial=1",
            "method.final=2",
            f"protocol.accumulation={parts}",
            f"outputs={tmp_path / str(parts)}",
        )
        tensors = Delta.load(outcome.path.parent / DELTA_FILE).tensors
        patterns.append({name: tensor.tolist() for name, tensor in tensors.items() if name.endswith(".kept")})
    assert patterns[0] == patterns[1]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("adalora.AdaLoRA", "AdaLoRA ranks its"),
        ("light_peft.LightPEFT", "LightPEFT prunes"),
        ("peft.Peft, type: adalora", "peft's adalora ranks its"),
        ("peft.Peft, type: lora, config: {init_lora_weights: eva, eva_config: {rho: 1.0}}", "EVA draws its"),
    ],
)
def test_what_ranks_or_draws_its_own_cannot_be_selected_entry_by_entry(where: str, said: str, run_tiny: Run) -> None:
    with pytest.raises(ConfigError, match=rf"method\.inner: {said}"):
        run_tiny("method=id3", "budget=50", f"method.inner={{_target_: peftbench.methods.{where}}}")
