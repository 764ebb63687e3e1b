"""One cell, end to end: the record, selection, divergence, starting from another run."""

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tokens_of

from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data.rows import rows_of
from peftbench.data.sources import SAMPLE
from peftbench.ground.errors import DataError, Diverged
from peftbench.ground.machine import keep_freed_memory
from peftbench.ground.seeds import STREAMS, drawn_from, stream
from peftbench.record import Headline, read_record
from peftbench.runner import deltas, provenance
from peftbench.runner.delta import Delta
from peftbench.runner.run import Outcome, read_rows
from peftbench.training.forward import Forward
from peftbench.training.optimization import lr_factor

Run = Callable[..., Outcome]

KEYS = {
    "cell": {"task", "method", "model", "data", "budget", "seed", "study"},
    "headline": {"name", "value"},
    "metrics": {"selected", "evaluations"},
    "counts": {"backbone", "head", "total", "model", "stored_bytes"},
    "time": {"total_s", "train_s", "eval_s"},
    "memory": {"peak_mb"},
    "throughput": {"tokens_per_s", "padding_share"},
}


def test_the_record_holds_what_was_promised(run_tiny: Run) -> None:
    outcome = run_tiny("seed=4", "study=trial")
    raw = json.loads(outcome.path.read_text())
    assert raw.keys() >= {"status", "fingerprint", "config", "versions", "git", *KEYS}
    for key, inner in KEYS.items():
        assert raw[key].keys() >= inner, key
    assert raw["status"] == "done"
    assert raw["cell"]["seed"] == 4
    assert raw["cell"]["data"] == "sample"
    assert raw["headline"]["value"] == raw["metrics"]["selected"]["metrics"]["accuracy"]
    assert raw["time"]["total_s"] >= raw["time"]["train_s"] + raw["time"]["eval_s"]
    assert raw["memory"]["peak_mb"] > 100
    assert raw["config"]["protocol"]["lr"] == 5e-4
    assert (
        outcome.path == Path(raw["config"]["outputs"]) / compose.cell_from([*raw["overrides"]]).folder / "result.json"
    )
    assert read_record(outcome.path) == outcome.record
    files = {str(path.relative_to(outcome.path.parent)) for path in outcome.path.parent.rglob("*") if path.is_file()}
    assert files == {
        "result.json",
        "delta.safetensors",
        "metrics.jsonl",
        "predictions/dev.tsv",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    }


