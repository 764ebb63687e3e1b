"""This bench beside what people would use instead: whole processes, alternating, on real RTE and MRPC.

    python scripts/bench.py cell --data GLUE [--rounds 3] [--steps 60]   one cell against Trainer + peft
    python scripts/bench.py sweep --data GLUE [--steps 20]               36 cells against 36 scripts
    python scripts/bench.py limit                                        share of the matrix-product rate
    python scripts/bench.py commands                                     --help, count

Prints JSON and a Markdown table: medians with least and greatest, and the ratio pair by pair. Both sides have the same
model, rows, batch size, steps, learning rate; their scores stand beside the times.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peftbench import compose, results
from peftbench.models import weights_folder

PEER = Path(__file__).parent / "peers" / "hf_trainer.py"
METHODS = {  # the peer's word -> what an experiment of that name says in ours
    "full": "defaults: [override /method: full]",
    "head": "defaults: [override /method: head]",
    "bitfit": "defaults: [override /method: bitfit]",
    "lora": "defaults: [override /method: lora]",
    "lora_six": "defaults: [override /method: lora]\n"
    "method: {kinds: [query, key, value, attention_output, intermediate, output]}",
    "top": "defaults: [override /method: full]\nscope: {layers: 5}",
}
TASKS, SEEDS = ("rte", "mrpc"), range(3)
LR = 5e-4


@dataclass
class Sample:
    """One process: seconds from start to end, its peak resident MiB, and the dev accuracy it reached."""

    seconds: float
    peak_mb: float
    accuracy: float | None


def process(command: Sequence[str], accuracy: Callable[[str], float | None], environment: dict[str, str]) -> Sample:
    """Run a command to its end and measure it."""
    with tempfile.TemporaryFile("w+") as screen:
        started = time.perf_counter()
        running = subprocess.Popen(command, stdout=screen, stderr=subprocess.DEVNULL, env=os.environ | environment)
        _, status, usage = os.wait4(running.pid, 0)
        seconds = time.perf_counter() - started
        running.returncode = os.waitstatus_to_exitcode(status)
        screen.seek(0)
        text = screen.read()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {running.returncode}\n{text}")
    return Sample(round(seconds, 2), round(usage.ru_maxrss / 1024, 1), accuracy(text))


def ours(words: Sequence[str], data: Path, work: Path, steps: int) -> Sample:
    """Our command, with nothing cached from before."""
    with tempfile.TemporaryDirectory(dir=work) as fresh:
        line = [
            "run", *words, "data=folder", f"data.path={data}", f"outputs={fresh}/out", "tracker=none", "progress=false",
            f"protocol.max_steps={steps}", f"protocol.evaluate_every={steps}", f"protocol.lr={LR}",
        ]  # fmt: skip

        def score(_: str) -> float | None:
            found = [results.read(path) for path in results.find(Path(fresh) / "out" / "default")]
            return found[0].metrics.evaluations[-1]["metrics"]["accuracy"] if len(found) == 1 else None

        return process([sys.executable, "-m", "peftbench", *line], score, {"PEFTBENCH_CACHE": f"{fresh}/cache"})


def theirs(style: str, task: str, method: str, data: Path, work: Path, steps: int, seed: int = 0) -> Sample:
    """The peer's script."""
    weights = weights_folder(compose.cell_from(["tracker=none"]).model)
    line = ["--style", style, "--task", task, "--method", method, "--steps", str(steps), "--lr", str(LR)]
    line += ["--data", str(data), "--weights", str(weights), "--out", str(work / "trainer"), "--seed", str(seed)]
    return process([sys.executable, str(PEER), *line], lambda text: json.loads(text.splitlines()[-1])["accuracy"], {})


def cell(data: Path, work: Path, rounds: int, steps: int) -> dict[str, object]:
    """One LoRA cell per task: ours, Trainer + peft at its best, run_glue's defaults, taking turns."""
    samples: dict[str, list[Sample]] = {}
    for _, task in itertools.product(range(rounds), ("rte", "mrpc")):
        samples.setdefault(f"{task} ours", []).append(ours([f"task={task}", "method=lora"], data, work, steps))
        for style in ("best", "run_glue"):
            samples.setdefault(f"{task} {style}", []).append(theirs(style, task, "lora", data, work, steps))
    found: dict[str, object] = {name: summary(values) for name, values in samples.items()}
    for task, style in itertools.product(("rte", "mrpc"), ("best", "run_glue")):
        pairs = list(zip(samples[f"{task} ours"], samples[f"{task} {style}"], strict=True))
        found[f"{task} ours / {style}"] = {
            "time": round(statistics.median(a.seconds / b.seconds for a, b in pairs), 3),
            "memory": round(statistics.median(a.peak_mb / b.peak_mb for a, b in pairs), 3),
        }
    return found


