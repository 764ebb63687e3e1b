"""A run that was stopped goes on where it stopped and ends, bit for bit, as if nothing had happened."""

import json
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from matrix import EVERY
from support import Signal, logged, what_is_left

from peftbench.ground.files import CHECKPOINT_FILE
from peftbench.runner.run import Outcome
from peftbench.training.checkpoint import FORMAT, Checkpoints
from peftbench.training.stopping import Stopped
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]


OTHER = {
    "best dev, several evaluations": ["method=lora", "protocol.selection=best_dev", "protocol.evaluate_every=2"],
    "threshold, at the start": ["method=d3", "budget=500", "method.batches=2", "method.threshold=20"],
    "threshold, past its steps": ["method=id3", "budget=500", "method.threshold=20", "method.steps=2"],
    "accumulation": ["method=id3", "budget=50", "protocol.accumulation=3"],
    "several epochs": ["method=bitfit", "protocol.max_steps=null", "protocol.epochs=2"],
    "kept prefix": ["method=full", "scope.layers=1", "protocol.keep_prefix=true"],
    "peft's running averages": ["method=peft", "method.type=adalora", "method.config.target_r=2", "protocol.lr=0.05"],
    "peft's noise in training": ["method=pvera", "protocol.lr=0.05"],
    "what maps read decides the start": ["method=eva", "protocol.lr=0.05"],
    "update": [
        "method=lora",
        "objective=muscle",
        "objective.old={older}",
        "init_from={finished}",
        "tracker.log_every=4",
    ],
    "patience": ["method=full", "protocol.patience=3", "protocol.evaluate_every=1", "protocol.lr=0.01"],
}


@pytest.mark.parametrize("name", [*EVERY, *OTHER])
def test_a_stopped_run_ends_as_an_undisturbed_one(
    name: str,
    run_tiny: Run,
    row_run: Callable[[str], Outcome],
    signal_at: Signal,
    tmp_path: Path,
    finished: Path,
    older: Path,
) -> None:
    words = OTHER.get(name) or EVERY[name].overrides
    overrides = [word.format(finished=finished, older=older) for word in words]
    whole = row_run(name) if name in EVERY else run_tiny(*overrides, f"outputs={tmp_path / 'whole'}")
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny(*overrides, f"outputs={tmp_path / 'broken'}")
    assert not list((tmp_path / "broken").rglob("result.json"))
    assert len(list((tmp_path / "broken").rglob(CHECKPOINT_FILE))) == 1
    signal_at(0)
    resumed = run_tiny(*overrides, f"outputs={tmp_path / 'broken'}")
    assert what_is_left(resumed) == what_is_left(whole)
    assert logged(resumed) == logged(whole)


