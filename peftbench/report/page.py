"""A study as one HTML file that opens from disk: table, plots, every run. No network, nothing run that is data."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from peftbench.ground import escape, predictions
from peftbench.ground.errors import LONGEST_LINE, ConfigError, DataError, short_line, warn
from peftbench.ground.files import write_atomically
from peftbench.papers import Paper
from peftbench.record import Record
from peftbench.report import (
    aggregates,
    calibration,
    columns,
    comparison,
    consistency,
    cost,
    distances,
    edits,
    few,
    flips,
    forgetting,
    merges,
    overall,
    pscp,
    render,
    sensitivity,
    sequences,
    subsets,
)
from peftbench.report.figures.every import figures
from peftbench.report.figures.flips import updates
from peftbench.report.figures.parts import Figure, Material, Series, style_of
from peftbench.report.flips import Flips
from peftbench.report.records import Study, column_of, flat
from peftbench.report.sheet import Sheet
from peftbench.report.statistics import MARGIN
from peftbench.report.styles import style
from peftbench.report.subsets import Texts
from peftbench.report.table import apart, build
from peftbench.report.verdict import Verdict, matrix

MOST_WRONG = 15  # rows per task that are listed
MOST_FLIPPED = 500


SCRIPTS = ("tools.js", "figures.js", "verdicts.js", "main.js")
# Views of records alone that the page has beside the scores: those of `table --show`.
VIEWS: dict[str, Callable[[Study], Sheet]] = {
    "costs": cost.sheet,
    "learning rates": sensitivity.sheet,
    "all tasks together": aggregates.sheet,
    "few labels": few.sheet,
    "PSCP": lambda study: pscp.sheet(study, pscp.Constants()),
    "sequences of tasks": sequences.sheet,
    "edits": edits.sheet,
    "merges": merges.sheet,
    "distances of changes": distances.sheet,
    "forgetting": forgetting.sheet,
    "calibration": calibration.sheet,
    "consistency": consistency.sheet,
}
DIGITS = 6  # of a figure's numbers


def write(shown: dict[str, Any], path: Path) -> None:
    """Write the page of a study's `content`."""
    write_atomically(path, html(shown).encode())


def html(shown: dict[str, Any], poll: float | None = None) -> str:
    """The page of a study's `content`; a live one asks its server for newer content every `poll` seconds."""
    here = resources.files("peftbench.report") / "web"
    texts = {name: (here / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS)}
    first = {key: value for key, value in shown.items() if key != "details"}
    parts = {
        "STYLE": texts["page.css"],
        "POLL": "" if poll is None else f"{1000 * poll:.0f}",
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": "\n".join(texts[name] for name in SCRIPTS),
        "DATA": embedded(first),
        "DETAILS": embedded(shown["details"]),
    }
    pieces = texts["page.html"].split("@@")  # text, name, text, name, ...: what is put in is never looked at again
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embedded(value: Any) -> str:
    """JSON that a script element can hold whatever is in it: no tag or comment can begin or end there."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def content(
    study: Study,
    paper: Paper | None = None,
    flipped: Sequence[Flips] = (),
    texts_of: Callable[[Record, str], Texts] | None = None,
    margin: float = MARGIN,
) -> dict[str, Any]:
    """Everything that the page shows, as JSON-like data.

    Args:
        study: its records; it may have none yet.
        paper: whose figures stand beside ours.
        flipped: what changed since an older study.
        texts_of: the rows that a record was scored on, for the scores on parts of them (`subsets.sheet`).
        margin: points within which two methods count as equal.

    Raises:
        DataError: the rows at hand are others.
    """
    rows = apart(study)[0]
    names = {} if rows.empty else dict(zip(rows["record"], rows["name"], strict=True))
    done = [(folder, r) for folder, r in zip(study.folders, study.records, strict=True) if r.status == "done"]
    shared = _shared([record.config for _, record in done])
    pairs = [_predictions(folder, record) for folder, record in done]
    table = build(study, paper)
    material = Material(study)
    drawn = [*figures(material), *([updates(flipped)] if flipped else [])]
    return {
        "study": study.name,
        "table": {
            "title": table.title,
            "grid": render.grid(table),
            "best": [[line.entries[column].best for column in table.columns] for line in table.lines],
            "columns": table.columns,
            "methods": [line.name for line in table.lines],
            "notes": table.notes,
        },
        "rows": _rows(rows),
        "styles": _styles(rows, drawn),
        "notes": _notes(material),
        "verdicts": _verdicts(study, rows, margin),
        "views": list(_views(study, texts_of)),
        "figures": [_figure(figure) for figure in drawn],
        "runs": [_run(record, names[place]) for place, (_, record) in enumerate(done)],
        "details": [_details(folder, record, shared, pairs[place]) for place, (folder, record) in enumerate(done)],
        "failures": [
            {
                "folder": f"{folder.parent.name}/{folder.name}",
                "status": record.status,
                "reason": record.reason,
                "command": escape.command(record.overrides),
            }
            for folder, record in zip(study.folders, study.records, strict=True)
            if record.status != "done"
        ],
        "wrong": _most_wrong(done, names, pairs),
        "flips": {
            "grid": flips.grid(flipped),
            "notes": flips.notes(flipped),
            "rows": [_flipped(one) for one in flipped if one.flipped],
        },
        "protocol": shared,
        "provenance": _provenance([record for _, record in done]),
    }


def _rows(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Method and budget of every row of the table."""
    if rows.empty:
        return {}
    first = rows.drop_duplicates("name").set_index("name")[["method", "budget"]]
    return {str(name): {"method": one["method"], "budget": one["budget"]} for name, one in first.iterrows()}


