"""Edits of finished runs: how often an answer is given before and after, and what else moved."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.record_parts import Name, Number, Score, Whole
from peftbench.record import Record
from peftbench.report import axes, edited_rows, predictions
from peftbench.report.axes import Measure, Measured, Place
from peftbench.report.edited_rows import Key, Shown, Span
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Keys:
    """What of an edit's settings is looked at."""

    behaviour: Name
    control: Name
    rows: Share
    strength: Number | Literal["held_out"]
    probe_at: Name

    @property
    def words(self) -> str:
        """The edit as a figure names it, without rows and strength."""
        what = "surgery" if self.control == "none" else self.control
        return what if self.probe_at == "last" else f"{what}, a probe at {self.probe_at}"


@dataclass(frozen=True)
class Seen:
    """An edit on the rows that were scored: see `lifecycle.behaviour.effect`."""

    prone: Whole
    rate_before: Share
    rate: Share
    cured: Share | None
    moved: Share | None
    score_before: Score | None
    score: Score | None
    rows: Whole | None = None
    prone_rows: tuple[Whole, ...] | None = None  # neither these nor `rows` before version 0.5

    @property
    def numbers(self) -> Sequence[int]:
        """Of the rows that can show the behaviour; none where they are not known."""
        return self.prone_rows or range(self.prone if self.prone == self.rows else 0)


@dataclass(frozen=True)
class _Facts:
    scored: Seen
    headline_before: Score | None
    answer: Name | None = None


@dataclass(frozen=True)
class _Beside:
    edited: Name
    headline_before: Score | None


@dataclass(frozen=True)
class Edited:
    """One edit of one run.

    Attributes:
        headline: change of the task's headline, in points.
        collateral: the same of every other task whose run was scored on the edit.
        unshared: tasks that are left out of it, since another seed of the row lacks them.
        answer: the label that shows the behaviour.
    """

    keys: Keys
    seen: Seen
    headline: float | None
    collateral: dict[str, float]
    unshared: tuple[str, ...] = ()
    answer: str | None = None


@cache
def _adapter(kind: type) -> TypeAdapter[object]:
    return TypeAdapter(kind)


def _read(kind: type, raw: object) -> object | None:
    """Part of a record as this version writes it; None: it is not that."""
    try:
        return _adapter(kind).validate_python(raw)
    except ValidationError:
        return None


Run = tuple[Path, Record]
Edits = Sequence[tuple[Place, Sequence[tuple[Run, Edited]]]]  # of every row and task


def of_place(study: Study, place: Place) -> list[tuple[Run, Edited]]:
    """The edits among the runs of one cell of a study's table, their collateral on the tasks that all of them have: a
    mean over seeds is of the same tasks in each."""
    every = [(run, edited) for run in place.runs if (edited := _edited(run, study)) is not None]
    shared = set.intersection(*(set(edited.collateral) for _, edited in every)) if every else set()
    return [(run, _on_tasks(edited, shared)) for run, edited in every]


def _on_tasks(edited: Edited, shared: Collection[str]) -> Edited:
    collateral = {task: change for task, change in edited.collateral.items() if task in shared}
    return replace(edited, collateral=collateral, unshared=tuple(sorted(edited.collateral.keys() - shared)))


def _edited(run: Run, study: Study) -> Edited | None:
    made = run[1].made
    if made is None or made.by != "edit":
        return None
    keys, facts = _read(Keys, made.keys), _read(_Facts, made.facts)
    if not isinstance(keys, Keys) or not isinstance(facts, _Facts):
        return None
    headline = _change(run[1], facts.headline_before)
    return Edited(keys, facts.scored, headline, _collateral(run[1], study.done()), answer=facts.answer)


def _collateral(own: Record, records: Iterable[Record]) -> dict[str, float]:
    """By task, what the same edit changed of other tasks' runs."""
    changes = {}
    for record in records:
        if record.made is None or own.made is None or record.cell.task == own.cell.task:
            continue
        same = record.made.by == "edit" and record.made.keys == own.made.keys and record.cell.seed == own.cell.seed
        beside = _read(_Beside, record.made.facts) if same else None
        if isinstance(beside, _Beside) and own.hashes.parents.items() <= record.hashes.parents.items():
            change = _change(record, beside.headline_before)
            if change is not None:
                changes[record.cell.task] = change
    return changes


def _change(record: Record, before: float | None) -> float | None:
    after = record.headline.value
    return None if after is None or before is None else 100 * (after - before)


PERCENT = 100.0
CHANGE, BESIDE = "change of rate", "method − control"  # with intervals
MEASURES = (
    Measure("can show", decimals=0, counted=True),
    Measure("rate before", times=PERCENT),
    Measure("rate", times=PERCENT),
    Measure(CHANGE, times=PERCENT),
    Measure(BESIDE, times=PERCENT),
    Measure("cured", times=PERCENT),
    Measure("others moved", times=PERCENT),
    Measure("others' score", decimals=2, times=PERCENT),
    Measure("headline", decimals=2),
    Measure("collateral", decimals=2),
)


