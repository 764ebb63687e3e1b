"""Start W workers of a study as one Slurm job array, through submitit.

    peftbench plan study=big ... outputs=/shared/outputs --save
    python scripts/workers_slurm.py big --outputs /shared/outputs --workers 16 --minutes 240 --set slurm_partition=gpu

The array has one job per worker, not per cell. A worker checkpoints and leaves before its job's time is over, or when
Slurm takes its job away; give the same command again for what is left. A job that dies loses nothing: the others wait
for the last cells, and take its own.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from submitit import AutoExecutor

SIGNAL = 120  # seconds before a job's end at which Slurm sends USR2, as early as a worker leaves by itself


def main() -> None:
    """Submit the array and say how it is called."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="a folder that all nodes share")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--minutes", type=int, default=240, help="of each job")
    parser.add_argument("--cores", type=int, default=2, help="of each worker")
    parser.add_argument("--memory", type=int, default=8, help="GB of each worker; peftbench plan says what cells take")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of submitit")
    asked = parser.parse_args()
    outputs = asked.outputs.resolve()
    executor = AutoExecutor(folder=outputs / ".slurm" / "%j", cluster="slurm")
    settings = dict(item.split("=", 1) for item in asked.set)
    executor.update_parameters(
        name=f"peftbench-{asked.study}", timeout_min=asked.minutes, cpus_per_task=asked.cores, mem_gb=asked.memory,
        slurm_array_parallelism=asked.workers, **{"slurm_signal_delay_s": SIGNAL, **settings},
    )  # fmt: skip
    line = [sys.executable, "-m", "peftbench", "work", asked.study, "--outputs", str(outputs), "--wait"]
    with executor.batch():
        jobs = [executor.submit(work, line) for _ in range(asked.workers)]
    watch = f"peftbench status {asked.study} --outputs {asked.outputs} --watch"
    print(f"{jobs[0].job_id.partition('_')[0]}: {len(jobs)} workers; {watch}")


def work(line: list[str]) -> None:
    """Be one worker, a process of its own. At the signal, submitit gives up what it runs; the worker, which gets it as
    well, writes a checkpoint first.

    Raises:
        RuntimeError: it left with another exit code than 0.
    """
    process = subprocess.Popen(line)
    try:
        code = process.wait()
    except BaseException:
        process.wait()
        raise
    if code:
        raise RuntimeError(f"the worker left with exit code {code}")


if __name__ == "__main__":
    main()
