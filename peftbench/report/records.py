"""A study's records as pandas sees them: one row per finished run."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from peftbench.config.spec import Cell
from peftbench.ground.errors import LONGEST_LINE, ConfigError, DataError, near, short_line, warn
from peftbench.ground.files import study_folder
from peftbench.ground.record_parts import FewLabels, ReadBy, SelfTrained, TaughtBy
from peftbench.record import Record, find_records, read_record

# What two cells may differ in and still be the same cell of a table, beside the seed.
UNRELATED = {"seed", "study", "outputs", "cache", "tracker", "progress", "predict_test", "checkpoint_every", "rerun"}
UNRELATED |= {"cells_per_gpu", "data.path", "init_from", "objective.old", "shots.split"}
SHORT = {"matthews_correlation": "MCC", "accuracy": "acc", "accuracy_matched": "acc m", "accuracy_mismatched": "acc mm"}


@dataclass(frozen=True)
class Study:
    """A study's records.

    Attributes:
        folders: where each record lies, by its place in `records`.
    """

    name: str
    records: list[Record]
    folders: list[Path]

    def done(self) -> list[Record]:
        """Those that ended well."""
        return [record for record in self.records if record.status == "done"]

    def frame(self) -> pd.DataFrame:
        """Those that ended well as `frame` gives them: one row each, scores in percent."""
        return frame(self.done())


def read_study(
    outputs: Path, study: str, model: str | None = None, read: Callable[[Path], Record] = read_record
) -> Study:
    """Every readable record of a study; the unreadable are named on the terminal and left out.

    Args:
        model: only this backbone; "all": several are wanted; None: there may be only one.
        read: gives the record at a path, as `read_record` does.

    Raises:
        ConfigError: there is no such study, it has no record, or it has several backbones.
    """
    found = read_so_far(outputs, study, model, read)
    if not found.records:
        raise ConfigError(f"study {study}: no record in {study_folder(outputs, study)}")
    return found


def read_so_far(
    outputs: Path, study: str, model: str | None = None, read: Callable[[Path], Record] = read_record
) -> Study:
    """The same of a study that may have begun this moment: without a record yet it is empty.

    Raises:
        ConfigError: there is no such study, or it has several backbones.
    """
    runs = list(readable(find_records(study_folder(outputs, study)), read))
    records, folders = [record for _, record in runs], [path for path, _ in runs]
    if not records:
        return Study(study, [], [])
    models = sorted({record.cell.model for record in records})
    if model is None and len(models) > 1:
        raise ConfigError(f"study {study}: has the backbones {', '.join(models)}; choose --model one of them, or all")
    if model not in (None, "all"):
        if model not in models:
            raise ConfigError(f"--model {model}: not in study {study}; {near(model, [*models, 'all'])}")
        kept = [i for i, record in enumerate(records) if record.cell.model == model]
        records, folders = [records[i] for i in kept], [folders[i] for i in kept]
    return Study(study, records, folders)


def readable(paths: Iterable[Path], read: Callable[[Path], Record] = read_record) -> Iterator[tuple[Path, Record]]:
    """Folder and record of every run; a record that is not readable is named on the terminal instead."""
    for path in paths:
        try:
            yield path.parent, read(path)
        except DataError as error:
            warn(f"left out: {short_line(error.every[0], LONGEST_LINE - 10)}")


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record: its cell, score in percent, counts, seconds, memory; `record` is its place among them.

    `name` is method and budget, and the backbone where there are several; `column` is task and metric.
    """
    records = list(records)
    several = len({record.cell.model for record in records}) > 1
    rows = [
        {
            "record": place,
            "task": record.cell.task,
            "model": record.cell.model,
            "method": record.cell.method,
            "budget": record.cell.budget,
            "name": name_of(record, several),
            "column": column_of(record),
            "seed": record.cell.seed,
            "split": 0 if record.few is None else record.few.split,
            "fingerprint": record.fingerprint,
            "made_of": made_of(record),
            "lr": record.lr,
            "score": None if record.headline.value is None else 100 * record.headline.value,
            "standard_error": None if record.headline.standard_error is None else 100 * record.headline.standard_error,
            **{key: getattr(record.counts, key, None) for key in ("backbone", "head", "total", "stored_bytes")},
            "size": None if record.counts is None else record.counts.model - record.counts.head,
            "seconds": record.time.total_s,
            "train_s": record.time.train_s,
            "search_s": 0.0 if record.search is None else record.search.seconds,
            "peak_mb": record.memory.peak_mb,
            "tflops": None if (spent := record.flops) is None or spent.training is None else spent.training / 1e12,
            "more_tflops": None if spent is None or spent.more is None else spent.more / 1e12,
            "joules": None if (energy := record.energy) is None else sum(filter(None, (energy.cpu, energy.gpu))),
            "collapsed": record.metrics.collapsed,
        }
        for place, record in enumerate(records)
    ]
    return pd.DataFrame(rows)