def summary(samples: Sequence[Sample]) -> dict[str, object]:
    """Median, least and greatest."""
    seconds = [sample.seconds for sample in samples]
    return {
        "seconds": [statistics.median(seconds), min(seconds), max(seconds)],
        "peak_mb": statistics.median(sample.peak_mb for sample in samples),
        "accuracy": [sample.accuracy for sample in samples],
    }


def sweep(data: Path, work: Path, steps: int) -> dict[str, object]:
    """36 cells (six methods, two tasks, three seeds): our sweep, a script per cell, and both, a process per core."""
    for name, text in METHODS.items():
        (work / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
        (work / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    line = ["-m", f"hydra.searchpath=[file://{work / 'conf'}]", f"experiment={','.join(METHODS)}"]
    line += [f"task={','.join(TASKS)}", f"seed={','.join(map(str, SEEDS))}"]
    cells = list(itertools.product(METHODS, TASKS, SEEDS))

    def scripts(at_once: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda cell: theirs("best", cell[1], cell[0], data, work, steps, cell[2]), cells))
        return round(time.perf_counter() - started, 1)

    both = os.cpu_count() or 2
    found: dict[str, object] = {"ours": ours(line, data, work, steps).seconds}
    found["scripts"] = scripts(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    found[f"ours, {both} at a time"] = ours(
        [*line, "hydra/launcher=local", f"hydra.launcher.n_jobs={both}"], data, work, steps
    ).seconds
    found[f"scripts, {both} at a time"] = scripts(both)
    return found


def limit() -> dict[str, object]:
    """Model FLOPs per second of a training step, as a share of the matrix-product rate of the same moment."""
    import torch
    from bench_selective import BATCH, WIDTH, alternating, stepper  # type: ignore[import-not-found]

    tokens, hidden, inner, layers = BATCH * WIDTH, 384, 1536, 6
    one, other = torch.randn(tokens, hidden).bfloat16(), torch.randn(hidden, inner).bfloat16()

    def products() -> None:
        for _ in range(100):
            one @ other

    forward = layers * (2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 4 * BATCH * WIDTH * WIDTH * hidden)
    passes = {"lora": 2, "bitfit": 2, "full": 3}  # frozen weights need no gradient of their own
    times = alternating({"products": products, **{name: stepper(f"method={name}") for name in passes}})
    rate = 100 * 2 * tokens * hidden * inner / times["products"]["median_ms"]
    return {
        "products_gflops": round(rate / 1e6, 1),
        **{
            name: {**times[name], "share": round(count * forward / times[name]["median_ms"] / rate, 3)}
            for name, count in passes.items()
        },
    }


def commands() -> dict[str, object]:
    """Seconds of commands that a person waits for."""
    lines = {
        "--help": ["--help"],
        "count lora, bert_large_cased": ["count", "model=bert_large_cased", "method=lora"],
        "count every method, bert_large_cased": ["count", "model=bert_large_cased", "method=glob(*)"],
        "count --paper spafit": ["count", "--paper", "spafit"],
    }
    return {
        name: statistics.median(
            process([sys.executable, "-m", "peftbench", *line], lambda _: None, {}).seconds for _ in range(3)
        )
        for name, line in lines.items()
    }


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cell", "sweep", "limit", "commands"))
    parser.add_argument("--data", type=Path, help="GLUE in the layout of the official download")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    if asked.what in ("cell", "sweep") and asked.data is None:
        parser.error("--data GLUE")
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        found = {
            "cell": lambda: cell(asked.data.resolve(), work, asked.rounds, asked.steps),
            "sweep": lambda: sweep(asked.data.resolve(), work, asked.steps),
            "limit": limit,
            "commands": commands,
        }[asked.what]()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