def test_the_record_of_a_resumed_run_says_when_it_was_first_started(
    run_tiny: Run, signal_at: Signal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that a plan knows whether it was registered first."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Later":
            return cls(2101, 1, 1, tzinfo=tz)

    for step in (2, 4):  # the second checkpoint hands on what the first one says
        signal_at(step)
        with pytest.raises(Stopped):
            run_tiny("method=lora")
        for module in ("runner.run", "training.checkpoint"):
            monkeypatch.setattr(f"peftbench.{module}.datetime", Later)
    signal_at(0)
    assert run_tiny("method=lora").record.time.started < "2100"
    assert run_tiny("method=lora", "seed=1").record.time.started.startswith("2101")


def test_a_run_that_was_killed_goes_on_from_its_last_evaluation(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody asks a killed process: what counts is the checkpoint before."""
    words = ["method=id3", "budget=50", "protocol.evaluate_every=2"]
    whole = run_tiny(*words, f"outputs={tmp_path / 'whole'}")
    plain, done = Trainer.step, []

    def step(self: Trainer, number: int, *rest: Any) -> None:
        done.append(number)
        if number == 5 and done.count(5) == 1:
            raise SystemExit  # no handler of ours runs
        plain(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(SystemExit):
        run_tiny(*words, f"outputs={tmp_path / 'broken'}")
    resumed = run_tiny(*words, f"outputs={tmp_path / 'broken'}")
    assert done == [0, 1, 2, 3, 4, 5, 4, 5]
    assert what_is_left(resumed) == what_is_left(whole)
    assert logged(resumed) == logged(whole)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_anew(
    damage: str, run_tiny: Run, signal_at: Signal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run_tiny("method=lora", f"outputs={tmp_path / 'whole'}")
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny("method=lora", f"outputs={tmp_path / 'broken'}")
    signal_at(0)
    (path,) = (tmp_path / "broken").rglob(CHECKPOINT_FILE)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flip":
        content[-100] ^= 1
    path.write_bytes({"empty": b"", "text": b"not a checkpoint"}.get(damage, bytes(content)))
    resumed = run_tiny("method=lora", f"outputs={tmp_path / 'broken'}")
    assert "damaged; the cell starts anew" in capsys.readouterr().err
    assert [bad.name for bad in path.parent.glob("*.bad*")] == [f"{CHECKPOINT_FILE}.bad1"]
    (path.parent / f"{CHECKPOINT_FILE}.bad1").unlink()
    assert what_is_left(resumed) == what_is_left(whole)


def test_a_checkpoint_of_other_rows_is_not_taken_up(
    run_tiny: Run, signal_at: Signal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny("method=lora")
    (path,) = tmp_path.rglob(CHECKPOINT_FILE)
    kept = Checkpoints(path.parent, {"data": "other rows"}, every=60)
    assert kept.read() is None
    assert "of another data" in capsys.readouterr().err
    assert Checkpoints(path.parent, {"data": "other rows"}, every=None).read() is None


def other_words(raw: dict[str, Any]) -> None:
    words = raw["model"]["vocab"]
    words["film"], words["movie"] = words["movie"], words["film"]


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("tokenizer.json", other_words, "tokenizer, folder of weights"),
        ("config.json", lambda raw: raw.update(hidden_dropout_prob=0.25), "folder of weights"),
    ],
)
def test_a_checkpoint_of_what_else_lies_beside_the_weights_is_not_taken_up(
    name: str,
    change: Callable[[dict[str, Any]], None],
    what: str,
    run_tiny: Run,
    signal_at: Signal,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = checkpoint("bert_base_uncased", tmp_path / "weights")
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny(*words)
    signal_at(0)
    (path,) = tmp_path.rglob(CHECKPOINT_FILE)
    raw = json.loads((tmp_path / "weights" / name).read_text())
    change(raw)
    (tmp_path / "weights" / name).write_text(json.dumps(raw))
    run_tiny(*words)
    assert f"{path}: of another {what}; the cell starts anew" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_format_is_not_taken_up(
    run_tiny: Run,
    signal_at: Signal,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("peftbench.training.checkpoint.FORMAT", FORMAT - 1)
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny()
    monkeypatch.setattr("peftbench.training.checkpoint.FORMAT", FORMAT)
    signal_at(0)
    assert run_tiny().record.status == "done"
    assert "of another format; the cell starts anew" in capsys.readouterr().err


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
)


@given(state=st.dictionaries(st.text(), nested), seed=st.integers(0, 99))
def test_whatever_is_kept_comes_back(
    state: dict[str, Any], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    random = torch.Generator().manual_seed(seed)
    tensor = torch.randn(3, 2, generator=random).bfloat16()
    kept = Checkpoints(tmp_path_factory.mktemp("kept"), {"who": seed}, every=60)
    kept.write({"plain": state, "tensors": [tensor, tensor.t()], "array": tensor.float().numpy(), "empty": tensor[:0]})
    state_read = kept.read()
    assert state_read is not None
    assert state_read["plain"] == state
    assert torch.equal(state_read["tensors"][0], tensor)
    assert torch.equal(state_read["tensors"][1], tensor.t())
    assert isinstance(state_read["array"], np.ndarray)
    assert state_read["empty"].shape == (0, 2)
    kept.remove()
    assert kept.read() is None
