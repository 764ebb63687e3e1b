"""A view of a study as texts for a person and numbers for a program: Markdown, LaTeX (booktabs), HTML and CSV of it."""

import io
from collections.abc import Callable, Mapping, Sequence
from csv import writer as csv_writer
from dataclasses import dataclass, field
from typing import Any

from peftbench.ground import escape
from peftbench.ground.errors import ConfigError, near, shown


@dataclass(frozen=True)
class Sheet:
    """One view.

    Attributes:
        title: what is shown, in a line.
        head, rows: as a person reads them; the first columns name the row, the others are numbers.
        notes: footnotes.
        numbers: head and rows for a program, not rounded.
        bold: (row, column) of the cells that stand out.
        give_way: columns that a narrow terminal may leave out, the first first.
        words: how many columns name the row.
        rows_of: of columns that belong to rows of the study's table, by head, which these are.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    numbers: list[list[Any]]
    bold: frozenset[tuple[int, int]] = frozenset()
    give_way: tuple[str, ...] = ()
    words: int = 1
    rows_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def text(sheet: Sheet, form: str) -> str:
    """The view in one of `FORMATS`.

    Raises:
        ConfigError: there is no such format.
    """
    return writer_of(form)(sheet)


def writer_of(form: str) -> Callable[[Sheet], str]:
    """What makes a text of a view.

    Raises:
        ConfigError: there is no such format.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {shown(form)}: there is no such format; {near(form, FORMATS)}")
    return FORMATS[form]


def _marked(sheet: Sheet, escaped: Callable[[str], str], form: str) -> list[list[str]]:
    """The rows, escaped, and those cells bold that are."""
    return [
        [form.format(escaped(cell)) if (i, j) in sheet.bold else escaped(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]


def markdown(sheet: Sheet) -> str:
    """GitHub's Markdown, footnotes as lines below."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    head = [escape.markdown(cell) for cell in sheet.head]
    lines = [
        escape.markdown(sheet.title),
        "",
        line(head),
        "|" + "---|" * sheet.words + "---:|" * (len(head) - sheet.words),
    ]
    lines += [line(row) for row in _marked(sheet, escape.markdown, "**{}**")]
    return "\n".join([*lines, "", *(f"{escape.markdown(note)}  " for note in sheet.notes)]).rstrip() + "\n"


def latex(sheet: Sheet) -> str:
    """A LaTeX table with booktabs, footnotes below."""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escape.latex(sheet.title)}}}",
        "\\begin{tabular}{" + "l" * sheet.words + "r" * (len(sheet.head) - sheet.words) + "}",
        "\\toprule",
        " & ".join(escape.latex(cell) for cell in sheet.head) + " \\\\",
        "\\midrule",
    ]
    lines += [" & ".join(row) + " \\\\" for row in _marked(sheet, escape.latex, "\\textbf{{{}}}")]
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {escape.latex(note)}" for note in sheet.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def html(sheet: Sheet) -> str:
    """A table element and a paragraph for every footnote."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    notes = "".join(f"<p>{escape.html(note)}</p>" for note in sheet.notes)
    return (
        f"<table>\n<caption>{escape.html(sheet.title)}</caption>\n<thead>"
        + row([escape.html(cell) for cell in sheet.head], "th")
        + "</thead>\n<tbody>\n"
        + "\n".join(row(cells, "td") for cells in _marked(sheet, escape.html, "<b>{}</b>"))
        + f"\n</tbody>\n</table>\n{notes}\n"
    )


def csv(sheet: Sheet) -> str:
    """The numbers: a program has nothing to take apart. No footnotes."""
    out = io.StringIO()
    writer = csv_writer(out, lineterminator="\n")
    writer.writerows([escape.csv(value) for value in row] for row in sheet.numbers)
    return out.getvalue()


# Word of --format -> what makes a text of a view; one of these is all that another format needs.
FORMATS: dict[str, Callable[[Sheet], str]] = {"md": markdown, "latex": latex, "html": html, "csv": csv}
