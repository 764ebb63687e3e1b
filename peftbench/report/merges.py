"""A study's merges, each as one backbone for all its tasks: means over tasks, beside those of what bounds it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.record import Made, Record
from peftbench.report import axes
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.distances import Merged, read_of
from peftbench.report.records import Study, differences
from peftbench.report.sheet import Sheet

MEASURES = (
    Measure("tasks", decimals=0, counted=True),
    Measure("score", times=100),
    Measure("of own runs", times=100),
    Measure("collapsed", decimals=0, counted=True),
    Measure("longest : shortest", decimals=2),
    Measure("scale", decimals=2),
    Measure("keep", decimals=2),
    Measure("tried", decimals=0, counted=True),
)
LEAST = 0.05  # of an own run's score: shares of less are of noise
NOTES = (
    "score: headline metric, mean over the tasks; of own runs: score as a share of that of the task's own run with a "
    "kept or refitted head likewise, mean over the tasks; both in percent",
    "collapsed: how many of these scores are of one answer to all rows, mean over the seeds that have any",
    "longest : shortest: lengths of the changes that were merged; keep: the share of entries kept, where it was chosen",
    "tried: how many scales, or scales and shares, one was chosen from",
)


@dataclass(frozen=True)
class Whole:
    """What one seed scored on several tasks: a merge, joint training, the runs or the backbone by themselves.

    Attributes:
        scored: by task.
    """

    scored: dict[str, Record]

    @property
    def tasks(self) -> str:
        """Their names."""
        return ", ".join(sorted(self.scored))

    @property
    def first(self) -> Record:
        """The record of the first of the tasks by name."""
        return self.scored[min(self.scored)]

    @property
    def line(self) -> tuple[str, str, tuple[str, ...]]:
        """What other seeds of the same have, too."""
        return self.tasks, self.first.cell.method, tuple(sorted(one.fingerprint for one in self.scored.values()))

    def shares(self, ceilings: "Ceilings") -> dict[str, float]:
        """By task the share of its own run's score, where that can be measured."""
        owns = {task: ceilings.score(record) for task, record in self.scored.items()}
        return {task: _score(self.scored[task]) / own for task, own in owns.items() if own is not None}

    def values(self, ceilings: "Ceilings") -> dict[str, float]:
        """The measures; only tasks with a share are in their mean."""
        values = {"tasks": float(len(self.scored)), "score": mean(map(_score, self.scored.values()))}
        if shares := self.shares(ceilings):
            values["of own runs"] = mean(shares.values())
        if collapsed := sum(record.metrics is not None and record.metrics.collapsed for record in self.scored.values()):
            values["collapsed"] = float(collapsed)
        seen = read_of(self.first)
        if isinstance(seen, Merged):
            values |= {"scale": seen.scale} | ({} if seen.keep is None else {"keep": seen.keep})
            values |= {"tried": float(len(seen.tried))} if seen.tried else {}
            if (shortest := min(seen.norms.values(), default=0.0)) > 0:
                values["longest : shortest"] = max(seen.norms.values()) / shortest
        return values


def sheet(study: Study) -> Sheet:
    """A line for every merge and for what bounds it.

    Raises:
        ConfigError: there is none.
    """
    wholes = _wholes(study)
    if not wholes:
        raise ConfigError(f"study {study.name}: holds no merge; peftbench merge makes one")
    ceilings = Ceilings(record for whole in wholes for record in whole.scored.values())
    lines: dict[tuple[str, str, tuple[str, ...]], list[Whole]] = {}
    for whole in sorted(wholes, key=lambda whole: whole.line):
        lines.setdefault(whole.line, []).append(whole)
    cells: list[Measured] = []
    main: dict[tuple[str, str], Record] = {}
    for (tasks, method, _), of_seeds in lines.items():
        record = of_seeds[0].first
        name = _named(record, main.setdefault((tasks, method), record))
        values = [whole.values(ceilings) for whole in of_seeds]
        measured = {one.name: [seen[one.name] for seen in values if one.name in seen] for one in MEASURES}
        cells.append(Measured(Place(tasks, name, []), measured, len(of_seeds)))
    of_them = {_key(record)[:2] for whole in wholes for record in whole.scored.values()}
    without = sorted(f"{task} of {method}" for task, method in of_them - ceilings.measured)
    left_out = [
        f"no share for {', '.join(without)}: not every seed has an own run with more than one answer and a score of "
        f"{100 * LEAST:g} or more"
    ]
    notes = [*NOTES, *(left_out if without else []), *_at_edges(lines.values())]
    return axes.sheet(f"{study.name}: merges, mean ± sd over seeds", MEASURES, cells, notes)


