"""Prove workers on a Ray cluster: a worker, a task and the driver are killed, each cell is done once.

    pip install 'peftbench[ray]' && python scripts/ray_sweep.py [--work DIR]

The cluster is this machine, with room for four workers, and ends with this script. Prints what was checked, one line
each, and exits with 1 at the first thing that is not so.
"""

import argparse
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import proofs  # type: ignore[import-not-found]
import ray
from proofs import CELLS, SCRIPTS, check, contents, training, wait

from peftbench.study import lock

WORKERS = 4
# The cluster's own: where neither is set, Ray asks for a token or does not, by what else was run on the machine.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def main() -> None:
    """Run the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for the outputs; default: a temporary one")
    asked = parser.parse_args()
    outputs = proofs.begin((asked.work or Path(tempfile.mkdtemp(prefix="peftbench-ray-"))).resolve())
    logs = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it
    with cluster(outputs, logs) as address:
        driver = submit(outputs, address)
        try:
            wait(lambda: driver.poll() is not None or proofs.workers(outputs), "workers")
            check("the driver starts workers", driver.poll() is None)
            wait(lambda: len(contents(outputs)) >= 2 and len(training(outputs)) >= 2, "two cells done, two training")
            kill_worker(outputs)
            kill_task(outputs)
            before = kill_driver(outputs, driver)
            driver = submit(outputs, address)
            check("the same command again ends well", driver.wait() == 0)
            after = contents(outputs)
            check("once more, it finds nothing to do", submit(outputs, address).wait() == 0)
            check("and changes nothing", contents(outputs) == after)
        finally:
            driver.kill()
    proofs.check_end(outputs, before, logs.glob("session_*-*/logs/worker-*.out"))


@contextmanager
def cluster(outputs: Path, logs: Path) -> Iterator[str]:
    """A cluster of this machine alone, while this is entered; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    line += [f"--port={port}", f"--num-cpus={WORKERS}", "--num-gpus=0", f"--temp-dir={logs}", "--disable-usage-stats"]
    line += ["--include-dashboard=false", "--object-store-memory=100000000"]
    with (outputs / "ray.txt").open("wb") as screen:
        head = subprocess.Popen(line, stdout=screen, stderr=screen, env=proofs.variables(outputs) | TOKEN)
    try:
        wait(lambda: b"Ray runtime started" in (outputs / "ray.txt").read_bytes(), "Ray to start")
        print(f"     Ray {ray.__version__} on {os.cpu_count()} cores, room for {WORKERS} workers", flush=True)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait()


def submit(outputs: Path, address: str) -> subprocess.Popen[bytes]:
    """Start the workers as people do."""
    line = [sys.executable, str(SCRIPTS / "workers_ray.py"), proofs.STUDY, "--outputs", str(outputs)]
    line += ["--workers", str(WORKERS), "--address", address]
    with (outputs / "driver.txt").open("ab") as screen:
        return subprocess.Popen(line, stdout=screen, stderr=screen, env=proofs.variables(outputs) | TOKEN)


def kill_worker(outputs: Path) -> None:
    """Kill a worker in the middle of a cell; its task starts another."""
    number = proofs.stop_one(outputs)
    before = proofs.workers(outputs)
    os.kill(number, signal.SIGKILL)
    wait(lambda: proofs.workers(outputs) - before, "another worker in its place")
    print(f"     worker {number} killed, {len(contents(outputs))} of {CELLS} cells done", flush=True)


def kill_task(outputs: Path) -> None:
    """Kill the process of a task whose worker is in the middle of a cell: the worker leaves, Ray begins anew."""
    wait(lambda: training(outputs), "a worker in the middle of a cell")
    number = training(outputs)[0]
    before = proofs.workers(outputs)
    task = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(task, signal.SIGKILL)
    wait(lambda: number not in proofs.workers(outputs), "its worker to leave")
    wait(lambda: proofs.workers(outputs) - before, "another task in its place")
    print(f"     task {task} killed, {len(contents(outputs))} of {CELLS} cells done", flush=True)


def kill_driver(outputs: Path, driver: subprocess.Popen[bytes]) -> dict[str, bytes]:
    """Kill the driver, with which its workers end; gives the contents of records from before it is started again."""
    driver.kill()
    driver.wait()
    wait(
        lambda: not proofs.workers(outputs) and not any(map(lock.alive, outputs.rglob(lock.FILE))),
        "workers to end with their driver",
    )
    before = contents(outputs)
    print(f"     the driver killed, {len(before)} of {CELLS} cells done", flush=True)
    check("cells are left for the same command", len(before) < CELLS)
    return before


if __name__ == "__main__":
    main()
