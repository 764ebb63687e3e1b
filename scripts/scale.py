"""How long `status`, the check before a sweep and `table` take with thousands of finished cells, and how long a worker
takes to claim one where all are open.

    python scripts/scale.py [--cells 1000 3000 10000] [--work DIR]

One real run's record is written again for every cell, with the cell's own words and digest. Prints seconds of whole
processes (medians of three), milliseconds per cell from each size to the next, per claim, and bytes per cell.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from peftbench.config import compose
from peftbench.record import Record, find_records, read_record, write_record
from peftbench.study import done, index, sweep
from peftbench.study.queue import Queue

BASE = ["model=bert_tiny", "model.weights=random", "task=sst2", "data=sample", "data.limit=48", "tracker=none"]
BASE += ["protocol.max_steps=6", "progress=false", "method=bitfit"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--work", type=Path, help="default: a temporary folder, removed at the end")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(asked.work or Path(temporary), asked.cells)


def measure(work: Path, sizes: Sequence[int]) -> None:
    """Every size, every command."""
    template = real_record(work)
    measured: dict[str, list[float]] = {}
    claims = []
    for cells in sizes:
        fill(work, f"open{cells}", cells, None)
        claims.append(claim_ms(work, f"open{cells}"))
        words = fill(work, f"n{cells}", cells, template)
        for name, line in (
            ("status", ["status", f"n{cells}", "--outputs", str(work)]),
            ("skip", ["run", "-m", *words]),
            ("table", ["table", f"n{cells}", "--outputs", str(work)]),
        ):
            measured.setdefault(name, []).append(seconds(line))
    costs = {"seconds": measured, "ms_per_cell": per_cell(sizes, measured), "claim_ms": claims}
    print(json.dumps({"cells": list(sizes), **costs, **size_of(work, sizes)}, indent=1))


def real_record(work: Path) -> Record:
    """The record of a run made now."""
    command(["run", *BASE, "study=template", f"outputs={work}"])
    return read_record(next(find_records(work / "template")))


def claim_ms(work: Path, study: str) -> dict[str, float]:
    """Milliseconds until a worker has its next cell, with those before it still held, by the clock and of the
    processor's time: the medians of fifty; and those until it has read the list, which it does once."""
    before = time.perf_counter(), time.process_time()
    queue = Queue(work, study)
    moments = [before, (time.perf_counter(), time.process_time())]
    for _ in range(50):
        if queue.take() is None:
            raise SystemExit(f"{study}: no cell is open")
        moments.append((time.perf_counter(), time.process_time()))
    clock, processor = ([1000 * (b - a) for a, b in itertools.pairwise(times)] for times in zip(*moments, strict=True))
    named = {"clock": statistics.median(clock[1:]), "processor": statistics.median(processor[1:])}
    named |= {"list, clock": clock[0], "list, processor": processor[0]}
    return {name: round(value, 2) for name, value in named.items()}


def fill(work: Path, study: str, cells: int, template: Record | None) -> list[str]:
    """List a study of so many cells, finished ones where there is a record to write; returns the overrides."""
    words = [*BASE, f"study={study}", f"outputs={work}", f"protocol.lr={rates(10)}", f"seed=range({cells // 10})"]
    planned, reads = {}, done.reads_of(compose.cell_from([*BASE, f"study={study}", f"outputs={work}"]))
    for overrides in sweep.cells_of(words):
        given = dict(word.partition("=")[::2] for word in overrides)
        fingerprint = f"{rates(10).split(',').index(given['protocol.lr']):08x}" + "0" * 8
        folder = f"{study}/sst2-bitfit-bert_tiny-{fingerprint[:8]}/seed{given['seed']}"
        if template is not None:
            cell = dataclasses.replace(template.cell, study=study, seed=int(given["seed"]))
            write_record(dataclasses.replace(template, cell=cell, fingerprint=fingerprint), work / folder)
        planned[index.key(overrides)] = index.Planned(folder, overrides, reads)
    index.add(work / study, planned)
    return words


def rates(count: int) -> str:
    """So many learning rates."""
    return ",".join(f"{1e-5 * (number + 1):.6g}" for number in range(count))


def seconds(line: Sequence[str]) -> float:
    """Median of three whole processes."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        command(line)
        taken.append(time.perf_counter() - started)
    return round(statistics.median(taken), 2)


def command(line: Sequence[str]) -> None:
    """Run the `peftbench` command."""
    done = subprocess.run([sys.executable, "-m", "peftbench", *line], capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(f"peftbench {' '.join(line)}: {done.stderr}")


def per_cell(sizes: Sequence[int], seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Milliseconds per cell from each size to the next: equal where growth is linear."""
    steps = list(itertools.pairwise(sizes))
    return {
        name: [
            round(1000 * (after - before) / (more - less), 3)
            for (less, more), (before, after) in zip(steps, itertools.pairwise(taken), strict=True)
        ]
        for name, taken in seconds.items()
    }


def size_of(work: Path, sizes: Sequence[int]) -> dict[str, float]:
    """Bytes per cell: the record, and the study's list of cells."""
    study = work / f"n{sizes[-1]}"
    record = next(find_records(study)).stat().st_size
    return {"record_bytes": record, "index_bytes": round((study / index.FILE).stat().st_size / sizes[-1])}


if __name__ == "__main__":
    main()
