"""Steps of transformers' Trainer with peft on random weights of a shape, in a process without this bench.

    python scripts/peers/trainer_steps.py '{"model_type": ..., "config": {...}, "method": "lora", "style": "bf16",
                                            "steps": 60, "rows": 32, "width": 64}'

Prints one line of JSON: when each step ended (seconds) and the peak memory (MiB), of the GPU where there is one.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hf_trainer  # type: ignore[import-not-found]  # before torch
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainerCallback


class Clock(TrainerCallback):
    """When each of the Trainer's steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See `TrainerCallback`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def own_peak_mb() -> float:
    """Peak resident MiB of this process; `getrusage` would count that of the process which started it, too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def main() -> None:
    """Train and print."""
    asked = json.loads(sys.argv[1])
    rows, width, config = asked["rows"], asked["width"], asked["config"]
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(asked["model_type"], **config, num_labels=2)
    )
    model = hf_trainer.in_style(hf_trainer.with_method(model, asked["method"]), asked["style"])
    ids = torch.randint(1000, config["vocab_size"], (4 * rows, width))
    data = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist(), "labels": [0, 1] * (2 * rows)}
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = argparse.Namespace(out=folder, steps=asked["steps"], lr=5e-4, seed=0, style=asked["style"])
        arguments = hf_trainer.arguments_for(settings)
        Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(data), callbacks=[clock]).train()
    print(json.dumps({"times": clock.times, "peak_mb": own_peak_mb(), **hf_trainer.device_peak_mb()}))


if __name__ == "__main__":
    main()
