"""W&B offline: the file is read back and compared with the record."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import TINY, call, losses

from peftbench.config.spec import Cell
from peftbench.record import read_record
from peftbench.runner.run import Outcome
from peftbench.runner.tracking import MetricsFile
from peftbench.runner.wandb_run import mode

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

    contents: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit": None}
    for data in messages(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            contents["id"], contents["group"], contents["name"] = (
                record.run.run_id,
                record.run.run_group,
                record.run.display_name,
            )
            contents["project"], contents["entity"] = record.run.project, record.run.entity
            contents["tags"] = list(record.run.tags)
            contents["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            contents["history"].append(row)
        elif kind == "summary":
            for item in record.summary.update:
                contents["summary"]["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "exit":
            contents["exit"] = record.exit.exit_code
    return contents


def offline_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_back(file) for file in sorted(folder.rglob("*.wandb"))]


def test_an_offline_run_holds_what_the_record_holds(run_tiny: Run) -> None:
    outcome = run_tiny("tracker=wandb", "tracker.log_every=1", "tracker.tags=[mine]", "study=trial")
    record = outcome.record
    (logged,) = offline_runs(outcome.path.parent)
    assert logged["exit"] == 0
    assert logged["group"] == "trial"
    assert logged["name"] == "sst2-lora-bert_tiny-s0"
    assert {"sst2", "lora", "bert_tiny", "data:sample", "mine"} <= set(logged["tags"])
    assert logged["config"]["protocol"] == record.config["protocol"]
    assert logged["config"]["fingerprint"] == record.fingerprint
    sent = [row["train/loss"] for row in logged["history"] if "train/loss" in row]
    assert sent == pytest.approx(losses(outcome.path.parent))
    for row in logged["history"]:
        if "train/loss" in row:
            assert row.keys() >= {"train/lr", "train/grad_norm", "train/tokens_per_s"}
    dev = [row["dev/accuracy"] for row in logged["history"] if "dev/accuracy" in row]
    assert dev == [evaluation.metrics["accuracy"] for evaluation in record.metrics.evaluations]
    assert record.counts is not None
    for key in ("backbone", "head", "total", "stored_bytes"):
        assert logged["summary"][key] == record.counts.as_dict()[key]
    assert logged["summary"]["accuracy"] == record.headline.value


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


def test_a_runs_own_words_in_the_environment_do_not_make_one_run_of_all_cells(
    tmp_path: Path,
) -> None:
    environment = {"WANDB_RUN_ID": "abc", "WANDB_NAME": "mine", "WANDB_RESUME": "must", "WANDB_MODE": "DryRun"}
    environment |= {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_API_KEY": "0" * 40}
    words = ["tracker=wandb" if word == "tracker=none" else word for word in TINY]
    done = call("run", "-m", *words, "seed=0,1", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    runs = offline_runs(tmp_path / "outputs")
    assert len({run["id"] for run in runs} - {"abc"}) == 2
    assert {run["name"] for run in runs} == {"sst2-lora-bert_tiny-s0", "sst2-lora-bert_tiny-s1"}
    assert {(run["project"], run["entity"]) for run in runs} == {("theirs", "team")}
    assert {run["config"]["tracker"]["project"] for run in runs} == {"theirs"}


def test_what_is_typed_comes_before_the_environment(tiny: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    typed = tiny("tracker=wandb", "tracker.project=ours", "tracker.entity=us").tracker
    assert (typed.project, typed.entity) == ("ours", "us")
    given = tiny("tracker=wandb").tracker
    assert (given.project, given.entity) == ("theirs", "team")
    monkeypatch.delenv("WANDB_PROJECT")
    monkeypatch.delenv("WANDB_ENTITY")
    neither = tiny("tracker=wandb").tracker
    assert (neither.project, neither.entity) == ("peftbench", None)
    assert given == replace(neither, project="theirs", entity="team")


KEY = {"WANDB_API_KEY": "0" * 40}


@pytest.mark.parametrize(
    ("asked", "variables", "how"),
    [
        ("auto", {}, "offline"),
        ("auto", KEY, "online"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
        ("auto", {**KEY, "WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "Offline"}, "offline"),
        ("auto", {"WANDB_MODE": "run"}, "online"),
        ("auto", {**KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {**KEY, "WANDB_DISABLED": "true"}, "disabled"),
        ("auto", {**KEY, "WANDB_DISABLED": "false"}, "online"),
        ("auto", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "disabled"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
        ("disabled", {**KEY, "WANDB_MODE": "online"}, "disabled"),
    ],
)
def test_every_word_of_wandbs_own_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, variables: dict[str, str], how: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert mode(asked) == how


def test_a_key_in_netrc_is_that_of_the_server_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("machine wandb.firm.org login user password 0123456789\n")
    keys.chmod(0o600)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(keys))
    assert mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.firm.org")
    assert mode("auto") == "online"


def test_metrics_of_a_runner_that_lost_the_cell_do_not_reach_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as paused, MetricsFile(path) as other:
        paused.begin(4, 0)
        paused.step(1, {"loss": 1.0})
        other.begin(4, 0)
        other.step(1, {"loss": 2.0})
        paused.step(2, {"loss": 1.0})
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_an_artefact_is_a_run_of_its_own_where_its_run_was_followed_or_it_is_asked_for(
    run_tiny: Run, command: Callable[..., Any]
) -> None:
    silent, followed = run_tiny("study=silent"), run_tiny("tracker=wandb", "tracker.tags=[mine]", "study=told")
    outputs = followed.path.parents[3]
    said = command("score", str(followed.path.parent), "data.limit=40")
    assert (said.code, said.err) == (0, "")
    record = read_record(path := Path(said.out.splitlines()[-1]))
    (logged,) = offline_runs(path.parent)
    assert (logged["exit"], logged["group"]) == (0, "told")
    assert logged["name"] == "sst2-lora of sst2-bert_tiny-s0"
    assert {"sst2", "lora of sst2", "bert_tiny", "data:sample", "mine", "score"} == set(logged["tags"])
    assert (logged["config"]["fingerprint"], logged["config"]["made"]["by"]) == (record.fingerprint, "score")
    assert [row["dev/accuracy"] for row in logged["history"] if "dev/accuracy" in row] == [record.headline.value]
    assert logged["summary"]["accuracy"] == record.headline.value
    assert command("score", str(followed.path.parent), "data.limit=40").out.startswith("already done")
    assert len(offline_runs(path.parent)) == 1
    command("score", str(followed.path.parent), "data.limit=32", "tracker=none")
    command("score", str(silent.path.parent), "data.limit=32")
    assert len(offline_runs(outputs)) == 2
    command("score", str(silent.path.parent), "data.limit=40", "tracker=wandb", "study=own")
    assert [run["group"] for run in offline_runs(outputs / "own")] == ["own"]
