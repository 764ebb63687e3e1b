"""A study's table as texts and numbers."""

from typing import Any

from peftbench.report.sheet import Sheet
from peftbench.report.table import TIED, Entry, Line, Table

FIRST = 3  # place of the first score in a row: after the name and two counts
GIVE_WAY = ("peak MiB", "stored", "head", "model's file", "model", "s / run", "backbone")  # the scores never do
COUNTS = ("backbone", "head", "total", "stored_bytes")
SIZES = ("model", "model's file")  # of the backbone, trained or not: its entries, and what it takes on disk
BYTES_OF_AN_ENTRY = 4  # fp32, as every backbone is kept


def sheet(table: Table) -> Sheet:
    """The table, the best score of every column in bold."""
    head, *rows = grid(table)
    bold = {
        (i, FIRST + j)
        for i, line in enumerate(table.lines)
        for j, column in enumerate(table.columns)
        if line.entries[column].best
    }
    return Sheet(table.title, head, rows, table.notes, _numbers(table), frozenset(bold), GIVE_WAY)


def grid(table: Table) -> list[list[str]]:
    """The head and every row, as a person reads them; the size of backbones where it differs."""
    several = len(table.averaged) > 1
    sizes = len({line.size for line in table.lines} - {None}) > 1  # one was made smaller, or there are several
    tail = [*(SIZES if sizes else []), "stored", "s / run", "peak MiB"]
    averages = [f"mean of {len(table.averaged)}"] if several else []
    paper = [f"{table.paper} average"] if table.paper else []
    head = ["method", "backbone", "head", *table.columns, *averages, *paper, *tail]
    rows = []
    for line in table.lines:
        scores = [entry(line.entries[column]) for column in table.columns]
        mean = [number(line.average.value)] if several else []
        printed = [number(line.average.published)] if table.paper else []
        counts = [f"{line.counts[key]:,}" if line.counts[key] is not None else "–" for key in ("backbone", "head")]
        rows.append([line.name, *counts, *scores, *mean, *printed, *_cost(line, sizes)])
    return [head, *rows]


def entry(cell: Entry) -> str:
    """85.2 ± 0.3, with n=3/5 where seeds are missing, and the paper's figure where there is one; ≈ 85.1 ± 0.4 where it
    is tied with the best."""
    parts = [TIED] if cell.tied else []
    if cell.value is not None:
        parts.append(number(cell.value) + ("" if cell.spread is None else f" ± {cell.spread:.1f}"))
        if cell.seeds < cell.expected or cell.expected == 1:
            parts.append(f"n={cell.seeds}/{cell.expected}" if cell.seeds < cell.expected else "n=1")
        if cell.collapsed:
            parts.append(f"c{cell.collapsed}")
    if cell.published is not None:
        difference = "" if cell.difference is None else f", {cell.difference:+.1f}"
        parts.append(f"[{cell.published:g}{difference}]")
    return " ".join(parts) or "–"


def number(value: float | None) -> str:
    """One decimal, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def _cost(line: Line, sizes: bool) -> list[str]:
    stored = line.counts["stored_bytes"]
    size = ["–", "–"] if line.size is None else [f"{line.size:,}", f"{BYTES_OF_AN_ENTRY * line.size / 1e6:,.1f} MB"]
    return [
        *(size if sizes else []),
        "–" if stored is None else f"{stored / 1000:,.0f} kB",
        f"{line.seconds:.0f}",
        f"{line.peak_mb:,.0f}",
    ]


def _numbers(table: Table) -> list[list[Any]]:
    """One line per row and column."""
    head = ["method", "column", table.statistic, "sd", "seeds", "best", "tied", "collapsed", "published", "difference",
            *COUNTS, "seconds", "search_seconds", "peak_mb", "model", "model_bytes"]  # fmt: skip
    rows = [
        [line.name, column, cell.value, cell.spread, cell.seeds, int(cell.best), int(cell.tied), cell.collapsed,
         cell.published, cell.difference, *(line.counts[key] for key in COUNTS), line.seconds, line.search_s,
         line.peak_mb, line.size, None if line.size is None else BYTES_OF_AN_ENTRY * line.size]
        for line in table.lines
        for column, cell in line.entries.items()
    ]  # fmt: skip
    return [head, *rows]
