"""From records to tables, statistics, figures and a page: what a person reads is what the records say."""

import csv
import dataclasses
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forgery import Said
from studies import full_study, made_study
from support import call

from peftbench.commands import views
from peftbench.ground import escape
from peftbench.record import read_record, write_record
from peftbench.report import render, sheet, table

LATEX = shutil.which("pdflatex")


def test_a_table_shows_means_the_best_and_what_is_tied_with_it(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    made = table.build(made_study(tmp_path))
    assert made.columns == ["cola acc", "mrpc acc"]
    lines = {line.name: line for line in made.lines}
    entry = lines["lora"].entries["mrpc acc"]
    assert entry.value == pytest.approx(80.2)
    assert entry.spread == pytest.approx(100 * np.std([0.001 * i for i in range(5)], ddof=1))
    assert (entry.seeds, entry.expected) == (5, 5)
    assert lines["lora"].average.value == pytest.approx(80.2)
    assert {name for name, line in lines.items() if line.entries["mrpc acc"].best} == {"lora"}
    assert {name for name, line in lines.items() if line.entries["mrpc acc"].tied} == {"id3"}
    assert any(note.startswith("bold: the best; ≈: no row is shown to be better") for note in made.notes)
    assert lines["lora"].counts == {"backbone": 900, "head": 10, "total": 910, "stored_bytes": 3600}


def test_incomplete_cells_say_so_and_have_no_average(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("full", "mrpc", 0, 0.9)
    made = table.build(made_study(tmp_path))
    grid = {row[0]: row for row in render.grid(made)}
    at = render.grid(made)[0].index("mrpc acc")
    assert grid["full"][at] == "90.0 n=1/5"
    assert grid["full"][at - 1] == "–"
    assert grid["full"][render.grid(made)[0].index("mean of 2")] == "–"
    assert not made.lines[[line.name for line in made.lines].index("full")].entries["mrpc acc"].best


def test_another_protocol_stands_apart_with_a_footnote(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("lora", "mrpc", 0, 0.95, lr=5e-3)
    made = table.build(made_study(tmp_path))
    lines = {line.name: line for line in made.lines}
    assert lines["lora"].entries["mrpc acc"].value == pytest.approx(80.2)
    assert lines["lora †"].entries["mrpc acc"].value == pytest.approx(95.0)
    assert "†: protocol.lr=0.005 (not 0.001)" in made.notes


def test_several_backbones_are_not_mixed_without_asking(write_run: Callable[..., Path], tmp_path: Path) -> None:
    write_run("lora", "mrpc", 0, 0.8)
    folder = write_run("lora", "mrpc", 1, 0.9)
    record = read_record(folder / "result.json")
    write_record(dataclasses.replace(record, cell=dataclasses.replace(record.cell, model="bert_mini")), folder)
    refused = call("table", "made", cwd=tmp_path)
    assert refused.returncode == 2
    assert "has the backbones bert_mini, bert_tiny; choose --model" in refused.stderr
    assert len(table.build(made_study(tmp_path, "bert_mini")).lines) == 1
    assert {line.name for line in table.build(made_study(tmp_path, "all")).lines} == {
        "lora (bert_mini)", "lora (bert_tiny)"
    }  # fmt: skip
    assert call("table", "made", "--model", "bert_min", cwd=tmp_path).returncode == 2


FIGURES = {"lora": ("900", "80.2 ± 0.2"), "bitfit": ("100", "70.2 ± 0.2"), "id3": ("300", "≈ 80.1 ± 0.2")}
BOLD = {"md": "**{}**", "latex": "\\textbf{{{}}}", "html": "<b>{}</b>"}


@pytest.mark.parametrize("form", BOLD)
def test_every_format_holds_every_figure(write_run: Callable[..., Path], tmp_path: Path, form: str) -> None:
    full_study(write_run)
    printed = call("table", "made", "--format", form, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    text = printed.stdout.replace("$\\pm$", "±").replace("$\\approx$", "≈")
    for method, (entries, score) in FIGURES.items():
        (row,) = (line for line in text.splitlines() if re.search(rf"\b{method}\b", line))
        cells = [cell.strip() for cell in re.split(r"\||&|</?td>|\\\\", row) if cell.strip(" <>/tr")]
        shown = BOLD[form].format(score) if method == "lora" else score
        mean = score.removeprefix("≈ ").partition(" ")[0]
        assert cells[:6] == [method, entries, "10", shown, shown, mean]
        assert cells[6].replace("kB", "").strip() == f"{4 * int(entries) / 1000:.0f}"


def test_a_format_is_one_function(
    write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain(made: sheet.Sheet) -> str:
        return "".join(";".join(row) + "\n" for row in [made.head, *made.rows])

    full_study(write_run)
    monkeypatch.setitem(sheet.FORMATS, "plain", plain)
    views.table(["made", "--outputs", str(tmp_path / "outputs"), "--format", "plain"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("method;backbone;head;cola acc;mrpc acc")
    assert [line.split(";")[:4] for line in lines[1:]] == [
        [name, entries, "10", score] for name, (entries, score) in sorted(FIGURES.items())
    ]
    with pytest.raises(SystemExit):
        views.table(["--help"])
    assert "plain" in capsys.readouterr().out, "the help is made of the formats that there are"
    refused = call("table", "made", "--format", "cvs", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "--format cvs: there is no such format; did you mean csv?\n"


def test_csv_holds_every_figure_as_a_number(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    printed = call("table", "made", "--format", "csv", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert [(row["method"], row["column"]) for row in rows] == [
        (method, column) for method in ("bitfit", "id3", "lora") for column in ("cola acc", "mrpc acc")
    ]
    for row in rows:
        entries, score = FIGURES[row["method"]]
        assert f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}" == score.removeprefix("≈ ")
        assert (row["backbone"], row["head"], row["seeds"]) == (entries, "10", "5")
        assert (row["best"], row["tied"]) == (str(int(row["method"] == "lora")), str(int(row["method"] == "id3")))


FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)")


@pytest.mark.parametrize("words", [("table", "made", "--format", "csv"), ("flips", "made", "made", "--csv")])
def test_no_cell_of_csv_is_a_formula(
    write_run: Callable[..., Path],
    command: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    for method in (*FORMULAS, "lora"):
        write_run(method, "mrpc", 0, 0.7)
    folder = write_run("lora", "cola", 0, 0.8)
    record = read_record(folder / "result.json")
    write_record(dataclasses.replace(record, cell=dataclasses.replace(record.cell, task="=1+1")), folder)
    code, out, _ = command(*words, *(["--old-row", "lora"] if words[0] == "flips" else []))
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    names = {row["method"] if words[0] == "table" else row["new"] for row in rows}
    assert {f"'{formula}" for formula in FORMULAS} <= names
    assert {cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")} == set()
    assert words[0] == "flips" or "'=1+1 acc" in {row["column"] for row in rows}


def test_a_number_below_zero_stays_one_in_csv() -> None:
    assert sheet.text(sheet.Sheet("", ["a"], [["-1"]], [], [["a"], [-1.5], ["-1.5"]]), "csv") == "a\n-1.5\n'-1.5\n"


@pytest.mark.skipif(LATEX is None, reason="no pdflatex here (texlive-latex-recommended)")
def test_latex_compiles_as_it_is(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("a_b & 100% #1 ~ ^ {x}", "mrpc", 0, 0.9, lr=7e-3)
    text = sheet.text(render.sheet(table.build(made_study(tmp_path))), "latex")
    whole = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(whole)
    done = subprocess.run([str(LATEX), "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_and_latex_escape_what_data_says() -> None:
    made = table.Table("<b>", ["c"], [table.Line("<i>&", {"c": table.Entry(1.0)}, table.Entry(), dict.fromkeys(
        ("backbone", "head", "total", "stored_bytes")), 1.0, 0.0, 1.0)])  # fmt: skip
    assert "<i>" not in sheet.text(render.sheet(made), "html")
    assert "&lt;i&gt;&amp;" in sheet.text(render.sheet(made), "html")
    assert escape.latex("a_b & 5%") == "a\\_b \\& 5\\%"
