"""Start W workers of a study on an existing Ray cluster, a task for each. Ray is an extra: pip install 'peftbench[ray]'

    python scripts/workers_ray.py big --outputs /shared/outputs --workers 16 --address auto --cores 2 --gpus 1

Ray starts a task again whose process or node died, and workers wait for the last cells. Where this script itself dies,
its workers end with it; give the same command again. Either way nothing is lost: the study's folder knows what is done.
A cluster that asks for a token wants RAY_AUTH_MODE=token here, too (Ray from 2.59 on may ask without being told to).
"""

import argparse
import ctypes
import signal
import subprocess
import sys
from pathlib import Path

import ray

PR_SET_PDEATHSIG = 1  # of Linux: a signal to a process whose parent is gone


def main() -> int:
    """Run the workers to their end; the largest of their exit codes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"), help="a folder that all nodes share")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--address", help="of the cluster; default: what RAY_ADDRESS says, else one of this machine")
    parser.add_argument("--cores", type=float, default=1, help="of each worker")
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--python", default=sys.executable, help="the Python of the nodes that has peftbench")
    asked = parser.parse_args()
    ray.init(address=asked.address, log_to_driver=True)
    line = [asked.python, "-m", "peftbench", "work", asked.study, "--outputs", str(asked.outputs.resolve())]
    line += ["--wait"]
    task = ray.remote(num_cpus=asked.cores, num_gpus=asked.gpus, max_retries=-1)(work)
    return max(ray.get([task.remote(line) for _ in range(asked.workers)]))


def work(line: list[str]) -> int:
    """Be one worker: a process of its own, which is asked to leave when the task ends, even where that is killed. A
    worker that was killed is started again."""
    libc = ctypes.CDLL(None)
    while True:
        process = subprocess.Popen(line, preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM))
        try:
            code = process.wait()
        finally:
            process.terminate()
        if code >= 0:
            return code


if __name__ == "__main__":
    sys.exit(main())