def _at_edges(rows: Iterable[Sequence[Whole]]) -> list[str]:
    """A line for all merges that might be better at a scale which was not tried."""
    edges = [
        f"{of_seeds[0].first.cell.method} ({edge} in {len(at)} of {quantity(len(of_seeds), 'seed')})"
        for of_seeds in rows
        for edge in ("largest", "smallest")
        if (at := [one for one in of_seeds if isinstance(seen := read_of(one.first), Merged) and seen.edge == edge])
    ]
    return [f"the scale chosen is the largest or smallest one tried: {', '.join(edges)}"] if edges else []


def _wholes(study: Study) -> list[Whole]:
    """What the study holds of merges, without what was set aside because runs have changed."""
    found: dict[tuple[str, int, str, int], Whole] = {}
    for folder, record in zip(study.folders, study.records, strict=True):
        made = record.made
        if made is None or made.by != "merge" or record.headline.value is None or "-" in folder.name:
            continue
        parents = record.hashes.parents if len(record.hashes.parents) > 1 else {}  # a bound has one, its task's own
        key = record.cell.method, record.cell.seed, json.dumps([made.keys, parents], sort_keys=True)
        times = sum(key == other[:3] and record.cell.task in whole.scored for other, whole in found.items())
        found.setdefault((*key, times), Whole({})).scored[record.cell.task] = record
    return [*found.values()]


def _named(record: Record, main: Record) -> str:
    """Its row of the table, with the settings in which it differs from the first of that row."""
    if record is main:
        return record.cell.method
    differing = [f"{key}={new}" for key, (_, new) in differences(main, record).items()]
    return f"{record.cell.method} ({', '.join(differing) or 'other runs'})"


def _key(record: Record) -> tuple[str, str, int]:
    """Task, method of the runs ("lora" of "ties of lora, kept head") and seed."""
    method = record.cell.method.partition(" of ")[2].partition(", ")[0]
    return record.cell.task, method, record.cell.seed


class Ceilings:
    """The tasks' own runs, of which merges are shares.

    Attributes:
        measured: tasks and methods whose own runs of all seeds can be divided by.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        """Args:
        records: all of a study's merges.
        """
        self._every = [record for record in records if _made(record).keys.get("ceiling")]
        known = {_key(record)[:2] for record in self._every}
        poor = {_key(one)[:2] for one in self._every if _head(one) == "kept" and not _measurable(one)}
        self.measured = known - poor

    def score(self, record: Record) -> float | None:
        """That of the own run of a record's task with such a head, with the kept one where there is no other; None: it
        is not known, or cannot be divided by."""
        alike = [one for one in self._every if _key(one) == _key(record)]
        alike = [one for one in alike if _head(one) == _head(record)] or alike
        of_it = [one for one in alike if one.hashes.parents.items() <= record.hashes.parents.items()]
        chosen = of_it or alike  # joint training has none of them among its parents
        return _score(chosen[0]) if len(chosen) == 1 and _key(record)[:2] in self.measured else None


def _head(record: Record) -> str:
    return str(_made(record).keys.get("head", "kept"))


def _measurable(record: Record) -> bool:
    return _score(record) >= LEAST and not (record.metrics is not None and record.metrics.collapsed)


def _score(record: Record) -> float:
    assert record.headline.value is not None
    return record.headline.value


def _made(record: Record) -> Made:
    assert record.made is not None
    return record.made
