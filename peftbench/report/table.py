"""A study as a table: methods in rows, tasks in columns; published figures beside ours, protocols never mixed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median, stdev
from typing import Literal

import pandas as pd

from peftbench import papers
from peftbench.ground.errors import ConfigError, near
from peftbench.papers import Paper
from peftbench.record import Record, changed_parents
from peftbench.report import rates
from peftbench.report.columns import Column, read
from peftbench.report.records import Study, differences, frame, other_inputs, settings_text, tasks_alone
from peftbench.report.verdict import Contest, contenders

Statistic = Literal["mean", "median"]
RESAMPLES = 1000  # draws of the dev rows; what is marked does not hang on a percent of an error
TIED = "≈"
COLLAPSED = "c: that many of the runs predict one class for every row"
SUFFIX = " †"  # of rows whose protocol is not that of the method's first row


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        value: mean or median over seeds, in percent; None: there is no run.
        spread: standard deviation over seeds; None: one seed.
        seeds: how many there are.
        expected: how many there are at most in this table.
        best: the first of this column, and more than one seed says so.
        tied: no other row is shown to be better, and neither is one than any row above it.
        collapsed: how many of the runs predict one class.
        published: the paper's figure; difference: ours less the paper's.
    """

    value: float | None = None
    spread: float | None = None
    seeds: int = 0
    expected: int = 0
    best: bool = False
    tied: bool = False
    collapsed: int = 0
    published: float | None = None
    difference: float | None = None


@dataclass(frozen=True)
class Line:
    """One row of a table: a method under one protocol.

    Attributes:
        entries: by column.
        average: mean over all columns but those that are means themselves; None where one is missing.
        counts: backbone, head, total, stored_bytes; the largest over the tasks, since heads differ.
        seconds, search_s: medians per run; peak_mb: the largest.
        size: entries of the whole backbone, trained or not.
    """

    name: str
    entries: dict[str, Entry]
    average: Entry
    counts: dict[str, int | None]
    seconds: float
    search_s: float
    peak_mb: float
    size: int | None = None


