"""What a ladder beside the backbone (LST) costs: its step, what a step keeps for the way back, and its peak memory.

    python scripts/bench_ladder.py [--model minilm_l6] [--rounds 15]

Random weights, 32 rows of 64 random tokens, bf16, beside full fine-tuning, LoRA, BitFit and the head alone; "kept" is
protocol.keep_prefix=true. The methods take turns in one process, whose own processor time is counted, so that other
work on the machine is not (on a GPU the wall's); every peak is that of a process of its own. Prints JSON: ms, MiB, and
shares of LoRA's.
"""

import argparse
import json
import subprocess
import sys

import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from bench_pruned import stepper  # type: ignore[import-not-found]
from bench_selective import BATCH, alternating, own_time, trainer_of  # type: ignore[import-not-found]
from torch.profiler import ProfilerActivity, profile

from peftbench.runner.provenance import peak_memory_mb, reset_peak_memory
from peftbench.training.trainer import Trainer

LST, KEPT = ["method=lst", "method.init=random"], "protocol.keep_prefix=true"  # how layers start costs no step anything
METHODS = {
    "full": ["method=full"],
    "lora": ["method=lora"],
    "bitfit": ["method=bitfit"],
    "head": ["method=head"],
    "lst": LST,
    "lst, every second rung": [*LST, "method.every=2"],
    "head, kept": ["method=head", KEPT],
    "lst, kept": [*LST, KEPT],
    "lst, every second rung, kept": [*LST, "method.every=2", KEPT],
}


def saved_mb(trainer: Trainer) -> float:
    """MiB of tensors that a forward pass leaves behind for the way back, on the device that computes."""
    trainer.model.module.train()
    rows = torch.arange(BATCH).numpy()
    trainer.loss(rows).backward()  # kernels are loaded, tables made
    before = torch.cuda.memory_allocated()  # 0 without a GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = trainer.loss(rows)
    on_cpu = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    kept = torch.cuda.memory_allocated() - before if torch.cuda.is_available() else on_cpu
    loss.backward()
    trainer.optimizer.zero_grad(set_to_none=True)
    return round(kept / 2**20, 1)


def peak_mb(name: str, model: str) -> float:
    """Peak MiB of 10 steps of one method, the first among them: of the GPU, or resident in this process."""
    step = stepper(trainer_of(*METHODS[name], f"model={model}"))
    reset_peak_memory()
    for _ in range(10):
        step()
    return peak_memory_mb()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="minilm_l6", help="whose shape")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak", choices=METHODS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print(peak_mb(asked.peak, asked.model))
        return
    trainers = {name: trainer_of(*words, f"model={asked.model}") for name, words in METHODS.items()}
    times = alternating({name: stepper(t) for name, t in trainers.items()}, asked.rounds, own_time)
    columns = {
        "step_ms": {name: row["median_ms"] for name, row in times.items()},
        "least_step_ms": {name: row["min_ms"] for name, row in times.items()},
        "saved_mb": {name: saved_mb(trainer) for name, trainer in trainers.items()},
        "peak_mb": {name: _alone(name, asked.model) for name in METHODS},
    }
    shares = {
        what: {name: round(value / column["lora"], 3) for name, value in column.items()}
        for what, column in columns.items()
    }
    print(json.dumps({**columns, "of LoRA's": shares}, indent=1))


def _alone(name: str, model: str) -> float:
    command = [sys.executable, __file__, "--model", model, "--peak", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
