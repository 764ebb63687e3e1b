"""A finished run's predictions for test rows that were asked for later: from its stored delta, without training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from peftbench.backbone.weights import weights_folder
from peftbench.config.spec import Cell
from peftbench.config.validate import classes_of
from peftbench.data.rows import POOL, rows_of
from peftbench.ground.errors import DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.ground.machine import process_state
from peftbench.record import Record, read_record, write_record
from peftbench.runner import budgets, deltas
from peftbench.runner.chosen import chosen
from peftbench.runner.recording import keep_predictions
from peftbench.runner.run import learner_of, read_rows, tokenizing, tokens_of
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward


def predict(cell: Cell, folder: Path, check: Callable[[], None]) -> Record:
    """Write predictions/<split>.tsv of every split without labels; the record gains the hashes of their rows.

    Args:
        cell: the one that was run.
        folder: where its record and delta lie.
        check: called before anything is put in its place; what it raises ends it.

    Raises:
        DataError: rows, weights, record or delta cannot be read, or the tokenizer is not the run's.
    """
    record = read_record(folder / RECORD_FILE)
    rows = {name: split for name, split in read_rows(rows_of(cell)).items() if split.labels is None and name != POOL}
    weights = weights_folder(cell.model)
    unseen = tokens_of(rows, tokenizing(cell, weights), cell.task)
    if any(split.tokenizer != record.hashes.tokenizer for split in unseen.values()):
        raise DataError(f"{folder}: its run had another tokenizer; rerun=all trains it anew, with predictions")
    start = deltas.start_of(cell.init_from, cell.task, classes_of(cell.method))
    model = learner_of(chosen(budgets.resolve(cell), record.search), weights, start).as_learned(folder)
    forward = Forward(model, cell.protocol.precision, process_state().device)
    evaluator = Evaluator(forward, cell.task, cell.protocol.eval_batch_size)
    logits = {name: evaluator.predict(split) for name, split in unseen.items()}
    made_of = {**record.hashes.data, **{name: split.sha256 for name, split in rows.items()}}
    record = replace(record, hashes=replace(record.hashes, data=made_of))
    if process_state().is_main_process:
        keep_predictions(folder, cell.task, logits, dict.fromkeys(logits), check)
        write_record(record, folder, check)  # last: until then the predictions count as missing
    return record