@dataclass(frozen=True)
class Table:
    """A study's table; `notes` are its footnotes."""

    title: str
    columns: list[str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    statistic: Statistic = "mean"
    paper: str | None = None

    @property
    def averaged(self) -> list[str]:
        """The columns that the average is over."""
        return tasks_alone(self.columns)


def build(study: Study, paper: Paper | None = None) -> Table:
    """The table of a study's finished runs, beside a paper's figures where one is given.

    Cells of another fingerprint than the method's first stand in rows of their own, with a footnote that says what
    differs. What is marked in a column is decided in `with_marks`.
    """
    records = study.done()
    statistic: Statistic = paper.statistic if paper else "mean"
    rows, notes = apart(study)
    columns = sorted(rows["column"].unique()) if len(rows) else []
    lines, contests = with_marks(lines_of(study, rows, columns, statistic, paper), read(study, rows, RESAMPLES))
    notes += [*_of_marks(contests), *unmarked(lines, contests), *rates.notes(study, rows)]
    if any(record.cell.data == "sample" for record in records):
        notes.append("sample: a few hundred built-in rows; these are no GLUE scores")
    if any(entry.collapsed for line in lines for entry in line.entries.values()):
        notes.append(COLLAPSED)
    notes += [f"{name}: made of runs that have been run again since" for name in stale(study, rows)]
    if paper:
        notes += [
            f"{paper.work} ({paper.name}): {paper.split}, {paper.selection}",
            f"its average: {paper.average.combine}; {paper.average.checked}",
        ]
    shown = "median" if statistic == "median" else "mean"
    title = f"{study.name}: dev scores in percent, {shown} ± sd over seeds"
    return Table(title, columns, lines, notes, statistic, paper.name if paper else None)


def stale(study: Study, rows: pd.DataFrame) -> list[str]:
    """The rows that hold an artefact of runs that have learned something else since."""
    names: dict[str, None] = {}
    done = [run for run in zip(study.folders, study.records, strict=True) if run[1].status == "done"]
    for place, (folder, record) in enumerate(done):
        if record.hashes.parents and changed_parents(record.hashes, folder.parents[2]):
            names[str(rows["name"].iloc[place])] = None
    return list(names)


def apart(study: Study) -> tuple[pd.DataFrame, list[str]]:
    """The study's finished runs as `frame` gives them, those of another fingerprint, rows or weights than their row's
    main one under a name of their own; and the footnotes that say what differs."""
    records = study.done()
    marks: dict[str, str] = {}
    rows = frame(records)
    if rows.empty:
        return rows, []
    # one seed comes twice where its parents were run again, or are others of their row
    again = rows.groupby(["name", "column", "made_of", "seed", "split"]).cumcount()
    rows["made_of"] += [f" {times}" if times else "" for times in again]
    for (_, _), same in rows.groupby(["name", "column"], sort=False):
        order = list(dict.fromkeys(same["made_of"]))
        of_it = {made_of: same[same["made_of"] == made_of]["record"] for made_of in order}
        # of equally many runs the same settings come first on every task, so that a row does not mix them
        order.sort(key=lambda made_of: (-len(of_it[made_of]), settings_text(records[int(of_it[made_of].iloc[0])])))
        main = records[int(of_it[order[0]].iloc[0])]
        said: list[str] = []
        for other in order[1:]:
            places = same[same["made_of"] == other]
            one = records[int(places["record"].iloc[0])]
            differing = [f"{key}={new} (not {old})" for key, (old, new) in differences(main, one).items()]
            text = ", ".join([*differing, *other_inputs(main, one)])
            text = text or ("other parents" if one.hashes.parents else "another version")
            said.append(text)
            if (times := said.count(text)) > 1:  # two ways of being made never share a mark
                text += f" ({times})"
            mark = marks.setdefault(text, SUFFIX + (str(len(marks) + 1) if marks else ""))
            rows.loc[places.index, "name"] = [f"{name}{mark}" for name in places["name"]]
    return rows, [f"{mark.strip()}: {text}" for text, mark in marks.items()]


def row_named(word: str, names: Sequence[str], study: str) -> str:
    """The row of a study's table that a word names: by its whole name, or by the method's where one row has it.

    Raises:
        ConfigError: none, or several.
    """
    same = [name for name in names if name.split()[0] == word]
    if word in names or len(same) == 1:
        return word if word in names else same[0]
    raise ConfigError(f"{word}: no row of study {study}; {near(word, names)}")


def _line(
    name: str,
    rows: pd.DataFrame,
    columns: Sequence[str],
    records: Sequence[Record],
    statistic: Statistic,
    paper: Paper | None,
    most: int,
) -> Line:
    entries = {column: _entry(rows[rows["column"] == column], records, statistic, paper, most) for column in columns}
    values = [entries[column].value for column in tasks_alone(columns)]
    average = None if any(value is None for value in values) else mean(value for value in values if value is not None)
    published = papers.row_of(paper, records[int(rows["record"].iloc[0])]) if paper else None
    return Line(
        name,
        entries,
        Entry(average, published=None if published is None else published.average),
        {key: _largest(rows[key]) for key in ("backbone", "head", "total", "stored_bytes")},
        float(rows["seconds"].median()),
        float(rows["search_s"].median()),
        float(rows["peak_mb"].max()),
        _largest(rows["size"]),
    )


def _entry(
    rows: pd.DataFrame, records: Sequence[Record], statistic: Statistic, paper: Paper | None, most: int
) -> Entry:
    scores = [float(score) for score in rows["score"].dropna()]
    if not scores:
        return Entry()
    middle = median(scores) if statistic == "median" else mean(scores)
    published, ours = _published(paper, [records[int(place)] for place in rows["record"]], statistic)
    return Entry(
        middle,
        stdev(scores) if len(scores) > 1 else None,
        len(scores),
        most,
        collapsed=int(rows["collapsed"].sum()),
        published=published,
        difference=None if published is None or ours is None else ours - published,
    )


def _published(
    paper: Paper | None, records: Sequence[Record], statistic: Statistic
) -> tuple[float | None, float | None]:
    """The paper's figure for these runs, and ours in the paper's own metric."""
    row = papers.row_of(paper, records[0]) if paper else None
    if row is None:
        return None, None
    figures = row.scores.get(records[0].cell.task, {})
    metric = next(iter(figures), None)
    if metric is None:
        return None, None
    if metric == "unspecified":
        return figures[metric], None
    ours = [papers.score(record.metrics.chosen, metric) for record in records]
    known = [value for value in ours if value is not None]
    return figures[metric], (median(known) if statistic == "median" else mean(known)) if known else None


def lines_of(
    study: Study,
    rows: pd.DataFrame,
    columns: Sequence[str],
    statistic: Statistic = "mean",
    paper: Paper | None = None,
) -> list[Line]:
    """A line for every name among the rows, which are some of those that `apart` gives; nothing is marked yet."""
    if rows.empty:
        return []
    few = rows["split"] > 0  # splits of few labels are not seeds that a row with all of them lacks
    most = {kind: len(same[["seed", "split"]].drop_duplicates()) for kind, same in rows.groupby(few)}
    return [
        _line(str(name), group, columns, study.done(), statistic, paper, most[group["split"].iloc[0] > 0])
        for name, group in rows.groupby("name", sort=False)
    ]


def with_marks(lines: list[Line], columns: Sequence[Column]) -> tuple[list[Line], dict[str, Contest]]:
    """The lines with the best of every column and what is tied with it, and the contests that were held, by column.

    The first of a column by its own seeds may be behind another on those that both have: then nothing is marked.
    """
    contests = {}
    for column in columns:
        order = _order(lines, column.name)
        if len(order) < 2 or len(column.scores[order[0]]) < 2:
            continue
        contests[column.name] = contest = contenders(column)
        if order[0] not in contest.rows:
            continue
        beside = set(tied(order[1:], contest))
        for line in lines:
            entry = line.entries[column.name]
            line.entries[column.name] = replace(entry, best=line.name == order[0], tied=line.name in beside)
    return lines, contests


def _order(lines: Sequence[Line], column: str) -> list[str]:
    """The rows that have a column, the highest first."""
    values = {line.name: value for line in lines if (value := line.entries[column].value) is not None}
    return sorted(values, key=lambda name: -values[name])


def unmarked(lines: Sequence[Line], contests: Mapping[str, Contest]) -> Iterator[str]:
    """A footnote for every contest whose first row is none of those that may be the best."""
    for column, contest in contests.items():
        if (first := _order(lines, column)[0]) not in contest.rows:
            why = "is shown to be worse than another on the seeds that both have"
            why = why if first in contest.worse else "has no two seeds in common with another"
            yield f"{column}: nothing is marked, as the highest, {first}, {why}"


def _of_marks(contests: Mapping[str, Contest]) -> list[str]:
    """The footnote that explains the signs, where there are any."""
    tests = dict.fromkeys(test for contest in contests.values() for test in contest.tests)
    sizes = [f"{name} {contest.visible:.1f}" for name, contest in contests.items() if contest.visible]
    if not tests:
        return []
    note = f"bold: the best; {TIED}: no row is shown to be better, which is not the same as equal"
    how = f"({', '.join(tests)}; 5% for each row against all others)"
    shows = f"; a difference shows from about {', '.join(sizes)} points on" if sizes else ""
    return [f"{note} {how}{shows}"]


def tied(order: Sequence[str], contest: Contest) -> Iterator[str]:
    """The rows below the best in their order, down to one that is shown to be worse or that has a single seed."""
    for name in order:
        if name not in contest.rows:
            return
        yield name


def _largest(values: pd.Series) -> int | None:
    known = values.dropna()
    return None if known.empty else int(known.max())
