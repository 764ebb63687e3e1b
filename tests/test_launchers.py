"""Sweeps in several processes, on a cluster, and on machines with several GPUs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import TINY, call, records, start

from peftbench.record import find_records, read_record

SWEEP = ["-m", *TINY, "study=pilot", "method=bitfit,lora", "seed=0,1"]

RUNNER = """
import os, sys
from peftbench.ground.errors import ConfigError
from peftbench.study.gpus import take_place
try:
    take_place(int(sys.argv[1]))
    take_place(int(sys.argv[1]))
except ConfigError as error:
    print(error, flush=True)
else:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
sys.stdin.read()
"""


def scores(folder: Path) -> dict[str, object]:
    records = [read_record(path) for path in find_records(folder / "outputs" / "pilot")]
    return {f"{r.cell.method} {r.cell.seed}": (r.metrics, r.hashes.delta) for r in records}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process has run the sweep; tests read it."""
    folder = tmp_path_factory.mktemp("one")
    assert call("run", *SWEEP, cwd=folder, PEFTBENCH_CACHE=str(folder / "cache")).returncode == 0
    return folder


@pytest.mark.parametrize("launcher", ["local", "joblib", "submitit_local"])
def test_a_sweep_in_several_processes_is_the_sweep_in_one(tmp_path: Path, one_process: Path, launcher: str) -> None:
    sweep = start("run", *SWEEP, f"hydra/launcher={launcher}", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert "Warning" not in sweep.stderr
    assert sweep.stdout.splitlines()[-1] == "4 cells: 4 done, 0 failed"
    assert scores(tmp_path) == scores(one_process)
    kept = records(tmp_path)
    assert len(kept) == 4
    again = call("run", *SWEEP, f"hydra/launcher={launcher}", cwd=tmp_path)
    assert again.stdout.strip() == "4 cells: 4 done (4 of them before), 0 failed"
    assert records(tmp_path) == kept


def test_failures_in_other_processes_are_counted(tmp_path: Path) -> None:
    words = ["-m", *TINY, "method=full", "protocol.clip=null", "protocol.lr=1e9,1e-4", "protocol.schedule=constant"]
    sweep = start("run", *words, "hydra/launcher=local", cwd=tmp_path)
    assert sweep.returncode == 101, sweep.stderr
    assert sweep.stdout.splitlines()[-1] == "2 cells: 1 done, 1 failed"


@pytest.mark.skipif(
    shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="no Slurm cluster answers here; scripts/slurm_one_node.sh start makes one",
)
def test_a_killed_worker_and_a_killed_daemon_of_slurm_lose_nothing(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts" / "slurm_sweep.py"
    proof = subprocess.run([sys.executable, script, "--work", tmp_path], capture_output=True, text=True, timeout=900)
    assert proof.returncode == 0, proof.stdout
    assert "predictions: as of the plain sweep, bit for bit, 12 of 12" in proof.stdout


def test_a_killed_worker_task_and_driver_of_ray_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="an extra: pip install 'peftbench[ray]'")
    script = Path(__file__).parents[1] / "scripts" / "ray_sweep.py"
    proof = subprocess.run([sys.executable, script, "--work", tmp_path], capture_output=True, text=True, timeout=1800)
    assert proof.returncode == 0, proof.stdout
    assert "predictions: as of the plain sweep, bit for bit, 12 of 12" in proof.stdout


def test_what_launchers_refuse(tmp_path: Path) -> None:
    sweep = call("run", *SWEEP, "hydra/launcher=jobli", cwd=tmp_path)
    assert sweep.returncode == 2
    assert "hydra/launcher=jobli: there is none; did you mean joblib" in sweep.stderr
    one = call("run", *TINY, "cells_per_gpu=0", cwd=tmp_path)
    assert one.returncode == 2
    assert "cells_per_gpu=0: must be at least 1" in one.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("places", "allowed", "bound"),
    [
        (1, None, ["GPU-a", "GPU-b", None]),
        (2, None, ["GPU-a", "GPU-b", "GPU-a"]),
        (1, "1", ["GPU-b", None, None]),
        (1, "", ["", "", ""]),
        (1, "-1", ["-1", "-1", "-1"]),
        (1, "1,-1,0", ["GPU-b", None, None]),
    ],
)
def test_every_runner_takes_a_gpu_of_its_own(
    tmp_path: Path, places: int, allowed: str | None, bound: list[str | None]
) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"  # what the driver's own tool prints on a machine with two GPUs
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho '0, GPU-a'\necho '1, GPU-b'\n")
    tool.chmod(0o755)
    variables = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    if allowed is not None:
        variables["CUDA_VISIBLE_DEVICES"] = allowed
    runners, outputs = [], []
    for _ in bound:
        command = [sys.executable, "-c", RUNNER, str(places)]
        runners.append(
            subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert runners[-1].stdout
        outputs.append(runners[-1].stdout.readline().strip())
    for runner in runners:
        runner.communicate("")
    for line, gpu in zip(outputs, bound, strict=True):
        assert ("no place left for another runner" in line) if gpu is None else (line == gpu)
    after = subprocess.run(
        [sys.executable, "-c", RUNNER, "1"], env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert after.stdout.strip() == (bound[0] or "")  # what a runner had is free when it has ended