def measures(edited: Edited) -> dict[str, float | None]:
    """What the view shows of one edit; rates and shares in [0, 1], changes of scores in points but for others'."""
    seen = edited.seen
    known = seen.score is not None and seen.score_before is not None
    return {
        "can show": float(seen.prone),
        "rate before": seen.rate_before,
        "rate": seen.rate,
        "cured": seen.cured,
        "others moved": seen.moved,
        "others' score": seen.score - seen.score_before if known else None,  # type: ignore[operator]
        "headline": edited.headline,
        "collateral": mean(edited.collateral.values()) if edited.collateral else None,
    }


NOTES = (
    "can show: how many rows can show the behaviour, the same ones in every seed",
    "rate: share of the rows that can show the behaviour and do; cured: share of those that showed it and do not now",
    "change of rate, and the method's rate minus the control's: in points [95%], seeds and the rows that can show the "
    "behaviour drawn anew",
    "others moved: share of the rows that did not show it whose answer changed; others' score: change of the headline "
    "metric on them, in points",
    "headline: change on the edited run's task, in points; collateral: mean change of other tasks' runs on the edit",
)


def sheet(study: Study) -> Sheet:
    """The edits of a study, row by row of its table.

    Raises:
        ConfigError: there is none.
    """
    every = [(place, edits) for place in axes.places(study) if (edits := of_place(study, place))]
    if not every:
        raise ConfigError(f"study {study.name}: holds no edit; peftbench edit makes one")
    spans = _spans(study, every)
    cells = [
        _measured(place, [edited for _, edited in edits], own) for (place, edits), own in zip(every, spans, strict=True)
    ]
    notes = [*NOTES, *_notes_on_collateral(every)]
    if without := [f"{one.place.row} on {one.place.column}" for one in cells if CHANGE not in one.spans]:
        notes.append(f"no interval, as no predictions or no numbers of such rows are stored: {', '.join(without)}")
    made = axes.sheet(f"{study.name}: edits, in percent, mean ± sd over runs", MEASURES, cells, notes)
    return replace(made, give_way=("rate before", "others moved", "others' score", "cured"))


def _measured(place: Place, edits: Sequence[Edited], spans: Mapping[str, Span]) -> Measured:
    every = [measures(edited) for edited in edits]
    values = {name: [value for seen in every if (value := seen[name]) is not None] for name in every[0]}
    return Measured(place, values, len(edits), spans)


def _notes_on_collateral(every: Edits) -> list[str]:
    """Over which tasks it is, and which are left out of a row."""
    shared = sorted({task for _, edits in every for _, edited in edits for task in edited.collateral})
    left_out = dict[str, None]()
    for place, edits in every:
        if some := sorted({task for _, edited in edits for task in edited.unshared}):
            left_out[f"{place.row}: {', '.join(some)}"] = None
    notes = [f"collateral is over {', '.join(shared)}"] if shared else []
    return [*notes, *(f"left out of collateral, since not every seed has it: {one}" for one in left_out)]


def _spans(study: Study, every: Edits) -> list[dict[str, Span]]:
    """Of each row its change of rate, and of a control's the method's rate minus its own, with intervals."""
    unusable: list[str] = []
    floors = edited_rows.unedited(study)
    shown = [_shown(edits, floors, unusable) for _, edits in every]
    predictions.name_unusable(unusable)
    keys = [_but_control(place, edits) for place, edits in every]
    is_method = [edits[0][1].keys.control == "none" for _, edits in every]
    methods = {key: one for key, one, method in zip(keys, shown, is_method, strict=True) if method}
    spans = []
    for key, own, method in zip(keys, shown, is_method, strict=True):
        both = {CHANGE: edited_rows.change(own)}
        if not method:
            both[BESIDE] = edited_rows.beside(methods.get(key, {}), own)
        spans.append({name: span for name, span in both.items() if span is not None})
    return spans


def _shown(edits: Sequence[tuple[Run, Edited]], floors: Mapping[Key, Run], unusable: list[str]) -> dict[int, Shown]:
    """By seed; none where a seed's rows are not known. Why files cannot be used is added to `unusable`."""
    shown = {}
    for run, edited in edits:
        seen, record = edited.seen, run[1]
        floor = floors.get(edited_rows.made_of(record))
        if floor is None or edited.answer is None or not seen.numbers:
            return {}
        try:
            rates = seen.rate_before, seen.rate
            shown[record.cell.seed] = edited_rows.shown(run, floor, edited.answer, seen.numbers, rates)
        except DataError as error:
            unusable.append(error.every[0])
            return {}
    return shown


def _but_control(place: Place, edits: Sequence[tuple[Run, Edited]]) -> tuple[str, str, Keys]:
    """What an edit has in common with its controls."""
    return place.column, place.row.rpartition(" of ")[2], replace(edits[0][1].keys, control="none")
