"""Deltas in use: a run as a plain transformers folder, and a run's labels for new rows."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from peftbench.backbone import low_rank
from peftbench.backbone.weights import weights_folder
from peftbench.config.recorded import part
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
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward
from peftbench.training.metrics import predict


def tasks_of(run: Path) -> list[str]:
    """The tasks that a run learned together; one, where it learned one.

    Raises:
        DataError: its record cannot be read.
    """
    return [task.name for task in readouts.task_of(read_record(run / RECORD_FILE)).parts]


def write_model(run: Path, folder: Path, known: Collection[str] = (), task: str | None = None) -> str | None:
    """Write the run's model, its delta merged in, as `AutoModelForSequenceClassification.from_pretrained` loads it.

    Args:
        known: see `deltas.restore`.
        task: whose head it gets, where the run learned several together.

    Returns:
        A line that whoever uses the folder should know, if there is one.

    Raises:
        DataError: the run cannot be read.
        ConfigError: its method cannot be merged (adapters), its readout is a prompt, or it has no such task.
    """
    record = read_record(run / RECORD_FILE)
    if readouts.readout_spec(record).kind == "prompt":
        raise ConfigError(f"{run}: its readout is a prompt, and what is written is a classifier")
    model, tuner, _ = reload(run, known, task)
    note = tuner.merge()
    low_rank.multiply_out(model.module)
    module: Any = model.module.float()
    labels = readouts.one_task(record, task, run).labels
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


def label(run: Path, file: Path, cache: Path, known: Collection[str] = (), task: str | None = None) -> list[str]:
    """Lines of a TSV with the run's prediction and logits for every row of a file with the task's text columns.

    Args:
        known: see `deltas.restore`.
        task: whose rows these are, where the run learned several together.

    Raises:
        ConfigError: the run has no such task, or several and none is named.
        DataError: the run or the file cannot be read, or a column is missing.
    """
    record = read_record(run / RECORD_FILE)
    asked = readouts.one_task(record, task, run)
    table = read_table(file, asked.folder.text)
    rows = make_split("new", tuple(table.columns[column] for column in asked.folder.text), None)
    model, _, _ = reload(run, known, task)
    spec = model_spec(record)
    protocol = part(record, TrainingProtocol, "protocol")
    prompt = readouts.asked(readouts.readout_spec(record), asked)
    tokens = tokenize(rows, readouts.tokenizer(prompt, spec, weights_folder(spec)), protocol.max_length, cache)
    forward = Forward(model, protocol.precision, process_state().device)
    logits = Evaluator(forward, asked, protocol.eval_batch_size).predict(tokens)
    return _lines(asked, logits)


def _lines(task: TaskSpec, logits: np.ndarray) -> list[str]:
    lines = ["\t".join(["index", "prediction", *(task.labels or ["score"])])]
    for i, (row, prediction) in enumerate(zip(logits, predict(logits), strict=True)):
        shown = task.labels[int(prediction)] if task.labels else f"{prediction:.4f}"
        lines.append("\t".join([str(i), shown, *(f"{logit:.5f}" for logit in row)]))
    return lines
