"""One cell as people run it without this bench: transformers' Trainer with peft, at its best or as run_glue does.

    python scripts/peers/hf_trainer.py --style bf16 --task rte --data GLUE --method lora --steps 100 --weights DIR

`fp32`, `bf16` and `bf16_weights` are the Trainer at its best in that precision: rows grouped by length and padded to
the longest of their batch, fused AdamW, no reports, no checkpoints. `bf16` is autocast, `bf16_weights` the same with
frozen matrices loaded in bf16; which is fastest depends on the machine. `run_glue` is the example script's way: fp32,
rows padded to 128 tokens. Nothing of this bench is imported. Prints one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import one_gpu  # type: ignore[import-not-found]  # noqa: F401  # before torch
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

STYLES = ("fp32", "bf16", "bf16_weights", "run_glue")
METHODS = ("full", "head", "bitfit", "lora", "lora_six", "top")
ModelMaker = Callable[[str, str], Any]  # folder of the weights, method
OptimizerMaker = Callable[[Any, int, float], tuple[Any, Any]]  # model, steps, learning rate

TASKS = {
    "rte": ("RTE", ("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "mrpc": ("MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1")),
}
QUERY_AND_VALUE = {"mpnet": ["q", "v"]}  # architecture -> what others call query and value
SIX = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


def rows(root: Path, task: str, split: str, tokenizer: Any, style: str) -> Dataset:
    """A split, tokenised."""
    folder, texts, label, labels = TASKS[task]
    frame = pd.read_csv(
        root / folder / f"{split}.tsv", sep="\t", quoting=3, dtype=str, keep_default_na=False, encoding="utf-8-sig"
    )
    padding = "max_length" if style == "run_glue" else False
    encoded = tokenizer(*[list(frame[text]) for text in texts], truncation=True, max_length=128, padding=padding)
    return Dataset.from_dict({**encoded, "labels": [labels.index(value) for value in frame[label]]})


def model_for(weights: str, method: str) -> Any:
    """The model with the method applied."""
    return with_method(AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2), method)


def with_method(model: Any, method: str) -> Any:
    """A method, as peft or a few lines of a user's own apply it."""
    if method.startswith("lora"):
        query_and_value = QUERY_AND_VALUE.get(model.config.model_type, ["query", "value"])
        targets = SIX if method == "lora_six" else query_and_value
        config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=targets)
        return get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        top = f"encoder.layer.{model.config.num_hidden_layers - 1}." in name
        trained = {"full": True, "head": False, "bitfit": name.endswith("bias"), "top": top}[method]
        parameter.requires_grad_(trained or name.startswith("classifier"))
    return model


def in_style(model: Any, style: str) -> Any:
    """The model with frozen matrices in bf16, where the style says so; what trains stays in fp32."""
    for parameter in model.parameters():
        if style == "bf16_weights" and parameter.ndim > 1 and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


def arguments_for(asked: argparse.Namespace) -> TrainingArguments:
    """Settings of the Trainer."""
    best = {"optim": "adamw_torch_fused", "train_sampling_strategy": "group_by_length", "bf16": asked.style != "fp32"}
    return TrainingArguments(
        output_dir=str(asked.out),
        max_steps=asked.steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=8 if asked.style == "run_glue" else 128,
        learning_rate=asked.lr,
        warmup_steps=int(0.06 * asked.steps),
        seed=asked.seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **({} if asked.style == "run_glue" else best),
    )


def device_peak_mb() -> dict[str, float]:
    """Peak MiB of the GPU's memory; nothing without one, where the process's own is measured from outside."""
    return {"peak_mb": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}


def main(make_model: ModelMaker = model_for, make_optimizers: OptimizerMaker = lambda *_: (None, None)) -> None:
    """Train, evaluate once, print. Another peer may give the model and the optimizer with its schedule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--style", choices=STYLES, default="bf16")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data", type=Path, required=True, help="GLUE in the official layout")
    parser.add_argument("--weights", required=True, help="folder of the pretrained model")
    parser.add_argument("--method", default="lora", choices=METHODS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a folder that the Trainer may use")
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.weights)
    train, dev = (rows(asked.data, asked.task, split, tokenizer, asked.style) for split in ("train", "dev"))
    model = in_style(make_model(asked.weights, asked.method), asked.style)
    trainer = Trainer(
        model=model,
        optimizers=make_optimizers(model, asked.steps, asked.lr),
        args=arguments_for(asked),
        train_dataset=train,
        eval_dataset=dev,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    predictions = trainer.predict(dev)
    accuracy = float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))
    facts = {"accuracy": round(accuracy, 4), "train_s": round(seconds, 3), "steps": trainer.state.global_step}
    print(json.dumps(facts | device_peak_mb()))


if __name__ == "__main__":
    main()
