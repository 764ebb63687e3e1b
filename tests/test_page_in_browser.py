"""The page in a real Chromium: at a desktop's and a phone's width, by mouse and keyboard, and what it saves."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import Browser, Tab
from matplotlib import pyplot
from studies import full_study, made_study

from peftbench.record import Made, read_record, write_record
from peftbench.report import page
from peftbench.report.styles import METHODS, style

EVIL = "<img src=x onerror=\"document.title='run'\"></script><script>document.title='run'</script>"
PROBE = """(async () => {
  const until = made => new Promise(done => {
    const look = () => { const found = made(); found ? done(found) : setTimeout(look, 10); };
    look();
  });
  const cells = (at, id = "table") =>
    [...document.querySelectorAll(`#${id} tbody tr`)].map(line => line.cells[at].textContent);
  const heads = () => [...document.querySelectorAll("#table thead button")];
  const press = word => heads().find(head => head.textContent === word).click();
  const choose = (id, word) => { get(id).value = word; get(id).dispatchEvent(new Event("change")); };
  const told = { methods: cells(0) };
  press("mrpc acc"); told.down = cells(0);
  press("mrpc acc"); told.up = cells(0);
  get("search").value = "LOR"; get("search").dispatchEvent(new Event("input")); get("show-found").click();
  told.filtered = cells(0);
  told.runs = cells(0, "runs").length;
  get("show-all").click();
  document.querySelector("#legend input:not([disabled])").click(); told.ticked = cells(0).length;
  get("show-all").click(); choose("task", "mrpc acc");
  told.columns = heads().map(head => head.textContent);
  told.verdicts = cells(0, "verdicts").map((name, at) => [name, ...[1, 2, 3].map(i => cells(i, "verdicts")[at])]);
  told.pairs = cells(2, "every-pair");
  told.behind = [...document.querySelectorAll("#verdicts tbody tr")].map(line => line.cells[3].title);
  const [firstPair] = document.querySelectorAll("#every-pair tbody tr");
  told.firstPair = [...firstPair.cells].map(one => one.textContent);
  told.views = [...get("view").options].map(one => one.value);
  choose("view", "costs");
  told.costs = cells(0, "view-table").map((column, at) => [column, cells(1, "view-table")[at]]);
  const place = places.get("Score against cost");
  place.draw();
  told.panels = place.plot.layout.annotations.map(note => note.text);
  told.across = new Set(Object.entries(place.plot.layout).filter(([key]) => key.startsWith("xaxis"))
    .map(([, axis]) => axis.domain[0])).size;
  const trace = place.plot.data.findIndex(one => one.name === "lora");
  Plotly.Fx.hover(place.plot, [{ curveNumber: trace, pointNumber: 0 }]);
  const hovered = () => [...place.plot.querySelectorAll(".hovertext")].map(part => part.textContent).join(" ");
  told.hover = await until(hovered);
  told.front = place.plot.data.find(one => one.name === "front, in words").text;
  const curves = places.get("Learning curves");
  curves.draw();
  told.curve = curves.plot.data.find(one => one.name === "lora").text;
  place.numbers.open = true;
  place.drawNumbers();
  told.numbers = [...place.numbers.querySelectorAll("tbody tr")].map(line => line.cells[1].textContent);
  for (const form of ["Markdown", "LaTeX"]) {
    document.querySelector(`#table [aria-label$='${form}']`).click();
    told[form] = document.querySelector("#text textarea").value;
    get("text").close();
  }
  document.querySelector(`#view-table [aria-label$='Markdown']`).click();
  told.view = document.querySelector("#text textarea").value;
  get("text").close();
  told.exported = [verdicts, everyPair, place.view, runs].map(one => one.text("Markdown"));
  told.headless = ["table", "verdicts", "every-pair", "view-table", "runs"]
    .map(id => document.querySelectorAll(`#${id} tbody tr > :first-child:not(th[scope=row])`).length);
  const lines = [...document.querySelectorAll("#runs tbody tr")];
  lines.find(line => line.cells[0].textContent === "bitfit").querySelector("button").click();
  told.open = get("run").textContent;
  told.confusion = [...document.querySelectorAll(".confusion [scope=row], .confusion td")]
    .map(cell => cell.textContent);
  told.unnamed = [...document.querySelectorAll("button, select, input, textarea, [role=img], [role=region]")]
    .filter(one => !(one.getAttribute("aria-label") || one.textContent || one.closest("label"))).length;
  told.unreachable = [...document.querySelectorAll("button, select, input, summary, .wide.tall")]
    .filter(one => one.tabIndex < 0).length;
  told.failures = get("failures").textContent;
  told.images = document.querySelectorAll("img").length;
  told.title = document.title;
  told.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  get("theme").click();
  told.background = getComputedStyle(document.body).backgroundColor;
  get("theme").click();
  get("show-all").click();
  choose("task", "all");
  told.means = [...get("verdict-task").options].map(one => one.value).slice(2);
  const seeds = places.get("Every seed");
  seeds.draw();
  const axes = Object.entries(seeds.plot.layout).filter(([key]) => key.startsWith("yaxis"));
  told.heights = axes.map(([, axis]) => axis.range);
  return told;
})()"""


def test_the_page_works_in_a_browser_and_runs_nothing_that_is_data(
    write_run: Callable[..., Path], tmp_path: Path, browser: Browser
) -> None:
    full_study(write_run)
    write_run(EVIL, "mrpc", 0, 0.5)
    failed = write_run("full", "mrpc", 0, 0.5)
    record = read_record(failed / "result.json")
    write_record(dataclasses.replace(record, status="failed", error=f"Error: {EVIL}", overrides=[EVIL]), failed)
    path = tmp_path / "page.html"
    page.write(page.content(made_study(tmp_path)), path)
    text = path.read_text(encoding="utf-8")
    assert EVIL not in text
    assert not re.search(r"""(src|href)=["']https?:""", text.replace(page.get_plotlyjs(), ""))
    for width, across in ((1280, 2), (390, 1)):
        tab = browser.open(path.as_uri(), width)
        probed = tab.run(PROBE)
        check_probed(probed)
        assert probed["across"] == across
        assert tab.errors() == []
    check_saved(browser, tab, tmp_path)
    check_keyboard(browser.open(path.as_uri()))


