"""Start W workers of a study as one Slurm job array, through submitit.

    peftbench plan study=big ... outputs=/shared/outputs --save
    python scripts/workers_slurm.py big --outputs /shared/outputs --workers 16 --minutes 240 --set slurm_partition=gpu

The array has one job per worker, not per cell. A worker checkpoints and leaves before its job's time is over; give the
same command again for what is left. A job that dies loses nothing: the others take its cell.
"""

import argparse
import sys
from pathlib import Path

from submitit import AutoExecutor
from submitit.helpers import CommandFunction


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
    executor.update_parameters(
        name=f"peftbench-{asked.study}", timeout_min=asked.minutes, cpus_per_task=asked.cores, mem_gb=asked.memory,
        slurm_array_parallelism=asked.workers, **dict(item.split("=", 1) for item in asked.set),
    )  # fmt: skip
    worker = CommandFunction([sys.executable, "-m", "peftbench", "work", asked.study, "--outputs", str(outputs)])
    with executor.batch():
        jobs = [executor.submit(worker) for _ in range(asked.workers)]
    print(f"{jobs[0].job_id.partition('_')[0]}: {len(jobs)} workers; peftbench status {asked.study} --watch")


if __name__ == "__main__":
    main()
