"""Plots and the page: what they draw is what the records say, and nothing in the records runs."""

import dataclasses
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
from studies import full_study, made_study
from support import TINY, call, start

from peftbench.record import read_record, write_record
from peftbench.report import page, plots, table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 100)), min_size=1, max_size=20))
def test_a_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = plots.pareto(points)
    for cost, score in front:
        assert not any(c <= cost and s > score for c, s in points)
    for cost, score in points:
        assert any(c <= cost and s >= score for c, s in front)


def test_plots_are_drawn_and_can_be_opened(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    done = start("plot", "made", "--to", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {Path(line).name for line in done.stdout.splitlines()}
    assert {"entries.png", "seconds.pdf", "memory.png", "curves.png", "seeds.png"} <= written
    for path in (tmp_path / "figures").glob("*.png"):
        pixels = {tuple(pixel) for pixel in (255 * pyplot.imread(path)[:, :, :3]).round().astype(int).reshape(-1, 3)}
        for colour in plots.COLOURS[:3]:  # one for each method
            assert tuple(bytes.fromhex(colour[1:])) in pixels, (path, colour)
    rows = table.apart(made_study(tmp_path))[0]
    figure = plots.FIGURES["entries"](made_study(tmp_path), rows, tmp_path / "outputs")
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
def test_the_page_works_in_a_browser_and_runs_nothing_that_is_data(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    full_study(write_run)
    write_run(EVIL, "mrpc", 0, 0.5)
    failed = write_run("full", "mrpc", 0, 0.5)
    record = read_record(failed / "result.json")
    write_record(dataclasses.replace(record, status="failed", error=f"Error: {EVIL}", overrides=[EVIL]), failed)
    path = tmp_path / "page" / "report.html"
    assert start("report", "made", "--to", str(path), cwd=tmp_path).returncode == 0
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
    probed = json.loads(shown[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert set(probed["methods"]) == {"lora", "bitfit", "id3", EVIL}
    assert probed["down"][-2:] == ["bitfit", EVIL]
    assert probed["up"] == probed["down"][::-1]
    assert probed["filtered"] == ["lora"]
    assert probed["runs"] == 10
    assert "mrpc acc" in probed["columns"]
    assert "cola acc" not in probed["columns"]
    assert "bitfit, mrpc acc, seed" in probed["open"]
    assert probed["confusion"] == ["equivalent", "2", "4", "not_equivalent", "2", "4"]
    assert "80.20 ± 0.16 (n=5)" in probed["hover"]
    assert "900 trainable backbone entries" in probed["hover"]
    assert EVIL in probed["failures"]
    assert probed["images"] == 0
    assert probed["title"] == "made, peftbench"
    assert probed["overflow"] <= 0
    assert probed["background"] == "rgb(20, 24, 29)"
