"""Few labels in tables: which method wins with how many labelled rows, and the two ways of counting them kept apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from peftbench.ground.errors import ConfigError
from peftbench.ground.record_parts import FewLabels
from peftbench.report.columns import read
from peftbench.report.records import Study
from peftbench.report.render import entry
from peftbench.report.sheet import Sheet
from peftbench.report.table import COLLAPSED, RESAMPLES, TIED, Entry, apart, lines_of, unmarked, with_marks
from peftbench.report.verdict import Contest

Convention = Literal["per_class", "total"]
LABELS: dict[Convention, str] = {"per_class": "labelled rows of each class", "total": "labelled rows in all"}
ALL = "all rows"
NUMBERS = ["column", "shots", "method", "mean", "sd", "seeds", "best", "tied", "shows_from"]


def counted(few: FewLabels) -> tuple[Convention, int]:
    """How labelled rows were counted, and how many there were."""
    return ("total", few.total or 0) if few.per_class is None else ("per_class", few.per_class)


def without_shots(name: str, few: FewLabels | None) -> str:
    """A row of the study's table without how many labels it had."""
    return name if few is None else name.replace(f" {few.words}", "", 1)


def of_one_convention(study: Study, convention: Convention | None = None) -> Study:
    """The runs of one way of counting labelled rows, and those with all labels.

    Args:
        convention: the way; None: there may be only one.

    Raises:
        ConfigError: there are both, which no table mixes, or none of that way.
    """
    ways = [None if record.few is None else counted(record.few)[0] for record in study.records]
    known = sorted({way for way in ways if way is not None})
    if convention is None and len(known) > 1:
        raise ConfigError(
            f"study {study.name}: counts labelled rows of each class and in all, which no table mixes; "
            "choose --shots per_class or total"
        )
    if convention is None:
        return study
    if convention not in known:
        raise ConfigError(f"--shots {convention}: study {study.name} has no such run; it has {', '.join(known) or ALL}")
    kept = [i for i, way in enumerate(ways) if way in (None, convention)]
    return Study(study.name, [study.records[i] for i in kept], [study.folders[i] for i in kept])


def sheet(study: Study) -> Sheet:
    """A row for every task and number of labels, a column for every method; each row is a contest of its own.

    Raises:
        ConfigError: every run has all labels.
    """
    rows, notes = apart(study)
    records = study.done()
    few = [records[int(place)].few for place in rows["record"]] if len(rows) else []
    if not any(few):
        raise ConfigError(f"study {study.name}: every run has all labels; shots.per_class=8,16 gives few")
    rows["shots"] = [ALL if one is None else one.words for one in few]
    rows["order"] = [math.inf if one is None else counted(one)[1] for one in few]
    rows["row"] = rows["name"]
    rows["name"] = [without_shots(str(name), one) for name, one in zip(rows["name"], few, strict=True)]
    held = [_contest(study, same) for _, same in rows.groupby(["column", "order", "shots"])]
    if tests := dict.fromkeys(test for one in held for test in one.tests):
        notes.append(
            f"bold: the best of its row; {TIED}: no method is shown to be better there ({', '.join(tests)}; 5% for "
            "each method against all others of the row); shows from: points that show in four of five repetitions"
        )
    notes += [note for one in held for note in one.notes]
    if rows["collapsed"].any():
        notes.append(COLLAPSED)
    rows_of = {str(name): tuple(dict.fromkeys(same["row"])) for name, same in rows.groupby("name", sort=False)}
    methods = list(rows_of)
    bold = {(i, j + 2) for i, one in enumerate(held) for j, name in enumerate(methods) if name == one.best}
    return Sheet(
        f"{study.name}: dev scores in percent by number of labelled rows, mean ± sd over splits and seeds",
        ["task", "labels", *methods, "shows from"],
        [one.texts(methods) for one in held],
        notes,
        [NUMBERS, *(numbers for one in held for numbers in one.numbers())],
        frozenset(bold),
        ("shows from",),
        words=2,
        rows_of=rows_of,
    )


@dataclass(frozen=True)
class Held:
    """The methods of one task with one number of labels.

    Attributes:
        entries: by method, marked.
        tests: what was used; visible: points that show in four of five repetitions, None where there is no contest.
        notes: why nothing is marked, where that is so.
    """

    column: str
    shots: str
    entries: dict[str, Entry]
    tests: list[str]
    visible: float | None
    notes: list[str]

    @property
    def best(self) -> str | None:
        """The method of the highest mean; None where none is marked."""
        return next((name for name, one in self.entries.items() if one.best), None)

    def texts(self, methods: Sequence[str]) -> list[str]:
        """As a person reads it."""
        scores = [entry(self.entries.get(name, Entry())) for name in methods]
        return [self.column, self.shots, *scores, "–" if self.visible is None else f"{self.visible:.1f}"]

    def numbers(self) -> list[list[Any]]:
        """A line for every method."""
        return [
            [
                self.column,
                self.shots,
                name,
                one.value,
                one.spread,
                one.seeds,
                int(one.best),
                int(one.tied),
                self.visible,
            ]
            for name, one in self.entries.items()
        ]


def _contest(study: Study, rows: pd.DataFrame) -> Held:
    column, shots = str(rows["column"].iloc[0]), str(rows["shots"].iloc[0])
    lines, contests = with_marks(lines_of(study, rows, [column]), read(study, rows, RESAMPLES))
    contest = contests.get(column, Contest(set(), set(), [], None))
    entries = {line.name: line.entries[column] for line in lines}
    notes = [f"{shots}, {note}" for note in unmarked(lines, contests)]
    return Held(column, shots, entries, contest.tests, contest.visible, notes)
