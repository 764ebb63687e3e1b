"""Sweeps as a person runs them: what is skipped, what is taken up again, what status and plan say."""

import fcntl
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from support import TINY, begin, call, losses, records, start, until

from peftbench.record import MEASURED, find_records, read_record, write_record
from peftbench.study import index, status

STUDY = ["-m", *TINY, "study=pilot", "method=bitfit,head", "seed=0,1"]


def test_a_finished_sweep_is_skipped_without_torch_and_runs_again_only_when_asked(tmp_path: Path) -> None:
    planned = start("plan", *STUDY, cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    assert "4 cells: 0 need no run, 4 to run; nothing is known about their time yet" in planned.stdout
    assert not (tmp_path / "outputs").exists(), "plan writes nothing"
    first = call("run", *STUDY, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    before = records(tmp_path)
    code = (
        "import sys\n"
        f"sys.argv = ['peftbench', 'run', *{STUDY!r}]\n"
        "from peftbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "for words in (['status', 'pilot'], ['table', 'pilot']):\n"
        "    sys.argv = ['peftbench', *words]\n"
        "    try: main()\n"
        "    except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    again = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == "4 cells: 4 done (4 of them before), 0 failed"
    assert records(tmp_path) == before
    planned = call("plan", *STUDY, "task=sst2,stsb", cwd=tmp_path)
    assert re.search(
        r"8 cells: 4 need no run, 4 to run; about [0-9]+ s for one runner, [0-9,]+ MiB each at most", planned.stdout
    )
    anew = call("run", *STUDY, "method=head", "seed=0", "rerun=all", cwd=tmp_path)
    assert anew.returncode == 0
    changed = [name for name, content in records(tmp_path).items() if before[name] != content]
    assert len(changed) == 1


def test_globs_and_ranges_sweep_over_words_and_numbers(tmp_path: Path) -> None:
    words = [word for word in STUDY if not word.startswith(("method=", "seed="))]
    done = call(
        "run", *words, "method=glob([bit*,h*],exclude=[houl*,hut*,hira*,hra*])", "seed=range(0,2)", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    cells = [read_record(path).cell for path in find_records(tmp_path / "outputs" / "pilot")]
    assert {(cell.method, cell.seed) for cell in cells} == {(m, s) for m in ("bitfit", "head") for s in (0, 1)}
    own = tmp_path / "conf" / "method"
    own.mkdir(parents=True)
    (own / "zeta.yaml").write_text("defaults: [lora, _self_]\nrank: 2\n")
    planned = call("plan", *words, f"hydra.searchpath=[file://{own.parent}]", "method=glob(z*)", cwd=tmp_path)
    assert planned.stdout.startswith("pilot/sst2-zeta-bert_tiny-"), planned.stderr
    for nothing in ("method=glob(nonsense*)", "seed=range(3,3)"):
        refused = call("plan", *words, nothing, cwd=tmp_path)
        assert (refused.returncode, refused.stderr) == (2, f"{nothing}: nothing to sweep over\n")


def test_a_cell_in_a_sweep_is_the_cell_alone(tmp_path: Path) -> None:
    assert (
        call("run", "-m", *TINY, "study=pilot", "method=lora,id3", "budget.like=bitfit", cwd=tmp_path).returncode == 0
    )
    alone = call("run", *TINY, "study=pilot", "method=id3", "budget.like=bitfit", "outputs=alone", cwd=tmp_path)
    assert alone.returncode == 0

    def left(where: str) -> list[bytes]:
        (folder,) = (tmp_path / where / "pilot").glob("*-id3-*/seed0")
        raw = json.loads((folder / "result.json").read_bytes())
        for key in (*MEASURED, "overrides", "config", "sha256"):
            del raw[key]
        return [json.dumps(raw).encode(), (folder / "delta.safetensors").read_bytes()]

    assert left("outputs") == left("alone")


def test_status_says_how_every_cell_stands_and_failed_ones_are_taken_up_again(tmp_path: Path) -> None:
    words = ["-m", *TINY, "study=pilot", "method=full", "protocol.clip=null", "protocol.schedule=constant"]
    sweep = call("run", *words, "protocol.lr=1e9,1e-4", "seed=0,1", cwd=tmp_path)
    assert sweep.returncode == 102, sweep.stderr
    shown = start("status", "pilot", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("pilot: 4 cells: 2 done, 2 failed")
    lines = shown.stdout.splitlines()
    failed = [i for i, line in enumerate(lines) if line.startswith("failed: pilot/")]
    assert len(failed) == 2
    assert all("diverged: peftbench.ground.errors.Diverged: the training loss is" in lines[i] for i in failed)
    for i in failed:  # the command that is shown does run the cell
        assert call(*lines[i + 1].split()[1:], cwd=tmp_path).returncode == 4
    kept = call("run", *words, "protocol.lr=1e9,1e-4", "seed=0,1", "rerun=failed", cwd=tmp_path)
    assert kept.returncode == 102
    assert "4 cells: 2 done (2 of them before), 2 failed" in kept.stdout
    one = next(iter((tmp_path / "outputs" / "pilot").glob("*/seed1/result.json")))
    one.unlink()
    assert status.by_state(status.cells_of(tmp_path / "outputs", "pilot"))["missing"] == 1


def test_a_cell_that_failed_on_two_hosts_is_left_alone_unless_asked(tmp_path: Path) -> None:
    words = ["-m", *TINY, "study=pilot", "method=full", "protocol.clip=null", "protocol.schedule=constant"]
    words += ["protocol.lr=1e9", "seed=0"]
    assert call("run", *words, cwd=tmp_path).returncode == 101
    (path,) = find_records(tmp_path / "outputs" / "pilot")
    record = read_record(path)
    assert record.worker is not None
    assert record.failed_on == [record.worker.host]
    write_record(replace(record, failed_on=["other"]), path.parent)
    assert call("run", *words, cwd=tmp_path).returncode == 101
    assert read_record(path).failed_on == ["other", record.worker.host]
    before = path.read_bytes()
    third = call("run", *words, cwd=tmp_path)
    assert third.returncode == 101
    left_alone = "1 of these on two hosts (rerun=failed tries them again)"
    assert third.stdout == f"1 cell: 0 done, 1 failed, {left_alone}\n"
    assert path.read_bytes() == before
    (cell,) = status.cells_of(tmp_path / "outputs", "pilot")
    assert (cell.reason or "").endswith(f"(failed on other, {record.worker.host}; left alone unless asked)")
    assert call("run", *words, "rerun=failed", cwd=tmp_path).returncode == 101
    assert path.read_bytes() != before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_record_is_set_aside_and_its_cell_runs_again(tmp_path: Path, damage: str) -> None:
    words = [*TINY, "study=pilot", "method=head"]
    first = call("run", *words, cwd=tmp_path)
    path = tmp_path / first.stdout.splitlines()[-1]
    good = path.read_bytes()
    at = good.index(b'"value": 0.') + 11
    bad = {"cut": good[:500], "flip": good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "empty": b""}[damage]
    path.write_bytes(bad)
    again = call("run", *words, cwd=tmp_path)
    assert again.returncode == 0
    assert "damaged record" in again.stderr
    assert path.with_name("result.json.bad1").read_bytes() == bad
    kept, anew = json.loads(good), json.loads(path.read_bytes())
    assert (kept["headline"], kept["metrics"], kept["hashes"]) == (anew["headline"], anew["metrics"], anew["hashes"])


def test_a_signal_ends_a_run_long_before_its_last_step_and_the_next_start_goes_on(tmp_path: Path) -> None:
    words = [*TINY, "study=pilot", "method=lora", "protocol.max_steps=4000", "tracker.log_every=1"]
    running = begin("run", *words, cwd=tmp_path)
    until(lambda: any(log.stat().st_size > 200 for log in tmp_path.rglob("metrics.jsonl")), running)
    running.send_signal(signal.SIGTERM)
    _, printed = running.communicate(timeout=300)
    assert running.returncode == 143
    assert "stopped by SIGTERM; the same command goes on from here" in printed
    assert [cell.state for cell in status.cells_of(tmp_path / "outputs", "pilot")] == ["stopped"]
    (kept,) = tmp_path.rglob("checkpoint.safetensors")
    assert len(losses(kept.parent)) < 2000
    assert not (kept.parent / "lock.json").exists()
    assert not (kept.parent / "result.json").exists()


def test_cells_that_could_not_be_run_are_left_and_the_exit_code_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        (tmp_path / "rows" / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\nfine\tgood\n")
    sweep = call("run", *TINY, "data=folder", "data.path=rows", "-m", "method=bitfit,head", cwd=tmp_path)
    assert sweep.returncode == 3  # what kept them was refused input
    assert sweep.stdout.splitlines()[-1] == "2 cells: 0 done, 0 failed, 2 left"
    lines = sweep.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("rows/SST-2/train.tsv, line 2") for line in lines)
    assert not (tmp_path / "outputs").exists()  # a study of refused cells alone is none


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data=sample", "data=sample: has no mrpc, only RTE, SST-2, STS-B; use data=hub or data=folder data.path=..."),
        ("data.path=rows", "data.path=rows: has no folder MRPC (the official download's name for mrpc)"),
        ("data.path=file", "data.path=file: not a folder"),
    ],
)
def test_a_sweep_that_names_a_task_without_rows_starts_no_cell(tmp_path: Path, word: str, line: str) -> None:
    (tmp_path / "rows" / "SST-2").mkdir(parents=True)
    (tmp_path / "file").touch()
    asked = [*TINY, "data=folder", word, "task=sst2,mrpc", "method=bitfit,head", "study=pilot"]
    sweep = call("run", "-m", *asked, cwd=tmp_path)
    assert (sweep.returncode, sweep.stdout, sweep.stderr) == (3, "", f"{line}\n")
    assert not (tmp_path / "outputs").exists()
    plan = call("plan", *asked, cwd=tmp_path)
    assert (plan.returncode, plan.stderr) == (0, f"rows are missing here: {line}\n")


def test_what_status_and_plan_refuse(tmp_path: Path) -> None:
    (tmp_path / "outputs" / "pilot").mkdir(parents=True)
    for words, line in (
        (["status", "pilo"], "did you mean pilot"),
        (["plan", "method=lara,lora"], "did you mean lora"),
        (["plan", "method=lora,"], "method=lora,"),
        (["run", "-m", "rerun=every"], "rerun=every: must be one of"),
    ):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert line in done.stderr
        assert "Traceback" not in done.stderr


def test_a_study_that_is_forgotten_while_another_runner_waits_for_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "outputs" / "pilot"
    cell = index.Planned("pilot/mine/seed0", ["seed=0"])
    index.add(study, {"refused": index.Planned("pilot/refused/seed0", ["seed=1"])})
    plain = fcntl.flock

    def flock(file: IO[str], operation: int) -> None:  # the other one forgets the study between our open and our lock
        monkeypatch.undo()
        index.forget(study, {"pilot/refused/seed0"}, [])
        assert not study.parent.exists()
        plain(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    index.add(study, {"mine": cell})
    assert list(index.read(study)) == ["mine"]
    assert (study / index.LOCK).exists()  # what was locked is where the next runner waits
    index.forget(study, {"pilot/refused/seed0"}, [])  # of a study with other cells nothing is removed
    assert list(index.read(study)) == ["mine"]
