"""What several test modules use: the small cell's words, the command in a process of its own, a run taken apart."""

import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import warm
from torch.profiler import ProfilerActivity, profile

from peftbench.backbone.model import Model, compute_precision, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data.rows import rows_of
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens
from peftbench.methods.base import Tuner
from peftbench.record import MEASURED, find_records, read_record
from peftbench.runner import deltas, readouts
from peftbench.runner.run import Outcome, read_rows, tokenize_rows, tokenizing
from peftbench.training.trainer import Trainer

# A two-layer BERT with random weights on the built-in sample: a run takes about a second.
TINY = [
    "model=bert_tiny",
    "model.weights=random",
    "model.config.vocab_size=2000",
    "task=sst2",
    "data=sample",
    "data.limit=48",
    "tracker=none",
    "tracker.log_every=1",
    "protocol.max_length=24",
    "protocol.batch_size=8",
    "protocol.max_steps=6",
    "progress=false",
]
Signal = Callable[[int], None]  # sends a signal in the middle of that step; 0: of none
LOOK = 0.02  # seconds between two looks at a process
PYTHON = [sys.executable, "-m", "peftbench"]


def call(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, forked where the libraries are imported."""
    return warm.run(words, cwd, {**os.environ, **environment})


def begin(*words: str, cwd: Path, **environment: str) -> warm.Running:
    """Begin the command in a process of its own, forked where the libraries are imported; it goes on meanwhile."""
    return warm.Running(words, cwd, {**os.environ, **environment})


def start(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a shell starts it; every command has a test that does."""
    return subprocess.run(
        [*PYTHON, *words], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def until(true: Callable[[], object], process: subprocess.Popen[str] | warm.Running) -> None:
    """Wait until something holds of a process that goes on; between two looks nothing is taken from it."""
    while not true():
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)
            raise AssertionError(f"it ended first, with exit code {process.returncode}")


def losses(folder: Path) -> list[float]:
    """The training losses that a run logged, in the order of its steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def records(where: Path) -> dict[str, bytes]:
    """Every record of the study "pilot", by its path."""
    return {str(path.relative_to(where)): path.read_bytes() for path in find_records(where / "outputs" / "pilot")}


def assemble(cell: Cell) -> tuple[Model, Tuner, Trainer]:
    """Model, tuner and trainer of a cell, as `run` makes them."""
    tokens = tokens_of(cell)
    readout = readouts.made(cell.readout, cell.task, cell.model, None)
    model, _ = load_model(cell.model, cell.task.num_labels, cell.seed, readout)
    tuner = deltas.attach(cell.attachment, model, cell.seed)
    compute_precision(model, cell.protocol.precision, [*tuner.trainables().values(), *dict(model.head()).values()])
    trainer = Trainer(
        model, tuner, cell.protocol, cell.task, tokens["train"], {"dev": tokens["dev"]}, "accuracy", cell.seed
    )
    return model, tuner, trainer


def updating(old: Path, new: Path) -> list[str]:
    """The words of an update of a newer run that an older one teaches."""
    return ["objective=muscle", f"objective.old={old}", f"init_from={new}"]


def bridged() -> list[str]:
    """The words of methods that peft runs."""
    paths = sorted((compose.conf_dir() / "method").glob("[a-z0-9]*.yaml"))
    return [path.stem for path in paths if "[_peft" in path.read_text(encoding="utf-8")]


def plain(name: str) -> str:
    """A parameter's name without what peft puts into it where a module is wrapped."""
    return name.replace(".base_layer.", ".")


def values(model: Model) -> dict[str, torch.Tensor]:
    """A copy of every parameter, by the name that it has in the plain model."""
    return {plain(name): p.detach().clone() for name, p in model.module.named_parameters()}


def tokens_of(cell: Cell, rows: Mapping[str, Split] | None = None, weights: Path | None = None) -> Mapping[str, Tokens]:
    """Token ids of a cell's rows."""
    rows = read_rows(rows_of(cell)) if rows is None else rows
    return tokenize_rows(rows, tokenizing(cell, weights))


def what_is_left(outcome: Outcome) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record without what is measured and what says where it lies, and every other file's bytes."""
    folder = outcome.path.parent
    raw = asdict(read_record(outcome.path))
    for key in (*MEASURED, "overrides", "config"):
        del raw[key]
    files = ["delta.safetensors", "predictions/dev.tsv"]
    assert not list(folder.glob("*checkpoint*"))
    return raw, {name: (folder / name).read_bytes() for name in files}


def logged(outcome: Outcome) -> list[str]:
    lines = (outcome.path.parent / "metrics.jsonl").read_text().splitlines()
    return [line.partition('"tokens_per_s"')[0] for line in lines]


def left_after(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes of tensors that a forward pass leaves behind for the way back, what it gives included."""
    forward()  # kernels are loaded
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = forward()
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def kept_by_a_layer(*words: str) -> float:
    """What a layer of the small cell keeps for the way back, in hidden states of fp32, by two depths."""
    found = []
    for depth in (2, 4):
        more = [f"model.config.num_hidden_layers={depth}", "protocol.precision=fp32"]
        model, _, trainer = assemble(compose.cell_from([*TINY, *words, *more]))
        assert trainer.train is not None
        rows = np.arange(8)
        trainer.begin(6)
        model.module.train()
        size = int(model.module.config.hidden_size)
        hidden_states = size * 4 * trainer.forward.batch(trainer.train, rows).inputs["input_ids"].numel()
        found.append(left_after(functools.partial(trainer.loss, rows)) / hidden_states)
    return (found[1] - found[0]) / 2