def test_predictions_give_the_recorded_score(run_tiny: Run) -> None:
    outcome = run_tiny()
    lines = (outcome.path.parent / "predictions" / "dev.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert rows[0] == ["index", "prediction", "label", "negative", "positive"]
    assert np.mean([row[1] == row[2] for row in rows[1:]]) == outcome.record.headline.value
    assert all((float(row[4]) > float(row[3])) == (row[1] == "positive") for row in rows[1:])


def test_a_regression_is_scored_by_correlation(run_tiny: Run) -> None:
    record = run_tiny("task=stsb").record
    assert record.headline.name == "pearson"
    assert record.counts is not None
    assert record.counts.head == 129
    assert {"pearson", "spearman"} == record.metrics.evaluations[-1].metrics.keys()


def test_divergence_ends_the_run_and_keeps_the_record(run_tiny: Run) -> None:
    outcome = run_tiny("method=full", "protocol.lr=1e9", "protocol.clip=null", "protocol.schedule=constant")
    assert isinstance(outcome.error, Diverged)
    record = read_record(outcome.path)
    assert record.status == "diverged"
    assert record.error is not None
    assert "the training loss is" in record.error
    assert not (outcome.path.parent / "delta.safetensors").exists()


def test_a_crash_is_recorded_as_failed(run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.methods.base import ParameterTuner

    def explode(self: ParameterTuner, step: int) -> None:
        if step == 2:
            raise MemoryError("no more room")

    monkeypatch.setattr(ParameterTuner, "after_step", explode)
    outcome = run_tiny("method=bitfit")
    record = read_record(outcome.path)
    assert record.status == "failed"
    assert record.error is not None
    assert "MemoryError: no more room" in record.error


def test_a_run_that_would_learn_nothing_fails(run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Forward.logits
    monkeypatch.setattr(Forward, "logits", lambda self, batch: logits(self, batch).detach())
    record = read_record(run_tiny("method=bitfit").path)
    assert record.status == "failed"
    assert "the run would learn nothing" in (record.error or "")


def test_a_run_that_ends_in_its_first_step_has_no_speed(run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.methods.base import ParameterTuner

    def explode(self: ParameterTuner, step: int) -> None:
        raise MemoryError("no more room")

    monkeypatch.setattr(ParameterTuner, "after_step", explode)
    assert read_record(run_tiny("method=bitfit").path).throughput is None


def test_best_dev_keeps_the_best_evaluation(run_tiny: Run) -> None:
    outcome = run_tiny(
        "task=stsb", "method=full", "protocol.lr=0.001", "protocol.schedule=constant", "protocol.max_steps=24",
        "protocol.evaluate_every=2", "protocol.selection=best_dev",
    )  # fmt: skip
    record = outcome.record
    values = [evaluation.chosen_by for evaluation in record.metrics.evaluations]
    assert len(values) == 12
    assert record.metrics.selected is not None
    assert record.headline.value == max(values)
    assert record.metrics.selected.step == 2 * (values.index(max(values)) + 1)
    assert values[-1] < max(values), "the last is not the best, or this test shows nothing"
    again = predictions_of_delta(outcome)
    assert again == pytest.approx(max(values), abs=0.01)  # that run computed in bf16


def predictions_of_delta(outcome: Outcome) -> float:
    """Headline on dev of the delta that a run left behind."""
    from peftbench.runner import deltas
    from peftbench.training.trainer import Trainer

    cell = compose.cell_from(outcome.record.overrides)
    model, tuner, _ = deltas.reload(outcome.path.parent)
    tokens = tokens_of(cell)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, None, {"dev": tokens["dev"]}, "pearson", 0)
    return trainer.run().evaluations[0].chosen_by


def test_held_out_rows_are_not_trained_on(tiny: Callable[..., Cell], run_tiny: Run) -> None:
    cell = tiny("protocol.selection=held_out", "protocol.held_out=0.25")
    rows, whole = read_rows(rows_of(cell)), read_rows(rows_of(tiny()))
    assert (len(rows["train"]), len(rows["held_out"])) == (36, 12)
    train, held_out = set(rows["train"].texts[0]), set(rows["held_out"].texts[0])
    assert not train & held_out
    assert train | held_out == set(whole["train"].texts[0])
    other_seed = read_rows(rows_of(tiny("protocol.selection=held_out", "protocol.held_out=0.25", "seed=9")))
    assert other_seed["held_out"].sha256 == rows["held_out"].sha256

    record = run_tiny("protocol.selection=held_out", "protocol.evaluate_every=2").record
    for evaluation in record.metrics.evaluations:
        assert evaluation.chosen_by == evaluation.metrics["accuracy_held_out"]
        assert "accuracy" in evaluation.metrics


def test_the_next_cell_of_a_process_has_the_same_rows_and_tokens_until_a_file_changes(
    tiny: Callable[..., Cell], tmp_path: Path
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "glue")
    data = ["data=folder", f"data.path={tmp_path / 'glue'}", "model=minilm_l6"]
    cell, next_cell = tiny(*data, "method=full", "seed=0"), tiny(*data, "method=lora", "seed=1")
    weights = weights_folder(cell.model)
    rows = read_rows(rows_of(cell))
    tokens = tokens_of(cell, rows, weights)
    assert read_rows(rows_of(next_cell)) is rows
    assert tokens_of(next_cell, rows, weights) is tokens

    shorter = tiny(*data, "protocol.max_length=12")
    assert max(tokens_of(shorter, rows, weights)["train"].lengths) == 12 < max(tokens["train"].lengths)
    held_out = read_rows(rows_of(tiny(*data, "protocol.selection=held_out")))
    assert len(held_out["train"]) < len(rows["train"])

    path = tmp_path / "glue" / cell.task.folder.name / cell.task.folder.files["train"]
    head, _, *others = path.read_text().splitlines()
    path.write_text("\n".join([head, *others]) + "\n")
    changed = read_rows(rows_of(cell))
    assert changed["train"].texts[0][:-1] == rows["train"].texts[0][1:]
    assert tokens_of(cell, changed, weights)["train"].lengths[0] == tokens["train"].lengths[1]
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_rows(rows_of(cell))


def test_patience_stops_early(run_tiny: Run) -> None:
    record = run_tiny("method=head", "protocol.lr=1e-9", "protocol.evaluate_every=1", "protocol.patience=2").record
    assert [evaluation.step for evaluation in record.metrics.evaluations] == [1, 2, 3]


def test_epochs_and_steps(run_tiny: Run, tmp_path: Path) -> None:
    record = run_tiny("protocol.max_steps=null", "protocol.epochs=2", f"outputs={tmp_path / 'a'}").record
    assert [(e.step, e.epoch) for e in record.metrics.evaluations] == [(6, 1.0), (12, 2.0)]
    record = run_tiny("protocol.max_steps=9", f"outputs={tmp_path / 'b'}").record
    assert [e.step for e in record.metrics.evaluations] == [6, 9]


def test_training_goes_on_from_another_runs_delta(run_tiny: Run, tmp_path: Path) -> None:
    first = run_tiny("method=lora", "task=rte", f"outputs={tmp_path / 'a'}")
    start = f"init_from={first.path.parent}"
    words = ("method=lora", "label=further", "task=sst2", start)  # what it is called does not count
    same = run_tiny(*words, "protocol.lr=1e-12", f"outputs={tmp_path / 'b'}")
    learned, went_on = (
        Delta.load(first.path.parent / "delta.safetensors"),
        Delta.load(same.path.parent / "delta.safetensors"),
    )
    for name, tensor in learned.tensors.items():
        if not name.startswith("head."):
            np.testing.assert_allclose(tensor, went_on.tensors[name], atol=1e-8)
    other = run_tiny("method=bitfit", "task=sst2", start, f"outputs={tmp_path / 'c'}")
    fresh = run_tiny("method=bitfit", "task=sst2", f"outputs={tmp_path / 'd'}")
    assert other.record.fingerprint != fresh.record.fingerprint
    assert other.record.hashes.delta != fresh.record.hashes.delta


def test_ax_is_predicted_with_an_mnli_model(run_tiny: Run, tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tgold_label\n"
    rows = "".join(f"{i}\ta b {i}\tc {i}\t{('entailment', 'neutral', 'contradiction')[i % 3]}\n" for i in range(24))
    for name in ("train", "dev_matched", "dev_mismatched"):
        path = tmp_path / "glue" / "MNLI" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + rows)
    ax = tmp_path / "glue" / "AX" / "AX.tsv"
    ax.parent.mkdir()
    ax.write_text("index\tsentence1\tsentence2\n0\ta b 1\tc 1\n1\ta b 2\tc 2\n")
    data = ["data=folder", f"data.path={tmp_path / 'glue'}"]
    mnli = run_tiny(*data, "task=mnli", "method=full")
    assert mnli.record.metrics.evaluations[-1].metrics.keys() == {"accuracy_matched", "accuracy_mismatched"}
    assert mnli.record.headline.name == "accuracy_matched"
    outcome = run_tiny(*data, "task=ax", "method=full", f"init_from={mnli.path.parent}")
    assert outcome.record.status == "done"
    assert outcome.record.headline.value is None
    lines = (outcome.path.parent / "predictions" / "test.tsv").read_text().splitlines()
    expected = (mnli.path.parent / "predictions" / "dev_matched.tsv").read_text().splitlines()
    assert [line.split("\t")[3:] for line in lines[1:]] == [line.split("\t")[3:] for line in expected[2:4]]


def test_missing_data_leaves_nothing_behind(run_tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run_tiny("data=folder", f"data.path={tmp_path / 'nowhere'}")
    assert not (tmp_path / "outputs").exists()


def test_a_delta_with_a_flipped_bit_is_refused(run_tiny: Run) -> None:
    folder = run_tiny("method=lora").path.parent
    content = bytearray((folder / "delta.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "delta.safetensors").write_bytes(bytes(content))
    with pytest.raises(DataError, match="not the delta that"):
        deltas.reload(folder)


def signed(raw: dict[str, Any]) -> str:
    raw.pop("sha256")
    raw["sha256"] = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    return json.dumps(raw)


def test_a_damaged_or_older_record_is_refused_by_name(run_tiny: Run) -> None:
    path = run_tiny().path
    content = path.read_text()
    for damaged, message in (
        (content[: len(content) // 2], "not a readable record"),
        (content.replace('"schema": 2', '"schema": 0'), "its sha256 does not match"),
        (content.replace('"done"', '"gone"'), "its sha256 does not match"),
        (json.dumps({**json.loads(content), "schema": 1, "status": "perfect"}), "not a valid record: status"),
        (signed({**json.loads(content), "schema": 99}), "a record of schema 99, this version reads schema 2"),
    ):
        path.write_text(damaged)
        with pytest.raises(DataError, match=message):
            read_record(path)


def test_numbers_that_are_not_finite_are_written_as_null(run_tiny: Run) -> None:
    record = run_tiny().record
    broken = replace(record, headline=Headline("accuracy", math.nan, math.inf))
    assert json.loads(broken.as_json())["headline"] == {"name": "accuracy", "value": None, "standard_error": None}


def test_streams_are_separate_and_reproducible() -> None:
    import torch

    assert len({stream(seed, name) for seed in range(50) for name in STREAMS}) == 50 * len(STREAMS)
    with drawn_from(3, "head"):
        first = torch.rand(4)
    with drawn_from(3, "head"):
        assert torch.equal(torch.rand(4), first)
    with drawn_from(3, "dropout"):
        assert not torch.equal(torch.rand(4), first)


def test_learning_rate_schedules() -> None:
    linear = [lr_factor(step, 100, 0.1, "linear") for step in range(100)]
    assert linear[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert linear[10:] == pytest.approx(np.arange(90, 0, -1) / 90)
    assert [lr_factor(step, 10, 0.0, "constant") for step in range(10)] == [1.0] * 10
    cosine = [lr_factor(step, 100, 0.0, "cosine") for step in range(100)]
    assert cosine[50] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(cosine))


def test_minilm_learns_similarity_on_real_glue(glue: Path, run_tiny: Run) -> None:
    words = ["model=minilm_l6", "model.weights=auto", "model.config.vocab_size=30522", "protocol.max_length=64"]
    record = run_tiny(
        *words, "task=stsb", "method=full", "data=folder", f"data.path={glue}", "data.limit=400",
        "protocol.max_steps=80", "protocol.batch_size=16", "protocol.lr=1e-4", "protocol.head_lr=1e-2",
        "protocol.evaluate_every=1000",
        "protocol.precision=fp32",  # without bf16 instructions a product in bf16 takes eight times as long
    ).record  # fmt: skip
    assert record.headline.value is not None
    assert record.headline.value > 0.5  # 0.79; a head on the untouched backbone has about 0.1


def test_the_head_may_have_a_learning_rate_of_its_own(run_tiny: Callable[..., Outcome]) -> None:
    def moved(*words: str) -> dict[str, torch.Tensor]:
        path = run_tiny("method=bitfit", "protocol.max_steps=1", "protocol.warmup=0", *words).path
        return load_file(path.with_name("delta.safetensors"))

    plain, faster = moved("protocol.lr=1e-3"), moved("protocol.lr=1e-3", "protocol.head_lr=1e-2")
    for name in plain:
        same = torch.equal(plain[name], faster[name])
        assert same != name.startswith("head."), name
    # Adam's first step is the learning rate, whatever the gradient; biases of the head start at zero.
    assert faster["head.classifier.bias"].abs().max().item() == pytest.approx(1e-2, rel=1e-3)
    assert plain["head.classifier.bias"].abs().max().item() == pytest.approx(1e-3, rel=1e-3)


def test_rounding_widths_up_changes_nothing_but_dropouts_draws(run_tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftbench.data import batches

    words = ["method=full", "protocol.precision=fp32", "+model.config.hidden_dropout_prob=0"]
    words += ["+model.config.attention_probs_dropout_prob=0"]
    padded = run_tiny(*words, "study=padded").record
    monkeypatch.setattr(batches, "STEP", 1)
    plain = run_tiny(*words, "study=plain").record
    assert plain.throughput.padding_share < padded.throughput.padding_share
    for one, other in zip(plain.metrics.evaluations, padded.metrics.evaluations, strict=True):
        assert one.metrics == pytest.approx(other.metrics, abs=1e-6)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are reset through Linux's /proc")
def test_a_peak_does_not_hold_what_an_earlier_cell_freed() -> None:
    keep_freed_memory()
    taken = torch.ones(2**27)  # 512 MiB
    before = provenance.peak_memory_mb()
    del taken
    provenance.reset_peak_memory()
    assert provenance.peak_memory_mb() < before - 500
