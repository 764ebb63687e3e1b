"""Whole processes, ours and what people would use instead: how long one takes, its peak memory, its score."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftbench.record import find_records, read_record

PEERS = Path(__file__).parent / "peers"
PRODUCTS = Path(__file__).parent / "products.py"
LR = 5e-4
PRECISIONS = ("fp32", "bf16", "bf16_weights")  # a user's choices for the Trainer


@dataclass(frozen=True)
class Sample:
    """One process.

    Attributes:
        seconds: from start to end.
        peak_mb: peak MiB: of the GPU where it computes on one, else resident memory.
        accuracy: on dev, at the end; None where it scored nothing.
        train_s: seconds of its optimizer steps alone.
    """

    seconds: float
    peak_mb: float
    accuracy: float | None = None
    train_s: float | None = None


def process(command: Sequence[str], said: Callable[[str], Mapping[str, Any]], environment: dict[str, str]) -> Sample:
    """Run a command to its end and measure it.

    Args:
        said: what it says of itself in what it prints: accuracy, train_s and a GPU's peak, as far as it knows.

    Raises:
        SystemExit: it fails.
    """
    with tempfile.TemporaryFile("w+") as screen:
        started = time.perf_counter()
        running = subprocess.Popen(command, stdout=screen, stderr=subprocess.STDOUT, env=os.environ | environment)
        _, status, usage = os.wait4(running.pid, 0)
        seconds = time.perf_counter() - started
        running.returncode = os.waitstatus_to_exitcode(status)
        screen.seek(0)
        text = screen.read()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {running.returncode}\n{text}")
    return Sample(**{"seconds": round(seconds, 2), "peak_mb": round(usage.ru_maxrss / 1024, 1), **said(text)})


def ours(words: Sequence[str], data: Path, work: Path, steps: int, lr: float = LR) -> Sample:
    """Our command; no rows or tokens are cached. Code that numba compiled is kept from the first run on."""
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        line = [
            "run", *words, "data=folder", f"data.path={data}", f"outputs={fresh}/out", "tracker=none", "progress=false",
            f"protocol.max_steps={steps}", f"protocol.evaluate_every={steps}", f"protocol.lr={lr}",
        ]  # fmt: skip

        def said(_: str) -> dict[str, float | None]:
            records = [read_record(path) for path in find_records(Path(fresh) / "out" / "default")]
            if len(records) != 1:
                return {}
            record = records[0]
            facts = {"accuracy": record.metrics.evaluations[-1].metrics["accuracy"], "train_s": record.time.train_s}
            return facts if record.hardware.device == "cpu" else {**facts, "peak_mb": record.memory.peak_mb}

        return process([sys.executable, "-m", "peftbench", *line], said, {"PEFTBENCH_CACHE": f"{fresh}/cache"})


def precisions(method: str) -> tuple[str, ...]:
    """In which the Trainer may run a method: where all matrices train, none can be loaded in bf16."""
    return PRECISIONS[:2] if method in ("full", "id3") else PRECISIONS


def theirs(
    style: str, task: str, method: str, data: Path, weights: Path, work: Path, steps: int, seed: int = 0, lr: float = LR
) -> Sample:
    """A peer's script in a process without this bench: hf_trainer.py in one of its styles, for ID3 its authors' own."""
    own = method == "id3"
    line = [str(PEERS / ("selective_optimizers_trainer.py" if own else "hf_trainer.py")), "--style", style]
    line += ["--task", task, "--steps", str(steps), "--lr", str(lr), "--data", str(data), "--weights", str(weights)]
    line += ["--out", str(work / "trainer"), "--seed", str(seed), "--method", "full" if own else method]

    def said(text: str) -> dict[str, float]:
        line = json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))
        return {key: line[key] for key in ("accuracy", "train_s", "peak_mb") if key in line}

    return process([sys.executable, *line], said, {})


def products_rate() -> float:
    """GFLOP/s of this machine's products of matrices, by a process of its own: this one stays small.

    A process that is started has at least the peak of the one that starts it.
    """
    done = subprocess.run([sys.executable, str(PRODUCTS)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)
