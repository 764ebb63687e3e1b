"""From records to tables, statistics, figures and a page: what a person reads is what the records say."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from support import TINY, call

from peftbench import papers
from peftbench.commands import views
from peftbench.config import compose
from peftbench.ground import escape
from peftbench.ground.errors import ConfigError
from peftbench.record import Counts, Evaluation, Headline, Metrics, Record, find_records, read_record, write_record
from peftbench.report import page, plots, records, render, statistics, table, verdict
from peftbench.report.records import Study
from peftbench.runner.run import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LATEX = shutil.which("pdflatex")
TASKS = {"mrpc": ["not_equivalent", "equivalent"], "cola": ["unacceptable", "acceptable"]}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a real run."""
    words = [*TINY, "method=bitfit", f"outputs={tmp_path_factory.mktemp('outputs')}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).record


@pytest.fixture
def make(template: Record, tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run's record and predictions with these words and this score."""

    def write(
        method: str, task: str, seed: int, score: float, *, lr: float = 1e-3, entries: int = 100, budget: str = "none"
    ) -> Path:
        evaluations = [
            Evaluation(step, step / 2, {"accuracy": score * step / 4}, collapsed=False, chosen_by=score * step / 4)
            for step in (2, 4)
        ]
        config = {**template.config, "protocol": {**template.config["protocol"], "lr": lr}, "seed": seed}
        cell = dataclasses.replace(template.cell, method=method, task=task, seed=seed, study="made", data="folder")
        cell = dataclasses.replace(cell, budget=budget)
        fingerprint = hashlib.sha256(f"{method} {task} {lr} {budget}".encode()).hexdigest()[:16]
        record = dataclasses.replace(
            template, cell=cell, fingerprint=fingerprint, config=config, overrides=[f"method={method}"],
            headline=Headline("accuracy", score, 0.02),
            metrics=Metrics(evaluations[-1], evaluations, "last", False),
            counts=Counts(entries, 10, entries + 10, 1000, 4 * entries),
        )  # fmt: skip
        safe = re.sub(r"[^a-z0-9]", "_", method)
        folder = tmp_path / "outputs" / "made" / f"{task}-{safe}-{fingerprint[:8]}" / f"seed{seed}"
        write_record(record, folder)
        (folder / "predictions").mkdir()
        labels = TASKS[task]
        lines = [f"{i}\t{labels[i % 3 == 0]}\t{labels[i % 2]}\t0\t0" for i in range(12)]
        (folder / "predictions" / "dev.tsv").write_text("\n".join(["index\tprediction\tlabel\ta\tb", *lines]) + "\n")
        return folder

    return write


def study(tmp_path: Path, model: str | None = None) -> Study:
    return records.of(tmp_path / "outputs", "made", model)


def full_study(make: Callable[..., Path]) -> None:
    for i, task in itertools.product(range(5), TASKS):
        make("lora", task, i, 0.80 + 0.001 * i, entries=900)
        make("bitfit", task, i, 0.70 + 0.001 * i, entries=100)
        make("id3", task, i, 0.799 + 0.0012 * (4 - i), entries=300)


def test_a_table_shows_means_spread_and_what_is_not_beaten(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    made = table.build(study(tmp_path))
    assert made.columns == ["cola acc", "mrpc acc"]
    lines = {line.name: line for line in made.lines}
    found = lines["lora"].entries["mrpc acc"]
    assert found.value == pytest.approx(80.2)
    assert found.spread == pytest.approx(100 * np.std([0.001 * i for i in range(5)], ddof=1))
    assert (found.seeds, found.of) == (5, 5)
    assert lines["lora"].average.value == pytest.approx(80.2)
    assert {name for name, line in lines.items() if line.entries["mrpc acc"].best} == {"lora", "id3"}
    assert lines["lora"].counts == {"backbone": 900, "head": 10, "total": 910, "stored_bytes": 3600}


def test_incomplete_cells_say_so_and_have_no_average(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    make("full", "mrpc", 0, 0.9)
    made = table.build(study(tmp_path))
    grid = {row[0]: row for row in render.grid(made)}
    at = render.grid(made)[0].index("mrpc acc")
    assert grid["full"][at] == "90.0 n=1/5"
    assert grid["full"][at - 1] == "–"
    assert grid["full"][render.grid(made)[0].index("mean of 2")] == "–"
    assert not made.lines[[line.name for line in made.lines].index("full")].entries["mrpc acc"].best


def test_another_protocol_stands_apart_with_a_footnote(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    make("lora", "mrpc", 0, 0.95, lr=5e-3)
    made = table.build(study(tmp_path))
    lines = {line.name: line for line in made.lines}
    assert lines["lora"].entries["mrpc acc"].value == pytest.approx(80.2)
    assert lines["lora †"].entries["mrpc acc"].value == pytest.approx(95.0)
    assert "†: protocol.lr=0.005 (not 0.001)" in made.notes


def test_several_backbones_are_not_mixed_without_asking(make: Callable[..., Path], tmp_path: Path) -> None:
    make("lora", "mrpc", 0, 0.8)
    folder = make("lora", "mrpc", 1, 0.9)
    record = read_record(folder / "result.json")
    write_record(dataclasses.replace(record, cell=dataclasses.replace(record.cell, model="bert_mini")), folder)
    refused = call("table", "made", cwd=tmp_path)
    assert refused.returncode == 2
    assert "has the backbones bert_mini, bert_tiny; choose --model" in refused.stderr
    assert len(table.build(study(tmp_path, "bert_mini")).lines) == 1
    assert {line.name for line in table.build(study(tmp_path, "all")).lines} == {
        "lora (bert_mini)", "lora (bert_tiny)"
    }  # fmt: skip
    assert call("table", "made", "--model", "bert_min", cwd=tmp_path).returncode == 2


FIGURES = {"lora": ("900", "80.2 ± 0.2"), "bitfit": ("100", "70.2 ± 0.2"), "id3": ("300", "80.1 ± 0.2")}
BOLD = {"md": "**{}**", "latex": "\\textbf{{{}}}", "html": "<b>{}</b>"}


@pytest.mark.parametrize("form", BOLD)
def test_every_format_holds_every_figure(make: Callable[..., Path], tmp_path: Path, form: str) -> None:
    full_study(make)
    printed = call("table", "made", "--format", form, cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    text = printed.stdout.replace("$\\pm$", "±")
    for method, (entries, score) in FIGURES.items():
        (row,) = (line for line in text.splitlines() if re.search(rf"\b{method}\b", line))
        cells = [cell.strip() for cell in re.split(r"\||&|</?td>|\\\\", row) if cell.strip(" <>/tr")]
        shown = score if method == "bitfit" else BOLD[form].format(score)
        mean = score.partition(" ")[0]
        assert cells[:6] == [method, entries, "10", shown, shown, mean]
        assert cells[6].replace("kB", "").strip() == f"{4 * int(entries) / 1000:.0f}"


def test_a_format_is_one_function(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plain(made: table.Table) -> str:
        return "".join(";".join(row) + "\n" for row in render.grid(made))

    full_study(make)
    monkeypatch.setitem(render.FORMATS, "plain", plain)
    views.table(["made", "--outputs", str(tmp_path / "outputs"), "--format", "plain"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("method;backbone;head;cola acc;mrpc acc")
    assert [line.split(";")[:4] for line in lines[1:]] == [
        [name, entries, "10", score] for name, (entries, score) in sorted(FIGURES.items())
    ]
    refused = call("table", "made", "--format", "cvs", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == "--format cvs: there is no such format; did you mean csv?\n"


def test_csv_holds_every_figure_as_a_number(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    printed = call("table", "made", "--format", "csv", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert [(row["method"], row["column"]) for row in rows] == [
        (method, column) for method in ("bitfit", "id3", "lora") for column in ("cola acc", "mrpc acc")
    ]
    for row in rows:
        entries, score = FIGURES[row["method"]]
        assert f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}" == score
        assert (row["backbone"], row["head"], row["seeds"]) == (entries, "10", "5")
        assert row["not_beaten"] == str(int(row["method"] != "bitfit"))


@pytest.mark.skipif(LATEX is None, reason="no pdflatex here (texlive-latex-recommended)")
def test_latex_compiles_as_it_is(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    make("a_b & 100% #1 ~ ^ {x}", "mrpc", 0, 0.9, lr=7e-3)
    text = render.text(table.build(study(tmp_path)), "latex")
    whole = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(whole)
    done = subprocess.run([str(LATEX), "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_and_latex_escape_what_data_says() -> None:
    made = table.Table("<b>", ["c"], [table.Line("<i>&", {"c": table.Entry(1.0)}, table.Entry(), dict.fromkeys(
        ("backbone", "head", "total", "stored_bytes")), 1.0, 0.0, 1.0)])  # fmt: skip
    assert "<i>" not in render.text(made, "html")
    assert "&lt;i&gt;&amp;" in render.text(made, "html")
    assert escape.latex("a_b & 5%") == "a\\_b \\& 5\\%"


def test_a_paper_stands_beside_ours_in_its_own_metric(template: Record) -> None:
    paper = papers.load("lora_roberta_base")
    cell = dataclasses.replace(template.cell, method="lora", model="roberta_base", task="mnli", data="hub")
    config = compose.resolved(compose.load(["model=roberta_base", "method=lora", "task=mnli", "data=hub"]))
    metrics = {"accuracy_matched": 0.87, "accuracy_mismatched": 0.88}
    evaluation = Evaluation(1, 1.0, metrics, collapsed=False, chosen_by=0.87)
    record = dataclasses.replace(
        template, cell=cell, config=config, headline=Headline("accuracy_matched", 0.87, None),
        metrics=Metrics(evaluation, [evaluation], "best_dev", False),
    )  # fmt: skip
    found = table.build(Study("s", [record], [Path()]), paper).lines[0]
    entry = found.entries["mnli acc m"]
    assert entry.published == 87.5
    ours = 100 * (0.87 * 9815 + 0.88 * 9832) / (9815 + 9832)
    assert entry.difference == pytest.approx(ours - 87.5)
    assert found.average.published == 87.2
    rank4 = dataclasses.replace(record, config={**config, "method": {**config["method"], "rank": 4}})
    assert table.build(Study("s", [rank4], [Path()]), paper).lines[0].entries["mnli acc m"].published is None


def test_published_averages_are_those_of_the_published_columns() -> None:
    for name in papers.names():
        paper = papers.load(name)
        if paper.average.tasks is None:
            continue
        checked = 0
        for row in paper.rows:
            columns = [
                [row.scores.get(task, {}).get(metric) for metric in metrics]
                for task, metrics in paper.average.tasks.items()
            ]
            if row.average is None or any(figure is None for column in columns for figure in column):
                continue
            assert np.mean([np.mean(column) for column in columns]) == pytest.approx(row.average, abs=0.0625), row.name
            checked += 1
        assert checked, name


def test_a_real_effect_is_found_and_noise_is_not() -> None:
    random = np.random.default_rng(1)
    pairs = [(task, seed) for task in "abc" for seed in range(5)]
    base = {pair: float(random.normal(80, 1)) for pair in pairs}
    scores = {
        "base": base,
        "better": {pair: value + 2 + float(random.normal(0, 0.3)) for pair, value in base.items()},
        "same": {pair: value + float(random.normal(0, 0.3)) for pair, value in base.items()},
    }
    better = statistics.compare(scores, "better", "base")[-1]
    assert better.task == "all"
    assert better.pairs == 15
    assert better.p is not None
    assert better.p < 0.01
    assert better.improvement == 1.0
    assert better.interval is not None
    assert better.interval.low > 1.5
    same = statistics.compare(scores, "same", "base")[-1]
    assert same.p is not None
    assert same.p > 0.05
    assert same.seeds_needed is not None
    assert same.seeds_needed > 15


def test_the_paired_test_is_exact_where_there_are_few_pairs() -> None:
    for count in range(2, 7):
        assert statistics.paired_p([1.0 + i for i in range(count)]) == pytest.approx(2 / 2**count)
    assert statistics.paired_p([1.0]) is None
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.lists(st.floats(0, 100), min_size=3, max_size=8))
def test_the_mean_lies_in_its_interval(values: list[float]) -> None:
    found = statistics.bootstrap(values)
    assert found is not None
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 100)), min_size=1, max_size=20))
def test_a_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = plots.pareto(points)
    for cost, score in front:
        assert not any(c <= cost and s > score for c, s in points)
    for cost, score in points:
        assert any(c <= cost and s >= score for c, s in front)


@pytest.mark.filterwarnings("error")
def test_equal_seeds_are_compared_without_a_warning() -> None:
    scores = {"head": [4.63559874942472] * 3, "full": [25.6, 28.4, 27.0], "lora": [25.0, 28.0, 26.0]}
    assert statistics.not_beaten(scores) == {"full", "lora"}


def test_compare_says_no_more_than_the_test_shows(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    said = call("compare", "made", "lora", "bitfit", cwd=tmp_path).stdout.splitlines()
    assert said[0].startswith("lora beats bitfit over all tasks: 10.0 points, 10 pairs")
    assert len(said) == 4
    said = verdict.lines(study(tmp_path), "id3", "lora")
    assert said[0].startswith("No difference between id3 and lora over all tasks outside the noise")
    wrong = call("compare", "made", "lora", "bitft", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "bitft: no row of study made; did you mean bitfit?\n"


def test_a_methods_word_names_its_row_where_there_is_one_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    for i, task in itertools.product(range(2), TASKS):
        make("lora", task, i, 0.80 + 0.001 * i)
        for budget in ("50", "like-bitfit"):
            make("id3", task, i, 0.7 + 0.001 * i, budget=budget)
        make("fish", task, i, 0.6 + 0.001 * i, budget="50")
    assert verdict.lines(study(tmp_path), "fish", "id3 50") == verdict.lines(study(tmp_path), "fish 50", "id3 50")
    with pytest.raises(ConfigError, match="id3: no row of study made; did you mean id3 50"):
        verdict.lines(study(tmp_path), "id3", "lora")


def test_plots_are_drawn_and_can_be_opened(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    done = call("plot", "made", "--to", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {Path(line).name for line in done.stdout.splitlines()}
    assert {"entries.png", "seconds.pdf", "memory.png", "curves.png", "seeds.png"} <= written
    for path in (tmp_path / "figures").glob("*.png"):
        pixels = {tuple(pixel) for pixel in (255 * pyplot.imread(path)[:, :, :3]).round().astype(int).reshape(-1, 3)}
        for colour in plots.COLOURS[:3]:  # one for each method
            assert tuple(bytes.fromhex(colour[1:])) in pixels, (path, colour)
    rows = table.apart(study(tmp_path))[0]
    figure = plots.FIGURES["entries"](study(tmp_path), rows, tmp_path / "outputs")
    assert figure is not None
    for axes in figure.axes:
        points = {tuple(np.round(bars.lines[0].get_xydata()[0], 1)) for bars in axes.containers}
        assert points == {(900, 80.2), (100, 70.2), (300, 80.1)}
    refused = call("plot", "made", "--to", "/proc/figures", cwd=tmp_path)
    assert refused.returncode == 2
    assert "/proc/figures: cannot be written" in refused.stderr


def test_a_growing_selection_has_a_figure_of_its_own(tmp_path: Path) -> None:
    words = [*TINY, "study=s", "method=id3", "budget=40,80", "protocol.max_steps=12"]
    assert call("run", "-m", *words, cwd=tmp_path).returncode == 0
    done = call("plot", "s", "--to", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "figures/growth.png" in done.stdout.splitlines()


EVIL = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"
PROBE = """
<pre id="probe"></pre><script>
window.addEventListener("load", () => setTimeout(() => {
  const cells = at => [...document.querySelectorAll("#table tbody tr")].map(line => line.cells[at].textContent);
  const heads = [...document.querySelectorAll("#table thead th")];
  const at = heads.findIndex(head => head.textContent === "mrpc acc");
  const found = { methods: cells(0) };
  heads[at].click(); found.down = cells(0);
  heads[at].click(); found.up = cells(0);
  const choose = (id, word) => { get(id).value = word; get(id).dispatchEvent(new Event("change")); };
  choose("method", "lora");
  found.filtered = cells(0);
  found.runs = document.querySelectorAll("#runs tbody tr").length;
  choose("method", "all"); choose("task", "mrpc acc");
  found.columns = [...document.querySelectorAll("#table thead th")].map(head => head.textContent);
  const lines = [...document.querySelectorAll("#runs tbody tr")];
  lines.find(line => line.cells[0].textContent === "bitfit").click();
  found.open = get("run").textContent;
  found.confusion = [...document.querySelectorAll(".confusion td")].map(cell => cell.textContent);
  const traces = get("pareto").data.map(trace => trace.name);
  Plotly.Fx.hover("pareto", [{ curveNumber: traces.indexOf("lora"), pointNumber: 0 }]);
  setTimeout(() => {
    found.hover = [...document.querySelectorAll("#pareto .hovertext")].map(part => part.textContent).join(" ");
    found.failures = get("failures").textContent;
    found.images = document.querySelectorAll("img").length;
    found.title = document.title;
    const frame = document.documentElement;
    found.overflow = frame.scrollWidth - frame.clientWidth;
    get("theme").click();
    found.background = getComputedStyle(document.body).backgroundColor;
    document.getElementById("probe").textContent = JSON.stringify(found);
  }, 300);
}, 100));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_the_page_works_in_a_browser_and_runs_nothing_that_is_data(make: Callable[..., Path], tmp_path: Path) -> None:
    full_study(make)
    make(EVIL, "mrpc", 0, 0.5)
    failed = make("full", "mrpc", 0, 0.5)
    record = read_record(failed / "result.json")
    write_record(dataclasses.replace(record, status="failed", error=f"Error: {EVIL}", overrides=[EVIL]), failed)
    path = tmp_path / "page" / "report.html"
    assert call("report", "made", "--to", str(path), cwd=tmp_path).returncode == 0
    text = path.read_text(encoding="utf-8")
    assert EVIL not in text
    assert not re.search(r"""(src|href)=["']https?:""", text.replace(page.get_plotlyjs(), ""))
    path.write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         "--virtual-time-budget=10000", "--window-size=1300,2000", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    shown = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert shown
    assert shown[1]
    found = json.loads(shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert set(found["methods"]) == {"lora", "bitfit", "id3", EVIL}
    assert found["down"][-2:] == ["bitfit", EVIL]
    assert found["up"] == found["down"][::-1]
    assert found["filtered"] == ["lora"]
    assert found["runs"] == 10
    assert "mrpc acc" in found["columns"]
    assert "cola acc" not in found["columns"]
    assert "bitfit, mrpc acc, seed" in found["open"]
    assert found["confusion"] == ["equivalent", "2", "4", "not_equivalent", "2", "4"]
    assert "80.20 ± 0.16 (n=5)" in found["hover"]
    assert "900 trainable backbone entries" in found["hover"]
    assert EVIL in found["failures"]
    assert found["images"] == 0
    assert found["title"] == "made, peftbench"
    assert found["overflow"] <= 0
    assert found["background"] == "rgb(20, 24, 29)"


def test_papers_say_what_they_are_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    for words, line in (
        (
            ["table", "x", "--paper", "lora"],
            "paper lora: there is none; did you mean adalora_deberta_v3_base or lora_roberta_base",
        ),
        (["count", "--paper", "spafi"], "did you mean spafit"),
        (["reproduce", "id3", "--dry-run"], "its scores per task are not public"),
        (
            ["reproduce", "lora_roberta_base", "--only", "rta"],
            "--only rta: not in this paper's table; did you mean rte",
        ),
        (["reproduce", "lora_roberta_base", "--as", "code"], "--as code: allowed: paper, script"),
    ):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert line in done.stderr


def test_every_count_that_a_paper_states_is_checked(tmp_path: Path) -> None:
    from peftbench.study import counts

    expected = {
        "spafit": {"as printed": 3, "as the closed form": 8},
        "lora_roberta_base": {"as printed": 2, "not explained": 1, "not in this bench": 2},
        "lora_roberta_large": {"as printed": 4, "not explained": 3},
        "bert_miniatures": {"as the closed form": 4},
        "adalora_deberta_v3_base": {
            "as printed": 7,
            "rounds as printed": 1,
            "not explained": 2,
            "within the bounds": 2,
        },
    }
    for name, verdicts in expected.items():
        found = [item.verdict for item in counts.check(papers.load(name))]
        assert {verdict: found.count(verdict) for verdict in set(found)} == verdicts, name
    assert counts.rounds_to(294_912, 1, "0.3M")
    assert not counts.rounds_to(351_000, 1, "0.3M")
    assert counts.rounds_to(272_384, 333_579_264, "0.08%")
    shown = call("count", "--paper", "spafit", cwd=tmp_path)
    assert shown.returncode == 0
    assert "5,650,434" in shown.stdout
    pruned = [item for item in counts.check(papers.load("adalora_deberta_v3_base")) if item.bounds]
    assert [item.ours for item in pruned] == [1_991_520, 663_840]
    assert [item.bounds for item in pruned] == [(884_736 + 576, 1_548_288 + 576), (221_184 + 144, 442_368 + 144)]


def test_a_papers_sweep_is_run_mnli_first(tmp_path: Path) -> None:
    texts = {
        "MNLI": ("index\tsentence1\tsentence2\tgold_label\n", ["entailment", "neutral", "contradiction"],
                 ["train", "dev_matched", "dev_mismatched"]),
        "RTE": ("index\tsentence1\tsentence2\tlabel\n", ["entailment", "not_entailment"], ["train", "dev"]),
    }  # fmt: skip
    for folder, (head, labels, files) in texts.items():
        (tmp_path / folder).mkdir()
        for name in files:
            lines = [f"{i}\tone thing {i}\tother thing {i % 5}\t{labels[i % len(labels)]}\n" for i in range(24)]
            (tmp_path / folder / f"{name}.tsv").write_text(head + "".join(lines))
    words = ["reproduce", "lora_roberta_base", "--only", "rte", "seed=0", "data=folder", f"data.path={tmp_path}"]
    words += ["model=bert_tiny", "model.weights=random", "tracker=none", "protocol.epochs=1", "protocol.max_length=32"]
    dry = call(*words, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "lora_roberta_base: 4 cells, 1 of them from an MNLI run" in dry.stdout
    assert "missing: Adapter-Drop (Adpt-D)" in dry.stdout
    assert not (tmp_path / "outputs").exists()
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [read_record(path) for path in find_records(tmp_path / "outputs" / "lora_roberta_base")]
    assert sorted(f"{record.cell.task} {record.cell.method}" for record in found) == [
        "mnli lora", "rte bitfit", "rte full", "rte lora"
    ]  # fmt: skip
    (rte,) = [record for record in found if record.cell.task == "rte" and record.cell.method == "lora"]
    assert "/mnli-lora-bert_tiny-" in rte.config["init_from"]
    assert (rte.lr, rte.config["method"]["alpha"]) == (5e-4, 8)
