"""Prove workers on a Slurm cluster: an array of four, one killed, the node's daemon killed, each cell done once.

    scripts/slurm_one_node.sh start && python scripts/slurm_sweep.py [--work DIR]

Prints what was checked, one line each, and exits with 1 at the first thing that is not so.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import proofs  # type: ignore[import-not-found]
from proofs import CELLS, SCRIPTS, check, contents, training, wait

NODE = str(SCRIPTS / "slurm_one_node.sh")
WORKERS = 4
PER_CELL = [*proofs.WORDS, "protocol.max_steps=4", "method=head", "seed=0,1", "hydra/launcher=slurm"]
PER_CELL += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder that the nodes share; default: a temporary one")
    asked = parser.parse_args()
    outputs = proofs.begin((asked.work or Path(tempfile.mkdtemp(prefix="peftbench-slurm-"))).resolve())

    submit(outputs)
    wait(lambda: len(contents(outputs)) >= 2 and len(training(outputs)) >= 2, "two cells done, two training")
    job = job_of(proofs.stop_one(outputs))
    subprocess.run(["scancel", "--signal=KILL", job], check=True)
    wait(lambda: job not in jobs(), "the killed worker's job to be gone")
    print(f"     worker {job} killed, {len(contents(outputs))} of {CELLS} cells done")
    before = kill_daemon(outputs)
    wait(lambda: not jobs(), "the other workers to end")
    proofs.check_end(outputs, before, (outputs / ".slurm").rglob("*_log.out"))

    after = contents(outputs)
    submit(outputs)
    wait(lambda: not jobs(), "workers that find nothing to do")
    check("a second array changes nothing", contents(outputs) == after)
    code = proofs.peftbench(outputs, "run", "-m", *PER_CELL, f"outputs={outputs}")
    check("a job per cell, through Hydra's launcher", code == 0)


def submit(outputs: Path) -> None:
    """Start the workers as people do."""
    line = [sys.executable, str(SCRIPTS / "workers_slurm.py"), proofs.STUDY, "--outputs", str(outputs)]
    line += ["--workers", str(WORKERS), "--minutes", "60", "--cores", "1", "--memory", "2"]
    said = subprocess.run(line, capture_output=True, text=True, env=proofs.variables(outputs), check=False)
    check(f"submitted {said.stdout.strip() or said.stderr.strip()}", said.returncode == 0)


def kill_daemon(outputs: Path) -> dict[str, bytes]:
    """Kill the daemon that watches over the node's jobs, and start it again when workers have gone on without it; gives
    the contents of records from before."""
    subprocess.run([NODE, "kill-node"], check=True)
    before = contents(outputs)
    print(f"     the node's daemon killed, {len(before)} of {CELLS} cells done, {len(training(outputs))} training")
    wait(lambda: len(contents(outputs)) > len(before), "a cell that ends without the daemon")
    print(f"     the node's daemon started again, {len(contents(outputs))} of {CELLS} cells done")
    subprocess.run([NODE, "start-node"], check=True)
    wait(lambda: node() in ("allocated", "mixed", "idle"), "the node to be back")
    return before


def node() -> str:
    """What Slurm says of the node; an asterisk stands for one that does not answer."""
    return subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True).stdout.strip()


def jobs() -> list[str]:
    """Identifiers of this user's jobs in the queue."""
    line = ["squeue", "--me", "--noheader", "--format=%i"]
    return subprocess.run(line, capture_output=True, text=True).stdout.split()


def job_of(number: int) -> str:
    """The identifier of the job that a process belongs to."""
    words = Path(f"/proc/{number}/environ").read_text().split("\0")
    given = dict(word.partition("=")[::2] for word in words)
    return f"{given['SLURM_ARRAY_JOB_ID']}_{given['SLURM_ARRAY_TASK_ID']}"


if __name__ == "__main__":
    main()
