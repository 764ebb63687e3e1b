"""Recipes that start workers: each gives the command that a worker is."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import TINY, call

from peftbench.commands.work import STOPPED
from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import find_records
from peftbench.study.work import MARGIN
from peftbench.training import stopping

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def test_kubernetes_starts_the_command(tmp_path: Path) -> None:
    job = yaml.safe_load((SCRIPTS / "workers_kubernetes.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][:2] == ["peftbench", "work"]
    refused = call(*container["command"][1:-1], str(tmp_path), cwd=tmp_path)
    assert refused.stderr.startswith("study big: no list of cells under"), "the words are those of the command"
    names = {mount["name"] for mount in container["volumeMounts"]}
    assert names == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_kubernetes_client_knows_every_word_of_the_job() -> None:
    reason = "a development dependency: pip install 'peftbench[dev]'"
    client = pytest.importorskip("kubernetes.client", reason=reason).ApiClient()
    job = yaml.safe_load((SCRIPTS / "workers_kubernetes.yaml").read_text(encoding="utf-8"))
    read = client.deserialize(json.dumps(job), "V1Job", "application/json")
    assert client.sanitize_for_serialization(read) == job, "words that it does not know are left out"


def kubernetes_action(job: dict[str, Any], code: int) -> str:
    """What Kubernetes does with a worker that left with this exit code: of the rules, the first one that fits."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is not None and (code in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
    return "Count"


def test_kubernetes_starts_workers_again_that_died_or_left_cells_and_no_others() -> None:
    job = yaml.safe_load((SCRIPTS / "workers_kubernetes.yaml").read_text(encoding="utf-8"))
    again = [1, *(128 + number for number in (*stopping.SIGNALS, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT))]
    assert {kubernetes_action(job, code) for code in again} == {"Count"}
    never = [ConfigError.exit_code, DataError.exit_code, STOPPED, 101, 110, 111, 128, 144, 199]
    assert {kubernetes_action(job, code) for code in never} == {"FailIndex"}


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("workers_*")), ids=lambda path: path.name)
def test_every_recipes_workers_wait_for_the_last_cells(path: Path) -> None:
    assert "--wait" in path.read_text(encoding="utf-8")


def test_slurm_signals_no_later_than_a_worker_leaves(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="an extra: pip install 'peftbench[launchers]'")
    slurm = tmp_path / "bin"
    slurm.mkdir()
    (slurm / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/job.sh\necho Submitted batch job 7\n')
    (slurm / "srun").write_text("#!/bin/sh\n")
    for path in slurm.iterdir():
        path.chmod(0o755)
    line = [sys.executable, SCRIPTS / "workers_slurm.py", "pilot", "--outputs", tmp_path / "outputs", "--workers", "3"]
    variables = {**os.environ, "PATH": f"{slurm}:{os.environ['PATH']}"}
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=variables, timeout=120)
    watch = f"peftbench status pilot --outputs {tmp_path / 'outputs'} --watch"
    assert done.stdout == f"7: 3 workers; {watch}\n", done.stderr
    job = (tmp_path / "job.sh").read_text()
    assert f"#SBATCH --signal=USR2@{MARGIN:.0f}\n" in job
    assert "#SBATCH --array=0-2%3\n" in job


WORKER = """import signal, sys
def leave(*_):
    print("left", flush=True)
    sys.exit(1)
signal.signal(signal.SIGUSR2, leave)
print("ready", flush=True)
while True:
    signal.pause()
"""
JOB = """import runpy, signal, sys
def give_up(*_):  # as submitit does
    raise RuntimeError("gave up")
signal.signal(signal.SIGUSR2, give_up)
runpy.run_path(sys.argv[1])["work"]([sys.executable, "-c", sys.argv[2]])
"""


def test_a_worker_of_slurm_writes_its_checkpoint_while_submitit_gives_up() -> None:
    pytest.importorskip("submitit", reason="an extra: pip install 'peftbench[launchers]'")
    line = [sys.executable, "-c", JOB, str(SCRIPTS / "workers_slurm.py"), WORKER]
    job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, signal.SIGUSR2)  # Slurm signals all processes of a job
    out, err = job.communicate(timeout=60)
    assert (out, job.returncode) == ("left\n", 1)
    assert err.splitlines()[-1] == "RuntimeError: gave up"


def test_ssh_starts_workers_on_every_machine_that_answers(tmp_path: Path) -> None:
    call("plan", *TINY, "study=pilot", "method=bitfit", "--save", cwd=tmp_path)
    ssh = tmp_path / "bin" / "ssh"  # answers for one machine: here
    ssh.parent.mkdir()
    ssh.write_text('#!/bin/sh\n[ "$3" = here ] || exit 255\nexec sh -c "$4 wait"\n')
    ssh.chmod(0o755)
    peftbench = tmp_path / "bin" / "peftbench"
    peftbench.write_text(f'#!/bin/sh\nexec {sys.executable} -m peftbench "$@"\n')
    peftbench.chmod(0o755)
    line = [SCRIPTS / "workers_ssh.sh", "pilot", tmp_path / "outputs", peftbench, "--cells 1", "away", "here"]
    variables = {**os.environ, "PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    started = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=variables, timeout=300)
    assert started.returncode == 0, started.stderr
    assert started.stderr == "away: not reached\n"
    assert started.stdout.startswith("here: log ")
    assert len(list(find_records(tmp_path / "outputs" / "pilot"))) == 1
    assert "1 cell: 1 done, 0 failed" in (tmp_path / "outputs" / ".ssh" / "here.log").read_text()


def test_ray_starts_every_worker_as_a_task(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="an extra: pip install 'peftbench[ray]'")
    call("plan", *TINY, "study=pilot", "method=bitfit", "--save", cwd=tmp_path)
    line = [sys.executable, str(SCRIPTS / "workers_ray.py"), "pilot", "--workers", "1", "--cores", "0.1"]
    variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test"}  # else it is put into ~
    done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list(find_records(tmp_path / "outputs" / "pilot"))) == 1


def test_the_driver_of_many_hosts_judges_all_that_it_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    many_hosts = importlib.import_module("many_hosts")
    good = {"lost": 0, "run twice": 0, "wrong": 0, "overhead_s": 0.3, "busy": 0.95}
    good |= {"cells of the older version": 1, "claims lost to a pause": 1}
    good["injected"] = dict.fromkeys(many_hosts.KINDS, 1)
    assert all(so for *_, so in many_hosts.judged(good))
    bad = {"lost": 1, "run twice": 1, "wrong": 1, "overhead_s": 0.31, "busy": 0.94}
    for name, value in {**bad, "cells of the older version": 0, "claims lost to a pause": 0}.items():
        assert [row[0] for row in many_hosts.judged({**good, name: value}) if not row[-1]] == [name]
    never = {**good, "injected": {**good["injected"], "pause": 0}, "busy": None}
    assert [row[0] for row in many_hosts.judged(never) if not row[-1]] == ["busy", "pause"]
    assert "| pause | 0 | at least 1 | NO |" in many_hosts.table(never)
