"""Every row of the matrix goes through the same checks on a two-layer model."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from matrix import EMBEDDINGS, EVERY, GOLDEN, LAYER, OWN, ROWS, D, F, L, Row
from support import assemble, bridged, losses, plain, values

from peftbench.backbone.model import load_model
from peftbench.config.spec import Cell
from peftbench.config.validate import classes_of
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import DELTA_FILE
from peftbench.runner import deltas
from peftbench.runner.counts import entries
from peftbench.runner.delta import Delta
from peftbench.runner.recording import delta_facts
from peftbench.runner.run import Outcome
from peftbench.sparse.scores import SCORES, Score
from peftbench.training.trainer import Trainer

matrix = pytest.mark.parametrize("row", EVERY.values(), ids=EVERY)


def dev_logits(trainer: Trainer) -> np.ndarray:
    return trainer.evaluator.predict(trainer.scored["dev"])


@matrix
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_exactly_the_chosen_entries_change(tiny: Callable[..., Cell], row: Row, precision: str) -> None:
    cell = tiny(*row.overrides, f"protocol.precision={precision}", "protocol.weight_decay=0.1", "protocol.lr=0.01")
    model, tuner, trainer = assemble(cell)
    before = values(model)
    trainer.run()
    after = values(model)
    original = [name for name, _ in load_model(cell.model, 2, 0)[0].backbone()]
    for name in original:
        same = torch.equal(before[name], after[name])
        if not row.trains(name):
            assert same, f"{name} is frozen and yet changed"
        elif row.every and "word_embeddings" not in name and "position_embeddings" not in name:
            assert not same, f"{name} trains and yet did not change"
    for name, parameter in tuner.trainables().items():
        assert parameter.dtype == torch.float32, name
    for name, _ in model.head():
        assert not torch.equal(before[name], after[name]), f"the head's {name} did not train"


@matrix
def test_count_is_the_closed_form(tiny: Callable[..., Cell], row: Row) -> None:
    model, tuner, _ = assemble(tiny(*row.overrides))
    assert sum(p.numel() for p in tuner.trainables().values()) == row.entries
    original = {name for name, _ in load_model(tiny().model, 2, 0)[0].backbone()}
    added = sum(p.numel() for name, p in model.backbone() if plain(name) not in original)
    assert entries(model) - added == EMBEDDINGS + L * LAYER + D * D + D + 2 * D + 2


@matrix
def test_delta_round_trip_and_merge_keep_the_logits(tiny: Callable[..., Cell], row: Row, tmp_path: Path) -> None:
    cell = tiny(*row.overrides, "protocol.precision=fp32", "protocol.lr=0.01")
    model, tuner, trainer = assemble(cell)
    trainer.run()
    expected = dev_logits(trainer)

    delta = deltas.learned(delta_facts(cell, model), model, tuner)
    delta.save(tmp_path / DELTA_FILE)
    fresh, _ = load_model(cell.model, 2, seed=99)
    restored = deltas.restore(Delta.load(tmp_path / DELTA_FILE), fresh, known=classes_of(cell.method))
    other = Trainer(fresh, restored, cell.protocol, cell.task, None, trainer.scored, "accuracy", cell.seed)
    np.testing.assert_array_equal(dev_logits(other), expected)

    if not row.merges:
        with pytest.raises(ConfigError, match="cannot be merged"):
            restored.merge()
        return
    restored.merge()
    np.testing.assert_allclose(dev_logits(other), expected, rtol=1e-5, atol=1e-6)
    plain = {name for name, _ in load_model(cell.model, 2, 0)[0].module.named_parameters()}
    assert {name for name, _ in fresh.module.named_parameters()} == plain


@pytest.mark.parametrize("name", EVERY)
def test_stored_bytes_are_the_trained_entries(row_run: Callable[[str], Outcome], name: str) -> None:
    row, outcome = EVERY[name], row_run(name)
    counts = outcome.record.counts
    assert counts is not None
    own = row.bytes_per_entry * row.entries if row.stored is None else row.stored
    assert counts.stored_bytes == own + 4 * (2 * D + 2)
    size = (outcome.path.parent / DELTA_FILE).stat().st_size
    assert 0 < size - counts.stored_bytes < 20_000


@pytest.mark.parametrize("name", EVERY)
def test_equal_seeds_give_equal_records_and_others_do_not(
    run_tiny: Callable[..., Outcome], row_run: Callable[[str], Outcome], name: str
) -> None:
    first = stripped(row_run(name))
    second, other = (stripped(run_tiny(*EVERY[name].overrides, f"seed={seed}")) for seed in (0, 2))
    assert first == second
    assert first["losses"] != other["losses"]
    assert first["hashes"]["delta"] != other["hashes"]["delta"]


def stripped(outcome: Outcome) -> dict[str, object]:
    """A record without what is measured, and without the folders that differ on purpose."""
    from peftbench.record import MEASURED

    record = json.loads(outcome.record.as_json())
    for key in (*MEASURED, "overrides", "sha256"):
        del record[key]
    for key in ("outputs", "cache"):
        del record["config"][key]
    record["losses"] = losses(outcome.path.parent)
    return record


@pytest.mark.parametrize("name", ROWS)
def test_losses_follow_the_recorded_series(run_tiny: Callable[..., Outcome], name: str) -> None:
    recorded: Mapping[str, list[float]] = json.loads(GOLDEN.read_text())
    series = losses(run_tiny(*ROWS[name].overrides, "protocol.precision=fp32").path.parent)
    np.testing.assert_allclose(series, recorded[name], rtol=2e-4)


def test_the_matrix_has_every_method() -> None:
    from peftbench.config.compose import words

    tested = {override.removeprefix("method=") for row in ROWS.values() for override in row.overrides[:1]}
    variants = {word for word in words("method") if word.startswith("spafit")}  # of one yaml; counted in test_counts
    assert tested | variants | set(bridged()) == set(words("method"))


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_bf16_follows_fp32(method: str, run_tiny: Callable[..., Outcome], tmp_path: Path) -> None:
    """Also where embeddings are frozen, and what layers pass on is bf16."""

    def series(*words: str) -> np.ndarray:
        method_words = (f"method={method}", "protocol.lr=1e-2", *words, f"outputs={tmp_path / str(len(words))}")
        return np.array(losses(run_tiny(*method_words).path.parent))

    low, high = series(), series("protocol.precision=fp32")
    untrained = series("protocol.precision=fp32", "protocol.lr=1e-12")
    np.testing.assert_allclose(low, high, rtol=3e-3)
    assert not np.array_equal(low, high), "bf16 is another precision"
    assert np.abs(untrained / high - 1).max() > 3e-2, "the steps matter far more than the precision"


def test_frozen_matrices_are_resident_in_bf16(tiny: Callable[..., Cell]) -> None:
    model, _, _ = assemble(tiny("method=bitfit"))
    kinds = {name: p.dtype for name, p in model.backbone()}
    assert all(kinds[name] == torch.bfloat16 for name in kinds if name.endswith("dense.weight"))
    assert all(kinds[name] == torch.float32 for name in kinds if name.endswith("bias") or "LayerNorm" in name)


@pytest.mark.parametrize(("method", "passed_on"), [("full", torch.float32), ("lora", torch.bfloat16)])
def test_layers_pass_on_bf16_where_embeddings_are_frozen(
    method: str, passed_on: torch.dtype, tiny: Callable[..., Cell]
) -> None:
    model, _, trainer = assemble(tiny(f"method={method}"))
    found: list[torch.dtype] = []
    layers = model.module.get_submodule(model.layout.layers)
    for layer in layers.children():
        layer.register_forward_hook(lambda _, __, output: found.append(output.dtype))
    dev_logits(trainer)
    assert set(found) == {passed_on}


def test_accumulated_parts_equal_one_batch(run_tiny: Callable[..., Outcome], tmp_path: Path) -> None:
    common = ("method=lora", "method.dropout=0", "protocol.precision=fp32", "protocol.batch_size=12")
    common += ("+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0")
    whole = losses(run_tiny(*common, f"outputs={tmp_path / 'a'}").path.parent)
    parts = losses(run_tiny(*common, "protocol.accumulation=5", f"outputs={tmp_path / 'b'}").path.parent)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_a_method_from_another_package(
    tmp_path: Path, run_tiny: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One Python file and one yaml, outside this repository, word for word as docs/adding.md has them."""
    write_as_documented(tmp_path, "norms_only")
    monkeypatch.syspath_prepend(str(tmp_path))
    record = run_tiny(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "method=norms_only").record
    assert record.status == "done"
    assert record.counts is not None
    assert record.counts.backbone == 4 * L * D + 2 * D