def _styles(rows: pd.DataFrame, drawn: Sequence[Figure]) -> dict[str, dict[str, str]]:
    """How every method, every row of the table and every line of a figure is drawn, by name."""
    methods = {name: one["method"] for name, one in _rows(rows).items()}
    lines = [series for figure in drawn for panel in figure.panels for series in panel.series]
    looks = {method: style(method) for method in methods.values()}
    looks |= {one.name: style_of(one, methods) for one in [*(Series(name, [], []) for name in methods), *lines]}
    return {name: {"colour": one.colour, "symbol": one.symbol, "dash": one.dash} for name, one in looks.items()}


def _figure(figure: Figure) -> dict[str, Any]:
    """A figure as data, every series with all rows that it is of."""
    given = asdict(figure)
    for panel, shown in zip(given["panels"], figure.panels, strict=True):
        for series, one in zip(panel["series"], shown.series, strict=True):
            series["rows"] = one.shown
            del series["method"]  # its looks are among the styles
    made: dict[str, Any] = _rounded(given)
    return made


def _notes(material: Material) -> dict[str, dict[str, str]]:
    """Mean and interval of every cell of the table, in words."""
    notes: dict[str, dict[str, str]] = defaultdict(dict)
    if not material.rows.empty:
        for (name, column), summary in material.summaries.items():
            notes[name][column] = summary.words()
    return notes


def _views(study: Study, texts_of: Callable[[Record, str], Texts] | None) -> Iterator[dict[str, Any]]:
    """Every other view that the study has the records for."""
    views = dict(VIEWS) if study.done() else {}
    if study.done() and texts_of is not None:
        views["parts of the rows"] = partial(subsets.sheet, texts_of=texts_of)
    for word, view in views.items():
        try:
            made = view(study)
        except ConfigError:  # it has not
            continue
        if len(made.numbers) > 1:  # else nothing of the study could be measured
            shown = {key: getattr(made, key) for key in ("title", "head", "rows", "notes", "words", "rows_of")}
            yield {"word": word, **shown, "bold": sorted(made.bold)}


def _verdicts(study: Study, rows: pd.DataFrame, margin: float) -> list[dict[str, Any]]:
    """Of every column, and of the means over tasks, the rows, the best first, and the verdict on every pair of them."""
    read = columns.read(study, rows)
    families: dict[str, list[Verdict]] = {}
    for item in [*matrix(read, margin), *overall.matrix(read, margin)]:
        families.setdefault(item.column, []).append(item)
    return [
        {
            "column": column,
            "mean": column not in {one.name for one in read},
            "names": list(dict.fromkeys(name for item in items for name in (item.first, item.second))),
            "notes": _legend(items[0]),
            "pairs": [_rounded(_pair(item)) for item in items],
        }
        for column, items in families.items()
    ]


def _legend(item: Verdict) -> list[str]:
    """What the signs of a verdict's family mean, and what its p were corrected for."""
    margin = comparison.points(item.margin)
    tests = f"p corrected by Holm for {item.tests} {item.family}" if item.tests > 1 else "one test, not corrected"
    return [
        f"signs: > the row is shown to be better than the column, < worse, = tied within {margin}, ? not decided",
        f"shown: {tests}, is below 5%; tied: so is that of differing by the margin or more",
    ]


def _pair(item: Verdict) -> dict[str, Any]:
    """A verdict and what stands behind it, both intervals as low and high."""
    keys = ("first", "second", "difference", "p", "p_of_equality", "word", "seeds", "unit", "better", "visible", "test")
    shown = {key: getattr(item, key) for key in keys}
    for name, interval in (("interval", item.interval), ("drawn", item.drawn)):
        shown[name] = None if interval is None else (interval.low, interval.high)
    return {**shown, "rows": item.rows or None}


