"""What a busy neighbour costs a run, with threads that wait passively (our default) and as libgomp has it (it spins).

    python scripts/bench_shared.py [--steps 20] [--rounds 3]

Whole processes of `peftbench run` (LoRA, MiniLM, the built-in sample, on all cores) take turns: alone; beside a process
that computes on one thread; two of them at once. Prints seconds as they are measured, and a Markdown table: medians,
least and greatest.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# 300,000 turns are what libgomp spins where no policy is set; ACTIVE would spin practically for ever.
WAITING = {"passive": {"OMP_WAIT_POLICY": "PASSIVE"}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
COMPANY = ("alone", "beside a busy process", "two runs at once")


def command(steps: int, study: str) -> list[str]:
    """One run of so many steps of 32 rows."""
    return [
        sys.executable, "-m", "peftbench", "run", "method=lora", "task=sst2", "data=sample", "tracker=none",
        f"protocol.max_steps={steps}", f"study={study}", "rerun=all", "progress=false",
    ]  # fmt: skip


def seconds(waiting: str, company: str, steps: int, folder: Path) -> float:
    """How long one run took; of two at once, the longer."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))} | WAITING[waiting]
    runs = 2 if company == COMPANY[2] else 1
    with _neighbour() if company == COMPANY[1] else contextlib.nullcontext():
        started = time.perf_counter()
        running = [
            subprocess.Popen(command(steps, f"s{nth}"), cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            for nth in range(runs)
        ]
        ended = [process.wait() for process in running]
        if any(ended):
            raise SystemExit("a run failed")
        return time.perf_counter() - started


@contextlib.contextmanager
def _neighbour() -> Iterator[None]:
    """A process that computes all the time, on one thread."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    taken = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        seconds("passive", "alone", 1, Path(folder))  # kernels are compiled, tokens cached
        for _ in range(asked.rounds):
            for company in COMPANY:
                for waiting in WAITING:
                    taken[company, waiting].append(seconds(waiting, company, asked.steps, Path(folder)))
                    print(f"{company}, {waiting}: {taken[company, waiting][-1]:.1f} s", file=sys.stderr, flush=True)
    print("| threads wait |", " | ".join(COMPANY), "|\n|---|" + "---:|" * len(COMPANY))
    for waiting in WAITING:
        cells = (taken[company, waiting] for company in COMPANY)
        shown = (f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})" for times in cells)
        print(f"| {waiting} |", " | ".join(shown), "|")


if __name__ == "__main__":
    main()
