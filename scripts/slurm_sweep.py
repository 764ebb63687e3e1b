"""Prove a sweep on a Slurm cluster: 8 cells, one job killed in the middle, resubmitted, nothing lost or run twice.

    scripts/slurm_one_node.sh start && python scripts/slurm_sweep.py [--work DIR]

Prints what was checked, one line each, and exits with 1 at the first thing that is not so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peftbench.record import find_records, read_record, record_status

SWEEP = [
    "study=slurm", "model=bert_tiny", "model.weights=random", "task=sst2", "data=sample", "tracker=none",
    "protocol.max_steps=400", "protocol.evaluate_every=100", "checkpoint_every=1", "method=bitfit,lora", "seed=0,1,2,3",
]  # fmt: skip
ON_SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3"]
CELLS = 8
PATIENCE = 600  # seconds for the cluster to get somewhere


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder that the nodes share; default: a temporary one")
    asked = parser.parse_args()
    work = (asked.work or Path(tempfile.mkdtemp(prefix="peftbench-slurm-"))).resolve()

    check("without Slurm", start(work / "alone", []).wait(PATIENCE) == 0)
    reference = scores(work / "alone")

    first = start(work / "cluster", ON_SLURM)
    wait(
        lambda: len(contents(work / "cluster")) >= 2 and bool(training(work / "cluster")),
        "two cells done, one training",
    )
    victim = training(work / "cluster")[0]
    subprocess.run(["scancel", "--signal=KILL", victim], check=True)
    print(f"job {victim} killed with {len(scores(work / 'cluster'))} of {CELLS} cells done")
    wait(lambda: not jobs(), "the other jobs to end")
    stop(first)
    before = contents(work / "cluster")
    check(f"the killed cell is not done, the others are ({len(before)})", len(before) == CELLS - 1)

    started = submitted(work / "cluster")
    code = start(work / "cluster", ON_SLURM).wait(PATIENCE)
    again = submitted(work / "cluster") - started
    after = contents(work / "cluster")
    check("resubmitted: exit code 0", code == 0)
    check(f"one job for the one cell that was left ({len(again)})", len(again) == 1)
    check("finished records untouched", all(after[path] == content for path, content in before.items()))
    check("scores as without Slurm, bit for bit", scores(work / "cluster") == reference and len(reference) == CELLS)


def start(outputs: Path, launcher: list[str]) -> subprocess.Popen[bytes]:
    """The sweep, in a process of its own; its screen goes to a file beside the outputs."""
    outputs.mkdir(parents=True, exist_ok=True)
    with (outputs / "screen.txt").open("ab") as screen:
        command = [sys.executable, "-m", "peftbench", "run", "-m", *SWEEP, f"outputs={outputs}", *launcher]
        return subprocess.Popen(
            command, stdout=screen, stderr=screen, env={**os.environ, "PEFTBENCH_CACHE": str(outputs / "cache")}
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the launcher: without accounting Slurm does not tell it that a job was killed, so it would wait on."""
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(timeout=30)


def jobs() -> list[str]:
    """Identifiers of this user's jobs in the queue."""
    return subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True
    ).stdout.split()


def submitted(outputs: Path) -> set[str]:
    """The array tasks that were ever submitted, by the folders of their logs."""
    return {path.name for path in (outputs / ".slurm").glob("*_*")}


def training(outputs: Path) -> list[str]:
    """Identifiers of the jobs that have written a checkpoint and go on (the node is this machine)."""
    running = []
    for path in outputs.glob("slurm/*/*/checkpoint.safetensors"):
        try:
            owner = json.loads(path.with_name("lock.json").read_text())["pid"]
            words = Path(f"/proc/{owner}/environ").read_text().split("\0")
        except OSError:
            continue
        variables = dict(word.partition("=")[::2] for word in words)
        running.append(f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}")
    return running


def wait(until: Callable[[], bool], what: str) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            check(f"waited {PATIENCE} s for {what}", False)
        time.sleep(0.2)


def contents(outputs: Path) -> dict[str, bytes]:
    """The bytes of every finished record, by its folder."""
    paths = [path for path in find_records(outputs / "slurm") if record_status(path) == "done"]
    return {str(path.parent.relative_to(outputs)): path.read_bytes() for path in paths}


def scores(outputs: Path) -> dict[str, str]:
    """Every evaluation of every finished cell, and the hash of its delta."""
    by_cell = {}
    for folder in contents(outputs):
        record = read_record(outputs / folder / "result.json")
        by_cell[folder] = repr([record.metrics.evaluations, record.hashes.delta])
    return by_cell


def check(what: str, so: bool) -> None:
    """Say what was checked; leave if it is not so."""
    print(f"{'ok  ' if so else 'NOT '} {what}", flush=True)
    if not so:
        sys.exit(1)


if __name__ == "__main__":
    main()
