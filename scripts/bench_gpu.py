"""Steps per second and peak memory beside transformers' Trainer with peft: made for a GPU, runs anywhere.

    python scripts/bench_gpu.py [--shapes minilm_l6,bert_base_cased] [--methods lora,bitfit] [--steps 60] [--rounds 3]

Random weights of the named shapes, 32 rows of 64 random tokens, ours in bf16. Every run is a process of its own, and
they take turns; the Trainer's is on one GPU and without this bench's kernels, in fp32, in bf16 and with bf16 weights:
the fastest counts. Random masking and ID3 have no counterpart in peft and stand beside its LoRA and full
fine-tuning. Prints one line of JSON per shape and method; for the share of the bf16 rate see
`bench.py limit --model SHAPE`.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from whole_runs import PEERS, precisions  # type: ignore[import-not-found]

from peftbench.config import compose

METHODS = {  # ours -> the Trainer's
    "lora": (["method=lora"], "lora"),
    "bitfit": (["method=bitfit"], "bitfit"),
    "random masking": (["method=random_masking", "budget.fraction=0.001"], "lora"),
    "id3": (["method=id3", "budget=20000", "method.steps=200"], "full"),
    "full": (["method=full"], "full"),
}

Run = dict[str, float]


def one(shape: str, method: str, steps: int) -> dict[str, Any]:
    """Our step in this process, over and over: when each ended (s), and the peak memory (MiB)."""
    import bench_selective  # type: ignore[import-not-found]  # before torch
    import torch

    from peftbench.runner.provenance import peak_memory_mb, reset_peak_memory

    reset_peak_memory()
    step, times = bench_selective.stepper(f"model={shape}", *METHODS[method][0]), []
    for _ in range(steps):
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    return {"times": times, "peak_mb": peak_memory_mb()}


def ours(shape: str, method: str, steps: int) -> Run:
    """The same in a process of its own."""
    return measured_alone([__file__, "--one", "--shapes", shape, "--methods", method, "--steps", str(steps)])


def theirs(shape: str, method: str, steps: int, style: str) -> Run:
    """The Trainer's steps."""
    spec = compose.cell_from([f"model={shape}", "tracker=none"]).model
    of_model = {"model_type": spec.model_type, "config": dict(spec.config), "method": method, "style": style}
    asked = json.dumps({**of_model, "steps": steps, "rows": 32, "width": 64})
    return measured_alone([str(PEERS / "trainer_steps.py"), asked])


def measured_alone(line: Sequence[str]) -> Run:
    """Steps per second by the median step, the first fifth left out, and the peak memory, of a process that says so."""
    done = subprocess.run([sys.executable, *line], stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    warm = said["times"][len(said["times"]) // 5 :]
    median = statistics.median(b - a for a, b in itertools.pairwise(warm))
    return {"steps_per_s": round(1 / median, 2), "peak_mb": round(said["peak_mb"], 1)}


def beside(shape: str, method: str, steps: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns: medians, and the ratio to the Trainer's fastest precision round by round."""
    other = METHODS[method][1]
    runs: dict[str, list[Run]] = {}
    for _ in range(rounds):
        runs.setdefault("ours", []).append(ours(shape, method, steps))
        for style in precisions(other):
            runs.setdefault(f"Trainer, {other} in {style}", []).append(theirs(shape, other, steps, style))
    medians = {
        name: {key: statistics.median(run[key] for run in some) for key in some[0]} for name, some in runs.items()
    }
    best = max((name for name in medians if name != "ours"), key=lambda name: medians[name]["steps_per_s"])
    ratios = [a["steps_per_s"] / b["steps_per_s"] for a, b in zip(runs["ours"], runs[best], strict=True)]
    found = {"ours": medians["ours"], best: medians[best], "ours / theirs": round(statistics.median(ratios), 2)}
    return {
        "shape": shape,
        "method": method,
        **found,
        "least": round(min(ratios), 2),
        "greatest": round(max(ratios), 2),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="minilm_l6,bert_base_cased")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.shapes, asked.methods, asked.steps)))
        return
    for shape, method in itertools.product(asked.shapes.split(","), asked.methods.split(",")):
        print(json.dumps(beside(shape, method, asked.steps, asked.rounds)), flush=True)


if __name__ == "__main__":
    main()