def repeated(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of one row of the table by repetition: as they are; with several splits of few labels the means of these,
    since the seeds of a split share its labelled rows.

    Args:
        scores: with "split" in their index.
    """
    splits = scores.index.get_level_values("split")
    return scores.groupby(level="split", sort=False).mean() if splits.nunique() > 1 else scores


def made_of(record: Record) -> str:
    """What a score was made of: the cell's fingerprint, the hashes of rows (test rows apart), weights and tokenizer.

    Of a cell with parents its row's: seeds of one row have parents of one row.
    """
    drawn = ("train", "held_out", "unlabelled") if record.few else ()  # another part of train in every split
    hashes = record.hashes.data.items()
    scored = {split: sha256 for split, sha256 in hashes if not split.startswith(("test", *drawn))}
    hashes_of_model = [record.hashes.weights, record.hashes.tokenizer, record.hashes.beside]
    return json.dumps([record.row or record.fingerprint, scored, *hashes_of_model], sort_keys=True)


def other_inputs(one: Record, other: Record) -> list[str]:
    """What two records were made of differently, as a footnote says it."""
    first, second = one.hashes.data, other.hashes.data
    both = [split for split in first if split in second and not split.startswith("test")]
    words = [f"other rows of {split}" for split in both if first[split] != second[split]]
    words += ["other weights"] if one.hashes.weights != other.hashes.weights else []
    kept = [(one.hashes.tokenizer, other.hashes.tokenizer), (one.hashes.beside, other.hashes.beside)]
    return words + (["another tokenizer or config.json"] if any(mine != theirs for mine, theirs in kept) else [])


def name_of(record: Record, several_models: bool = False) -> str:
    """How a table calls a record's row: method, budget and shots where there are any, backbone where several are; a run
    on several tasks together has a row of its own, as it has a head for each."""
    joint = "tasks" in record.config["task"] and record.made is None
    trained = [record.read_by.words, record.self_trained.words, record.taught_by.words]
    few = record.few.words if record.few else ""
    cell = record.cell
    return _name(cell.method, joint, cell.budget, [*trained, few], cell.model, several_models)


def name_of_cell(cell: Cell, several_models: bool = False) -> str:
    """What the row of a cell's record will be called."""
    how, objective, shots = cell.selftrain, cell.objective, cell.shots
    words = [
        ReadBy(cell.readout.kind, cell.readout.head).words,
        SelfTrained(how.kind, how.weights, how.labels, how.fresh).words,
        TaughtBy(objective.kind, objective.teacher).words,
        FewLabels(shots.split, shots.per_class, shots.total).words,
    ]
    return _name(cell.method.name, len(cell.task.parts) > 1, cell.budget.name, words, cell.model.name, several_models)


def _name(method: str, joint: bool, budget: str, how: Iterable[str], model: str, several_models: bool) -> str:
    words = [method, "joint" if joint else "", "" if budget == "none" else budget, *how]
    words += [f"({model})"] if several_models else []
    return " ".join(word for word in words if word)


def column_of(record: Record) -> str:
    """Task and metric; rows of the built-in sample are no GLUE scores and stay apart."""
    return _column(record.cell.task, record.headline.name, record.cell.data)


def column_of_cell(cell: Cell) -> str:
    """The column that a cell's record will stand in."""
    return _column(cell.task.name, cell.task.headline, cell.data.name)


def _column(task: str, metric: str, data: str) -> str:
    return f"{task} {SHORT.get(metric, metric)}" + (" (sample)" if data == "sample" else "")


def limits_of_column(column: str) -> tuple[float, float]:
    """What its scores can be, in percent: correlations go below zero."""
    is_share = column.partition(" ")[2].startswith(("acc", "f1"))
    return (0.0 if is_share else -100.0), 100.0


def is_mean(column: str) -> bool:
    """Whether a column is a mean over tasks: that of runs which learned them together, or one after the other."""
    return column.removesuffix(" (sample)").endswith((" mean", " last"))


def tasks_alone(columns: Iterable[str]) -> list[str]:
    """The columns of one task each, over which a mean is taken; all where there is none of these."""
    columns = list(columns)
    return [column for column in columns if not is_mean(column)] or columns


def task_of(column: str) -> str:
    """The task whose rows of train the runs of a column learn: one for both dev sets of MNLI and for every metric."""
    task = column.split(" ", 1)[0].removesuffix("_mismatched")
    return f"{task} (sample)" if column.endswith(" (sample)") else task


def differences(one: Record, other: Record) -> dict[str, tuple[Any, Any]]:
    """Settings in which two records differ, an artefact's own among them, by dotted key: the value of each."""
    first, second = _settings(one), _settings(other)
    keys = [key for key in {**first, **second} if _is_related(key)]
    return {key: (first.get(key), second.get(key)) for key in sorted(keys) if first.get(key) != second.get(key)}


def settings_text(record: Record) -> str:
    """The settings that `differences` compares, as one text: it sorts two ways of making a row alike on every task."""
    return json.dumps(sorted((key, json.dumps(value)) for key, value in _settings(record).items() if _is_related(key)))


def _is_related(key: str) -> bool:
    return not any(key == other or key.startswith(f"{other}.") for other in UNRELATED)


def _settings(record: Record) -> dict[str, Any]:
    own = {} if record.made is None else flat(record.made.keys, record.made.by)
    return {**flat(record.config), **own}


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A nested configuration by dotted keys."""
    flattened: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        flattened |= flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flattened