def test_a_users_own_method_with_state_is_short_and_does_what_it_says(
    run_tiny: Callable[..., Outcome], tiny: Callable[..., Cell], row_run: Callable[[str], Outcome]
) -> None:
    """The rows' checks are run for it above, and it is stopped and taken up again in tests/test_resume.py."""
    assert len((OWN / "shrunk.py").read_text(encoding="utf-8").splitlines()) < 100
    assert 0 < row_run("own").record.budget["zeros"] < L * 4 * 2 * D, "some entries of V are zero, and not all"
    words, before = EVERY["own"].overrides, losses(row_run("own").path.parent)
    later = losses(run_tiny(*words, "method.start=0.9").path.parent)
    assert (later[:4], later[4:] == before[4:]) == (before[:4], False)
    assert before != losses(run_tiny(*words, "method.weight=0").path.parent)
    model, tuner, trainer = assemble(tiny(*words, "budget=6000", "protocol.precision=fp32", "protocol.lr=0.01"))
    assert sum(p.numel() for p in tuner.trainables().values()) == 3 * L * (3 * D + F)  # a budget turns the rank
    plain = values(model)
    trainer.run()
    changes = dict(tuner.update(plain))
    tuner.merge()
    merged = values(model)
    changed = {name for name, p in model.backbone() if not torch.equal(plain[name], p)}
    assert changed == set(changes)
    for name, change in changes.items():
        torch.testing.assert_close(merged[name] - plain[name], change, rtol=1e-4, atol=1e-6)


