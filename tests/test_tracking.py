"""W&B offline: the file is read back and compared with the record."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peftbench.runner.run import Outcome

Run = Callable[..., Outcome]


def messages(content: bytes) -> Iterator[bytes]:
    """The messages of a .wandb file: LevelDB's log format (blocks of 32 KiB) after a header of 7 bytes."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left  # a block's tail that is too short for a header is filled with zeros
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole message, or its last part
            yield whole
            whole = b""


def read_back(file: Path) -> dict[str, Any]:
    """Config, history, summary, exit code of an offline run's file."""
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None}
    for data in messages(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["id"], found["group"], found["name"] = (
                record.run.run_id,
                record.run.run_group,
                record.run.display_name,
            )
            found["tags"] = list(record.run.tags)
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            found["history"].append(row)
        elif kind == "summary":
            for item in record.summary.update:
                found["summary"]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_back(file) for file in sorted(folder.rglob("*.wandb"))]


def test_an_offline_run_holds_what_the_record_holds(run_tiny: Run) -> None:
    outcome = run_tiny("tracker=wandb", "tracker.log_every=1", "tracker.tags=[mine]", "study=trial")
    record = outcome.record
    (found,) = offline_runs(outcome.path.parent)
    assert found["exit"] == 0
    assert found["group"] == "trial"
    assert found["name"] == "sst2-lora-bert_tiny-s0"
    assert {"sst2", "lora", "bert_tiny", "data:sample", "mine"} <= set(found["tags"])
    assert found["config"]["protocol"] == record.config["protocol"]
    assert found["config"]["fingerprint"] == record.fingerprint
    losses = [row["train/loss"] for row in found["history"] if "train/loss" in row]
    lines = [json.loads(line) for line in (outcome.path.parent / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([line["loss"] for line in lines if "loss" in line])
    for row in found["history"]:
        if "train/loss" in row:
            assert row.keys() >= {"train/lr", "train/grad_norm", "train/tokens_per_s"}
    dev = [row["dev/accuracy"] for row in found["history"] if "dev/accuracy" in row]
    assert dev == [evaluation["metrics"]["accuracy"] for evaluation in record.metrics.evaluations]
    assert record.counts is not None
    for key in ("backbone", "head", "total", "stored_bytes"):
        assert found["summary"][key] == record.counts[key]
    assert found["summary"]["accuracy"] == record.headline.value


def test_several_runs_in_one_process_are_several_also_after_a_crash(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peftbench.methods.base import ParameterTuner

    first = run_tiny("tracker=wandb", "seed=0")
    with monkeypatch.context() as patch:
        patch.setattr(ParameterTuner, "after_backward", lambda self, step: 1 / 0)
        crashed = run_tiny("tracker=wandb", "seed=1")
    last = run_tiny("tracker=wandb", "seed=2")
    assert [outcome.record.status for outcome in (first, crashed, last)] == ["done", "failed", "done"]
    runs = offline_runs(tmp_path / "outputs")
    assert len({run["id"] for run in runs}) == 3
    assert sorted(run["exit"] for run in runs) == [0, 0, 1]


def test_disabled_leaves_no_trace(run_tiny: Run) -> None:
    outcome = run_tiny("tracker=none")
    assert not list(outcome.path.parent.rglob("*wandb*"))


def test_without_a_key_an_online_run_is_kept_offline(run_tiny: Run, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_tiny("tracker=wandb", "tracker.mode=online")
    assert outcome.record.status == "done"
    assert "tracker.mode=online: W&B cannot be used" in capsys.readouterr().err
    assert [run["exit"] for run in offline_runs(outcome.path.parent)] == [0]


def test_an_unreachable_server_does_not_stop_a_run(
    run_tiny: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    outcome = run_tiny("tracker=wandb", "tracker.mode=online")
    assert outcome.record.status == "done"
    assert outcome.record.headline.value is not None
    assert "this run is kept offline" in capsys.readouterr().err
    assert 0 in [run["exit"] for run in offline_runs(outcome.path.parent)]
