"""What learners of sequences of tasks came to: after every stage, after the last one, and what they forgot."""

from peftbench.ground.errors import ConfigError
from peftbench.record import Record
from peftbench.report import axes
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet
from peftbench.report.table import apart

PERCENT = {  # metric of a record -> what it is called
    "last": "last",
    "mean": "mean",
    "forgetting": "forgetting",
    "task_identification": "task identified",
    "accuracy_given_task": "task given",
    "retrieval": "retrieved",
    "last_by_rows": "last by rows",
    "mean_by_rows": "mean by rows",
}
STORED = Measure("stored bytes", 0, counted=True)


def sheet(study: Study) -> Sheet:
    """The metrics of every sequence of the study.

    Raises:
        ConfigError: it has none.
    """
    rows = apart(study)[0]
    done = [run for run in zip(study.folders, study.records, strict=True) if run[1].status == "done"]
    cells = []
    for (column, name), same in rows.groupby(["column", "name"], sort=False) if len(rows) else ():
        runs = [done[int(place)] for place in same["record"]]
        if all(is_sequence(record) for _, record in runs):
            cells.append(_measured(Place(str(column), str(name), runs)))
    if not cells:
        raise ConfigError(f"study {study.name}: no finished sequence; peftbench sequence learner=... makes one")
    after = list(dict.fromkeys(name for one in cells for name in one.values if name.startswith("after ")))
    measures = [*(Measure(name, times=100) for name in (*PERCENT.values(), *after)), STORED]
    notes = [
        "last: accuracy after the last stage, mean over tasks; mean: of the same after every stage (after 1, ...)",
        "forgetting: each earlier task's best accuracy less its last one, mean over tasks",
        "task identified: rows answered with a class of their own task; task given: accuracy among these classes alone",
        "retrieved: rows sent through their own task's adapters; by rows: every row counts the same, not every task",
    ]
    return axes.sheet(
        f"{study.name}: sequences of tasks, dev, in percent, mean ± sd over seeds", measures, cells, notes
    )


def is_sequence(record: Record) -> bool:
    """Whether a record is of a sequence of tasks."""
    return record.made is not None and record.made.by == "sequence"


def _measured(place: Place) -> Measured:
    values: dict[str, list[float]] = {}
    for _, record in place.runs:
        evaluations = record.metrics.evaluations
        told = {shown: record.metrics.chosen.get(name) for name, shown in PERCENT.items()}
        if len(evaluations) > 1:
            told |= {f"after {number}": one.metrics.get("last") for number, one in enumerate(evaluations, 1)}
        told[STORED.name] = None if record.counts is None else record.counts.stored_bytes
        for name, value in told.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return Measured(place, values, len(place.runs))