def write_as_documented(folder: Path, name: str) -> None:
    """Write the module and the yaml of a method that docs/adding.md shows."""
    page = (Path(__file__).parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")
    code = re.search(rf"```python\n# {name}.py\n(.*?)```", page, re.S)
    config = re.search(rf"```yaml\n# conf/method/{name}.yaml\n(.*?)```", page, re.S)
    assert code is not None
    assert config is not None
    (folder / f"{name}.py").write_text(code[1])
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / f"{name}.yaml").write_text(config[1])


def test_a_score_from_another_package(
    tmp_path: Path, tiny: Callable[..., Cell], run_tiny: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One function, and a yaml that names it, as docs/adding.md has them; at the start, and step by step."""
    write_as_documented(tmp_path, "taylor")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "method=taylor", "budget=300", "method.batches=1"]
    model, tuner, trainer = assemble(tiny(*words, "protocol.precision=fp32"))
    before = values(model)
    seen: list[dict[str, torch.Tensor]] = []
    rank = SCORES["taylor"].rank

    def spy(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
        seen.append({"gradient": gradient.clone(), "scores": rank(gradient, weight, eps, exp)})
        return seen[-1]["scores"]

    monkeypatch.setitem(SCORES, "taylor", Score(spy, "mean"))
    trainer.run()
    assert any(item["gradient"].any() for item in seen)
    scores = torch.cat([item["scores"].reshape(-1) for item in seen])
    least = scores.topk(300).values[-1]
    changed = sum(int((before[name] != p).sum()) for name, p in model.backbone())
    assert 0 < changed <= 300
    names = list(tuner.touched())
    for name, item in zip(names, seen, strict=True):
        assert bool((item["scores"][before[name] != dict(model.backbone())[name]] >= least).all())
    growing = run_tiny(*words, "method.when=steps").record
    assert growing.status == "done"
    assert growing.budget["chosen"] == 300
    with pytest.raises(ConfigError, match=r"method\.score=tailor: .*did you mean taylor"):
        tiny(*words, "method.score=tailor")


@pytest.mark.parametrize(("method", "sign"), [("pafi", -1), ("largest", 1)])
def test_entries_of_one_end_of_the_magnitudes_train(method: str, sign: int, tiny: Callable[..., Cell]) -> None:
    model, tuner, trainer = assemble(tiny(f"method={method}", "budget=300", "protocol.precision=fp32"))
    before = values(model)
    trainer.run()
    names = list(tuner.touched())
    after = dict(model.backbone())
    scores = torch.cat([sign * before[name].abs().reshape(-1) for name in names])
    moved = torch.cat([(before[name] != after[name]).reshape(-1) for name in names])
    assert 250 < moved.sum() <= 300
    assert scores[moved].min() >= scores.topk(300).values[-1]


def test_a_delta_of_another_backbone_is_refused(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    cell = tiny("method=bitfit")
    model, tuner, _ = assemble(cell)
    deltas.learned(delta_facts(cell, model), model, tuner).save(tmp_path / DELTA_FILE)
    other, _ = load_model(tiny("model=bert_mini", "model.weights=random").model, 2, 0)
    with pytest.raises(Exception, match="learned on bert_tiny"):
        deltas.restore(Delta.load(tmp_path / DELTA_FILE), other)
    (tmp_path / DELTA_FILE).write_bytes(b"not a delta")
    with pytest.raises(Exception, match="not a readable safetensors"):
        Delta.load(tmp_path / DELTA_FILE)


def test_layers_that_open_one_after_another_do_so_inside_strata_too(tiny: Callable[..., Cell]) -> None:
    """Nothing trains before its turn."""
    part = "{_target_: peftbench.methods.gradual.GradualUnfreeze, every: 3}"
    top = ("method.strata.frozen.last=1", "method.strata.biases.last=1")  # the lowest stratum is all of it
    model, _, trainer = assemble(tiny("method=spafit", *top, f"+method.strata.frozen.methods.opens={part}"))
    assert [p.requires_grad for n, p in model.backbone() if ".layer.0." in n] == [False] * 16
    before = values(model)
    trainer.run()
    changed = {n for n, p in model.backbone() if not torch.equal(before[n], p)}
    assert any(".layer.0." in n for n in changed), "the lower layer joined after three steps"