def _rounded(value: Any) -> Any:
    """The same with numbers of `DIGITS` digits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _run(record: Record, name: str) -> dict[str, Any]:
    """What the list of runs shows of one."""
    headline = record.headline
    return {
        "name": name,
        "column": column_of(record),
        "seed": record.cell.seed,
        "score": None if headline.value is None else round(100 * headline.value, 3),
        "error": None if headline.standard_error is None else round(100 * headline.standard_error, 3),
        "lr": record.lr,
        "backbone": None if record.counts is None else record.counts.backbone,
        "train_s": record.time.train_s,
        "peak_mb": record.memory.peak_mb,
    }


def _details(folder: Path, record: Record, shared: dict[str, Any], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """What is shown of a run that is opened."""
    return {
        "counts": {} if record.counts is None else record.counts.as_dict(),
        "metrics": record.metrics.chosen,
        "confusion": _confusion(pairs),
        "search": None if record.search is None else record.search.scores,
        "fingerprint": record.fingerprint,
        "folder": f"{folder.parent.name}/{folder.name}",
        "config": {key: value for key, value in flat(record.config).items() if key not in shared},
        "command": escape.command(record.overrides),
    }


def _predictions(folder: Path, record: Record) -> list[tuple[str, str]]:
    """(label, prediction) of every row of the scored split; empty for a regression, or where the file is not there."""
    if record.headline.name in ("pearson", "spearman"):
        return []
    split = "dev_mismatched" if record.headline.name.endswith("mismatched") else "dev_matched"
    for name in ("dev", split):
        if predictions.path_of(folder, name).exists():
            try:
                return [(label, prediction) for prediction, label in predictions.read(folder, name)]
            except DataError as error:
                warn(f"left out: {short_line(error.every[0], LONGEST_LINE - 10)}")
    return []


def _confusion(pairs: list[tuple[str, str]]) -> dict[str, Any] | None:
    if not pairs:
        return None
    labels = sorted({word for pair in pairs for word in pair})
    counts = Counter(pairs)
    return {"labels": labels, "counts": [[counts[true, predicted] for predicted in labels] for true in labels]}


def _most_wrong(
    done: list[tuple[Path, Record]], names: dict[int, str], pairs: list[list[tuple[str, str]]]
) -> dict[str, list[dict[str, Any]]]:
    """Per task the dev rows that most runs get wrong: number of the row, label, share of wrong runs by method."""
    hardest: dict[str, list[dict[str, Any]]] = {}
    for column in dict.fromkeys(column_of(record) for _, record in done):
        places = [i for i, (_, record) in enumerate(done) if column_of(record) == column and pairs[i]]
        if not places:
            continue
        wrong: Counter[int] = Counter()
        by_name: dict[int, Counter[str]] = defaultdict(Counter)
        for place in places:
            for row, (label, prediction) in enumerate(pairs[place]):
                if label != prediction:
                    wrong[row] += 1
                    by_name[row][names[place]] += 1
        runs = Counter(names[place] for place in places)
        hardest[column] = [
            {
                "row": row,
                "label": pairs[places[0]][row][0],
                "wrong": mistakes,
                "of": len(places),
                "methods": {name: f"{by_name[row][name]}/{number}" for name, number in runs.items()},
            }
            for row, mistakes in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:MOST_WRONG]
        ]
    return hardest


def _flipped(one: Flips) -> dict[str, Any]:
    """The rows that flipped most, by number, as a table."""
    rows = [[str(r.row), r.label, f"{r.negative}/{r.pairs}", f"{r.positive}/{r.pairs}"] for r in one.flipped]
    return {"title": f"{one.column}: {one.old} → {one.new}", "rows": rows[:MOST_FLIPPED], "all": len(rows)}


def _shared(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings that all runs have in common; what is left of each run's is shown with it."""
    settings = [flat(config) for config in configs]
    if not settings:
        return {}
    return {
        key: value for key, value in settings[0].items() if all(key in one and one[key] == value for one in settings)
    }


def _provenance(records: list[Record]) -> dict[str, list[str]]:
    """Every version, machine and commit that the runs were made with."""
    seen: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for source in (record.versions, vars(record.git), vars(record.hardware)):
            for key, value in source.items():
                seen[key].add(str(value))
        seen["weights"].add(str(record.hashes.weights))
    return {key: sorted(values) for key, values in sorted(seen.items())}