def check_saved(browser: Browser, tab: Tab, folder: Path) -> None:
    """What the buttons save is the figure, with its methods."""
    browser.download_to(folder)
    for format in ("SVG", "PNG"):
        tab.run(f"places.get('Score against cost').section.querySelector(`[aria-label$='{format}']`).click()")
        begun = browser.event("Browser.downloadWillBegin", suggestedFilename=f"made-entries.{format.lower()}")
        browser.event("Browser.downloadProgress", guid=begun["params"]["guid"], state="completed")
    drawn = (folder / "made-entries.svg").read_text(encoding="utf-8")
    words = {"mrpc acc", "cola acc", "mean of 2 tasks", "trainable backbone entries", "lora", "bitfit", "id3"}
    assert words <= set(re.findall(r">([^<>]+)<", drawn))
    assert style("lora").colour in drawn.upper() or "rgb(204, 121, 167)" in drawn
    picture = pyplot.imread(folder / "made-entries.png")
    assert picture.shape[1] == 2 * 900
    pixels = (255 * picture[:, :, :3]).round().astype(int) @ [1 << 16, 1 << 8, 1]
    assert all((pixels == int(style(method).colour[1:], 16)).any() for method in ("lora", "bitfit", "id3"))


def check_keyboard(tab: Tab) -> None:
    """The page without a mouse: keys as a keyboard sends them."""
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    tab.press("Enter", "Tab")
    assert tab.run("get('results').contains(document.activeElement)"), "the link skips what is before the results"
    tab.tab_to("at.textContent === 'mrpc acc'")
    tab.press("Enter")
    assert tab.run("document.activeElement.closest('th').getAttribute('aria-sort')") == "descending"
    tab.press("Enter")
    assert tab.run("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    tab.tab_to("at.getAttribute('aria-label') === 'results as LaTeX'")
    tab.press("Enter")
    assert "\\toprule" in tab.run("document.activeElement.value")
    tab.press("Escape")
    assert tab.run("[get('text').open, document.activeElement.getAttribute('aria-label')]") == [
        False, "results as LaTeX"
    ]  # fmt: skip
    tab.tab_to("at.closest('#runs tbody th') && at.textContent === 'lora'")
    tab.press("Enter")
    assert tab.run("get('run').hidden") is False
    tab.run("document.activeElement.blur()")
    tab.tab_to("at.parentElement.id === 'methods'")
    tab.press("Enter")
    tab.tab_to("at.type === 'checkbox'")
    tab.press(" ")
    assert tab.run("[hidden.size, document.activeElement.checked]") == [1, False], "and the focus stays"
    spoken = tab.call("Accessibility.getFullAXTree")["nodes"]
    cells = [one["name"]["value"] for one in spoken if one.get("role", {}).get("value") == "cell"]
    assert any(name.startswith("best: ") and "±" in name for name in cells), "bold is not for the eye alone"
    assert tab.errors() == []


def few_labels_and_edits(write: Callable[..., Path]) -> None:
    """ID3 at a budget and LoRA with 8 and 16 labels of each class, in three splits, and edits over strength."""
    for shots, split in itertools.product((8, 16), (1, 2, 3)):
        for method, budget, score in (("id3", "like-bitfit", 0.5), ("lora", "none", 0.6)):
            folder = write(method, "mrpc", split, score + shots / 100 + split / 1000, lr=shots / 1e4, budget=budget)
            config = read_record(folder / "result.json").config
            change(folder, config={**config, "shots": {"split": split, "per_class": shots}})
    for control, strength in itertools.product(("none", "aligned"), (1.0, 4.0)):
        keys = {"behaviour": "overlap", "control": control, "rows": 0.1, "strength": strength, "probe_at": "last"}
        seen = {"prone": 9, "rate_before": 0.8, "rate": 0.8 - strength / 10, "cured": 0.2, "moved": 0.1}
        scored = {**seen, "score_before": 0.7, "score": 0.7}
        folder = write(f"{control} x{strength:g} of lora", "mrpc", 0, 0.7)
        change(folder, made=Made("edit", keys, {"scored": scored, "headline_before": 0.75}))


def change(folder: Path, **more: Any) -> None:
    write_record(dataclasses.replace(read_record(folder / "result.json"), **more), folder)


def test_few_labels_and_edits_are_drawn_and_hidden_with_their_rows(
    write_run: Callable[..., Path], tmp_path: Path, browser: Browser
) -> None:
    few_labels_and_edits(write_run)
    path = tmp_path / "page.html"
    page.write(page.content(made_study(tmp_path)), path)
    tab = browser.open(path.as_uri(), 390)

    def drawn(group: str) -> list[str]:
        place = f"places.get('{group}')"
        traces = f"{place}.plot.data.filter(one => one.name !== 'band').map(one => one.name)"
        given: list[str] = tab.run(f"({place}.draw(), {place}.section.hidden ? [] : {traces})")
        return given

    def choose(name: str, word: str) -> None:
        tab.run(f"(get('{name}').value = '{word}', get('{name}').dispatchEvent(new Event('change')))")

    def table() -> list[dict[str, str]]:
        text = "(one.classList.contains('best') ? '*' : '') + one.textContent"
        lines = f"[...get('view-table').querySelectorAll('tr')].map(line => [...line.cells].map(one => {text}))"
        head, *rows = tab.run(lines)
        return [dict(zip(head, cells, strict=True)) for cells in rows]

    assert (drawn("Few labels"), drawn("Edits")) == (["id3 like-bitfit", "lora"], ["aligned", "surgery"])
    assert tab.run("look('id3 like-bitfit').colour") == style("id3").colour
    choose("view", "edits")
    assert {line["method"]: line["rate"] for line in table()}["aligned x4 of lora"] == "40.0"
    choose("view", "few labels")
    eight, sixteen, _ = table()
    assert (eight["task"], eight["labels"], sixteen["lora"]) == ("mrpc acc", "8/class", "*best: 76.2 ± 0.1")
    assert sixteen["id3 like-bitfit"] == "≈ 66.2 ± 0.1"
    assert "| **76.2 ± 0.1** |" in tab.run("view.text('Markdown')")
    choose("budget", "like-bitfit")
    assert (drawn("Few labels"), drawn("Edits")) == (["id3 like-bitfit"], [])
    assert [*table()[1]] == ["task", "labels", "id3 like-bitfit", "shows from"]
    assert table()[1].items() <= sixteen.items()
    left = tab.run("[...get('table').querySelectorAll('tbody tr')].map(line => line.cells[0].textContent)")
    assert sorted(left) == ["id3 like-bitfit 16/class", "id3 like-bitfit 8/class"]
    choose("budget", "none")
    assert (drawn("Few labels"), drawn("Edits")) == (["lora"], ["aligned", "surgery"])
    tab.run("hideAllBut(name => name.startsWith('aligned'))")
    assert (drawn("Few labels"), drawn("Edits")) == ([], ["aligned"])
    tab.run("hideAllBut(name => name !== 'id3 like-bitfit 8/class')")
    parent = "[...get('legend').children].find(one => one.textContent.endsWith('id3 (2)')).firstChild"
    assert tab.run(f"{parent}.indeterminate")
    for hidden in (0, 2):
        tab.run(f"{parent}.click()")
        assert tab.run("hidden.size") == hidden, "a method's box is that of all its rows"
    assert tab.errors() == []


def test_forty_methods_are_found_and_hidden_and_stay_within_a_phone(
    write_run: Callable[..., Path], tmp_path: Path, browser: Browser
) -> None:
    for at, method in enumerate(METHODS[:40]):
        for seed in range(2):
            write_run(method, "mrpc", seed, 0.6 + 0.005 * at + 0.001 * seed, entries=100 * (at + 1))
    path = tmp_path / "page.html"
    page.write(page.content(made_study(tmp_path)), path)
    tab = browser.open(path.as_uri(), 390)
    tab.run("(get('methods').open = true, places.forEach(place => place.draw()))")
    lines = "[...document.querySelectorAll('#table tbody tr')].map(line => line.cells[0].textContent)"
    assert sorted(tab.run(lines)) == sorted(METHODS[:40])
    keys = "[...places.get('Score against cost').key.children].map(one => one.textContent.slice(2))"
    assert sorted(tab.run(keys)) == sorted(METHODS[:40])
    wide = "[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, svg, .spoken, .skip'))"
    outside = f"{wide}.filter(one => one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)"
    assert tab.run("document.documentElement.scrollWidth") == 390
    assert tab.run(outside) == [], "tables alone are wider, each in a box that scrolls"
    tab.run("(get('search').value = 'id3', get('search').dispatchEvent(new Event('input')))")
    found = [method for method in METHODS[:40] if "id3" in method]
    listed = "[...get('legend').children].filter(one => !one.hidden).map(one => one.textContent.slice(1))"
    assert sorted(tab.run(listed)) == sorted(found)
    tab.run("get('show-found').click()")
    assert sorted(tab.run(lines)) == sorted(found)
    assert tab.run("get('shown-methods').textContent") == f"{len(found)} of 40 shown"
    tab.run("get('show-none').click()")
    assert tab.run(lines) == []
    tab.run("get('show-all').click()")
    tab.run("[...get('legend').children].find(one => one.textContent.endsWith('lora')).firstChild.click()")
    assert len(tab.run(lines)) == 39
    assert tab.errors() == []


def test_a_method_looks_the_same_in_a_line_of_several_rows(write_run: Callable[..., Path], tmp_path: Path) -> None:
    few_labels_and_edits(write_run)
    content = page.content(made_study(tmp_path))
    panels = [panel for figure in content["figures"] for panel in figure["panels"]]
    series = {one["name"]: one for panel in panels for one in panel["series"]}
    assert set(series["id3 like-bitfit"]["rows"]) == {"id3 like-bitfit 16/class", "id3 like-bitfit 8/class"}
    assert set(series["aligned"]["rows"]) == {"aligned x1 of lora", "aligned x4 of lora"}
    assert all(one["rows"] == [name] for name, one in series.items() if name in content["rows"])
    assert {content["styles"][name]["colour"] for name in series if name.startswith("id3")} == {style("id3").colour}


def check_probed(probed: dict[str, Any]) -> None:
    assert set(probed["methods"]) == {"lora", "bitfit", "id3", EVIL}
    assert probed["down"][-2:] == ["bitfit", EVIL]
    assert probed["up"] == probed["down"][::-1]
    assert probed["filtered"] == ["lora"]
    assert probed["runs"] == 10
    assert probed["ticked"] == 3
    assert "mrpc acc" in probed["columns"]
    assert "cola acc" not in probed["columns"]
    assert [row[:4] for row in probed["verdicts"]][:3] == [
        ["lora", "–", "= 0.1", "> 10.0"], ["id3", "= -0.1", "–", "> 9.9"], ["bitfit", "< -10.0", "< -9.9", "–"]
    ]  # fmt: skip
    assert probed["pairs"][:3] == ["tied", "ahead", "not decided"]
    assert probed["behind"][1].startswith("9.9 points; 95% interval 9.6 to 10.3; p < 0.001; ")
    assert (
        "p of differing by the margin or more = 1.000; id3 better in 5 of 5 seeds; this design shows "
        in (probed["behind"][1])
    )
    assert probed["behind"][2] == "", "a row against itself"
    lora_id3 = probed["firstPair"]
    assert lora_id3[:3] == ["lora", "id3", "tied"]
    assert float(lora_id3[4]) < float(lora_id3[3]) < float(lora_id3[5])
    assert float(lora_id3[10]) > 0, "what this design shows"
    assert lora_id3[11:13] == ["3 of 5 seeds", "–"]
    assert probed["means"] == ["mean of these 2 tasks", "mean over all tasks like these"]
    assert probed["heights"] == [[3.5, -0.5]] * 3, "a row is as high in the panels that lack others"
    assert probed["views"] == ["costs", "all tasks together", "PSCP"], "no rate was searched"
    assert sorted(probed["costs"]) == [["mrpc acc", name] for name in sorted(["lora", "bitfit", "id3", EVIL])]
    assert "made: what runs cost, mean ± sd" in probed["view"]
    assert "FLOPs: of matrix products and attention" in probed["view"]
    assert "bold: the best; ≈: no row is shown to be better" in probed["Markdown"]
    assert "\\footnotesize bold: the best" in probed["LaTeX"]
    assert probed["panels"] == ["mrpc acc", "mean of 2 tasks"]
    assert "lora, mrpc acc" in probed["hover"]
    assert "80.20, 95% interval 80.00 to 80.40, n=5, 900 trainable backbone entries" in probed["hover"]
    assert re.fullmatch(r"front: 70\.20, 95% interval 70\.\d\d to 70\.\d\d", probed["front"][0])
    assert probed["curve"] == [
        f"lora, mrpc acc<br>{words}"
        for words in (
            "40.10, seeds from 40.00 to 40.20, n=5, after 2 steps",
            "80.20, seeds from 80.00 to 80.40, n=5, after 4 steps",
        )
    ]
    assert set(probed["numbers"]) == {"lora", "bitfit", "id3", EVIL, "front"}
    assert "| lora | 900 | 10 | **80.2 ± 0.2** |" in probed["Markdown"]
    assert "lora & 900 & 10 & \\textbf{80.2 $\\pm$ 0.2} &" in probed["LaTeX"]
    matrix, pairs, numbers, runs = probed["exported"]
    for text in (matrix, pairs):
        assert "\nsigns: > the row is shown to be better than the column, &lt; worse, = tied within 1 point" in text
        assert "p corrected by Holm for 3 pairs in mrpc acc, is below 5%" in text
    assert "95% t-interval of the mean over seeds" in numbers
    assert "± rows: standard error" in runs
    assert probed["headless"] == [0] * 5, "the first cell of a row names it"
    assert "bitfit, mrpc acc, seed" in probed["open"]
    assert probed["confusion"] == ["equivalent", "2", "4", "not_equivalent", "2", "4"]
    assert probed["unnamed"] == probed["unreachable"] == 0
    assert EVIL in probed["failures"]
    assert probed["images"] == 0
    assert probed["title"] == "made, peftbench"
    assert probed["overflow"] <= 0
    assert probed["background"] == "rgb(20, 24, 29)"
