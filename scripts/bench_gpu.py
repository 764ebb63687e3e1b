"""Steps per second and peak memory beside transformers' Trainer with peft: made for a GPU, runs anywhere.

    python scripts/bench_gpu.py [--shapes minilm_l6,bert_base_cased] [--methods lora,bitfit,...] [--steps 60]

Random weights of the named shapes, 32 rows of 64 random tokens, bf16, both sides in one process. Random masking and ID3
have no counterpart in peft and stand beside its LoRA and full fine-tuning. Prints one line of JSON per shape and
method; for the share of the bf16 rate see `bench.py limit --model SHAPE`.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from typing import Any

import bench_selective  # type: ignore[import-not-found]
import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from datasets import Dataset
from peers.hf_trainer import QUERY_AND_VALUE  # type: ignore[import-not-found]
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from peftbench.config import compose
from peftbench.runner.provenance import peak_memory_mb, reset_peak_memory

METHODS = {  # ours -> the Trainer's
    "lora": (["method=lora"], "lora"),
    "bitfit": (["method=bitfit"], "bitfit"),
    "random masking": (["method=random_masking", "budget.fraction=0.001"], "lora"),
    "id3": (["method=id3", "budget=20000", "method.steps=200"], "full"),
    "full": (["method=full"], "full"),
}


def settle() -> None:
    """Wait for what a GPU was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Clock(TrainerCallback):
    """When each of the Trainer's steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See `TrainerCallback`."""
        settle()
        self.times.append(time.perf_counter())


def ours(shape: str, words: list[str], steps: int) -> dict[str, float]:
    """Our step, over and over."""
    reset_peak_memory()
    step, times = bench_selective.stepper(f"model={shape}", *words), []
    for _ in range(steps):
        step()
        settle()
        times.append(time.perf_counter())
    return rate(times)


def theirs(shape: str, method: str, steps: int) -> dict[str, float]:
    """The Trainer's: bf16, fused AdamW, nothing logged or saved."""
    reset_peak_memory()
    spec = compose.cell_from([f"model={shape}", "tracker=none"]).model
    model: Any = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(spec.model_type, **spec.config, num_labels=2)
    )
    if method == "lora":
        targets = QUERY_AND_VALUE.get(spec.model_type, ["query", "value"])
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=targets)
        model = get_peft_model(model, config)
    elif method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier"))
    rows, width = bench_selective.BATCH, bench_selective.WIDTH
    ids = torch.randint(1000, int(spec.config["vocab_size"]), (4 * rows, width))
    data = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.randint(0, 2, (4 * rows,))}
    ).with_format("torch")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=rows,
            bf16=True,
            optim="adamw_torch_fused",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=data, callbacks=[clock]).train()
    return rate(clock.times)


def rate(times: list[float]) -> dict[str, float]:
    """Steps per second by the median step, the first fifth left out, and the peak memory."""
    warm = times[len(times) // 5 :]
    median = statistics.median(b - a for a, b in itertools.pairwise(warm))
    return {"steps_per_s": round(1 / median, 2), "peak_mb": round(peak_memory_mb(), 1)}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="minilm_l6,bert_base_cased")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    for shape in asked.shapes.split(","):
        for name in asked.methods.split(","):
            words, other = METHODS[name]
            one, two = ours(shape, words, asked.steps), theirs(shape, other, asked.steps)
            ratio = round(one["steps_per_s"] / two["steps_per_s"], 2)
            line = {"shape": shape, "method": name, "ours": one, f"Trainer, {other}": two, "ours / theirs": ratio}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
