"""Deltas in use: a run as a plain transformers folder, and a run's labels for new rows."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.backbone import low_rank
from peftbench.backbone.weights import weights_folder
from peftbench.config.spec import Protocol as TrainingProtocol
from peftbench.config.spec import TaskSpec
from peftbench.data.split import make_split
from peftbench.data.tokens import tokenize
from peftbench.data.tsv import read_table
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import RECORD_FILE
from peftbench.ground.machine import process_state
from peftbench.record import read_record
from peftbench.runner import readouts
from peftbench.runner.deltas import model_spec, reload
from peftbench.runner.readouts import spec_of
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward
from peftbench.training.metrics import predict


def write_model(run: Path, folder: Path, known: Collection[str] = ()) -> str | None:
    """Write the run's model, its delta merged in, as `AutoModelForSequenceClassification.from_pretrained` loads it.

    Args:
        known: see `deltas.restore`.

    Returns:
        A line that whoever uses the folder should know, if there is one.

    Raises:
        DataError: the run cannot be read.
        ConfigError: its method cannot be merged (adapters), or its readout is a prompt.
    """
    record = read_record(run / RECORD_FILE)
    if readouts.readout_spec(record).kind == "prompt":
        raise ConfigError(f"{run}: its readout is a prompt, and what is written is a classifier")
    model, tuner, _ = reload(run, known)
    note = tuner.merge()
    low_rank.multiply_out(model.module)
    module: Any = model.module.float()
    labels = record.config["task"]["labels"]
    if labels:
        module.config.id2label = dict(enumerate(labels))
        module.config.label2id = {label: i for i, label in enumerate(labels)}
    module.config.problem_type = "single_label_classification" if labels else "regression"
    module.config._attn_implementation = None  # whoever loads it has the library's own
    module.save_pretrained(folder)
    weights = weights_folder(model_spec(record))
    if weights is not None:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(weights, trust_remote_code=False).save_pretrained(folder)
    return note


def label(run: Path, file: Path, cache: Path, known: Collection[str] = ()) -> list[str]:
    """Lines of a TSV with the run's prediction and logits for every row of a file with the task's text columns.

    Args:
        known: see `deltas.restore`.

    Raises:
        DataError: the run or the file cannot be read, or a column is missing.
    """
    record = read_record(run / RECORD_FILE)
    task = spec_of(record, TaskSpec, "task")
    table = read_table(file, task.folder.text)
    rows = make_split("new", tuple(table.columns[column] for column in task.folder.text), None)
    model, _, _ = reload(run, known)
    spec = model_spec(record)
    protocol = spec_of(record, TrainingProtocol, "protocol")
    prompt = readouts.asked(readouts.readout_spec(record), task)
    tokens = tokenize(rows, readouts.tokenizer(prompt, spec, weights_folder(spec)), protocol.max_length, cache)
    forward = Forward(model, protocol.precision, process_state().device)
    logits = Evaluator(forward, task, protocol.eval_batch_size).predict(tokens)
    return _lines(task, logits)


def _lines(task: TaskSpec, logits: np.ndarray) -> list[str]:
    lines = ["\t".join(["index", "prediction", *(task.labels or ["score"])])]
    for i, (row, prediction) in enumerate(zip(logits, predict(logits), strict=True)):
        shown = task.labels[int(prediction)] if task.labels else f"{prediction:.4f}"
        lines.append("\t".join([str(i), shown, *(f"{logit:.5f}" for logit in row)]))
    return lines
