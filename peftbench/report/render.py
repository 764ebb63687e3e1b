"""A table as a grid of texts, and as Markdown, LaTeX (booktabs), HTML and CSV."""

import io
from collections.abc import Callable, Sequence
from csv import writer as csv_writer

from peftbench.ground import escape
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.report.table import TIED, Entry, Line, Table

SIZES = ("model", "model's file")  # of the backbone, trained or not: its entries, and what it takes on disk
BYTES_OF_AN_ENTRY = 4  # fp32, as every backbone is kept


def text(table: Table, form: str) -> str:
    """The table in one of `FORMATS`.

    Raises:
        ConfigError: there is no such format.
    """
    return writer_of(form)(table)


def writer_of(form: str) -> Callable[[Table], str]:
    """What makes a text of a table.

    Raises:
        ConfigError: there is no such format.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {shown(form)}: there is no such format; {near(form, FORMATS)}")
    return FORMATS[form]


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


def _marked(row: Sequence[str], bold: Sequence[bool], form: str) -> list[str]:
    """The row, the best scores in bold."""
    return [form.format(cell) if 3 <= i < 3 + len(bold) and bold[i - 3] else cell for i, cell in enumerate(row)]


def _rows(table: Table, form: str) -> list[list[str]]:
    _, *rows = grid(table)
    return [
        _marked(row, [line.entries[column].best for column in table.columns], form)
        for row, line in zip(rows, table.lines, strict=True)
    ]


def markdown(table: Table) -> str:
    """GitHub's Markdown, footnotes as lines below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape.markdown(cell) for cell in cells) + " |"

    head = grid(table)[0]
    lines = [escape.markdown(table.title), "", line(head), "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    lines += [line(row) for row in _rows(table, "**{}**")]
    return "\n".join([*lines, "", *(f"{escape.markdown(note)}  " for note in table.notes)]).rstrip() + "\n"


def latex(table: Table) -> str:
    """A LaTeX table with booktabs, footnotes below."""
    head = grid(table)[0]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape.latex(table.title)}}}",
        "\\begin{tabular}{l" + "r" * (len(head) - 1) + "}",
        "\\toprule",
        " & ".join(escape.latex(cell) for cell in head) + " \\\\",
        "\\midrule",
    ]
    for row, line in zip(grid(table)[1:], table.lines, strict=True):
        bold = [line.entries[column].best for column in table.columns]
        lines.append(" & ".join(_marked([escape.latex(cell) for cell in row], bold, "\\textbf{{{}}}")) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {escape.latex(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def html(table: Table) -> str:
    """A table element and a paragraph for every footnote."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    head, *rows = grid(table)
    body = []
    for cells, line in zip(rows, table.lines, strict=True):
        bold = [line.entries[column].best for column in table.columns]
        body.append(row(_marked([escape.html(cell) for cell in cells], bold, "<b>{}</b>"), "td"))
    notes = "".join(f"<p>{escape.html(note)}</p>" for note in table.notes)
    return (
        f"<table>\n<caption>{escape.html(table.title)}</caption>\n<thead>"
        + row([escape.html(cell) for cell in head], "th")
        + "</thead>\n<tbody>\n"
        + "\n".join(body)
        + f"\n</tbody>\n</table>\n{notes}\n"
    )


def csv(table: Table) -> str:
    """One line per row and column: a program has nothing to take apart. No footnotes."""
    out = io.StringIO()
    writer = csv_writer(out, lineterminator="\n")
    counts = ("backbone", "head", "total", "stored_bytes")
    writer.writerow(
        ["method", "column", table.statistic, "sd", "seeds", "best", "tied", "collapsed", "published", "difference",
         *counts, "seconds", "search_seconds", "peak_mb", "model", "model_bytes"]
    )  # fmt: skip
    for line in table.lines:
        for column, cell in line.entries.items():
            writer.writerow(
                [escape.csv(line.name), escape.csv(column), cell.value, cell.spread, cell.seeds, int(cell.best),
                 int(cell.tied), cell.collapsed, cell.published, cell.difference, *(line.counts[key] for key in counts),
                 line.seconds, line.search_s, line.peak_mb, line.size,
                 None if line.size is None else BYTES_OF_AN_ENTRY * line.size]
            )  # fmt: skip
    return out.getvalue()


# Word of --format -> what makes a text of a table; one of these is all that another format needs.
FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "latex": latex, "html": html, "csv": csv}
