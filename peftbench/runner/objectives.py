"""What a cell's training makes small; the runs that teach it answer every row of train once, before it begins."""

from collections.abc import Callable
from pathlib import Path

import torch

from peftbench.backbone.model import compute_precision
from peftbench.config.parents import parents
from peftbench.config.spec import Cell
from peftbench.config.validate import classes_of
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.ground.machine import process_state
from peftbench.record import read_record
from peftbench.runner import deltas, readouts
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward
from peftbench.training.muscle import Muscle
from peftbench.training.objective import Objective


def check(cell: Cell) -> None:
    """See that the runs that an update is made of are still those that the cell was composed with, and can teach it.

    Raises:
        ConfigError: the older run's backbone has too few positions for this cell's rows.
        DataError: a run has learned something else since.
    """
    if not cell.objective.updates:
        return
    for key, (folder, sha256) in parents(cell).items():
        record = read_record(folder / RECORD_FILE)
        if record.hashes.delta != sha256:
            raise DataError(f"{key}={folder}: was run again since; the same command goes on with what it learned now")
        model = deltas.model_spec(record)
        if cell.protocol.max_length > model.positions:
            there = f"the backbone of {key} has {model.positions} positions"
            raise ConfigError(f"protocol.max_length={cell.protocol.max_length}: {there}")


def made(cell: Cell, train: Tokens | None, check: Callable[[], None] = lambda: None) -> Objective | None:
    """The objective; None: the task's own loss.

    Args:
        train: the rows that will train.
        check: called between batches of the teachers; may raise to leave.

    Raises:
        DataError: a teacher cannot be read.
    """
    asked = cell.objective
    if not asked.updates or train is None:
        return readouts.objective(cell.readout, cell.task)
    nobody = torch.empty(0, cell.task.num_labels)
    old = _answers(cell, str(asked.old), train, check) if asked.asks_old else nobody
    new = _answers(cell, str(cell.init_from), train, check) if asked.asks_new else nobody
    return Muscle(asked.teacher, asked.temperature, asked.mix, old, new)


def _answers(cell: Cell, run: str, train: Tokens, check: Callable[[], None]) -> torch.Tensor:
    """A run's logits of every training row (rows, classes) fp32, without dropout, in the cell's precision.

    Its model is let go before anything else is loaded.
    """
    model, tuner, _ = deltas.reload(Path(run), classes_of(cell.method))
    kept = [*tuner.trainables().values(), *dict(model.head()).values()]
    compute_precision(model, cell.protocol.precision, kept)
    forward = Forward(model, cell.protocol.precision, process_state().device)
    return torch.from_numpy(Evaluator(forward, cell.task, cell.protocol.eval_batch_size, check).predict(train))
