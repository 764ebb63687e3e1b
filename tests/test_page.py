"""Plots and the page: what they draw is what the records say, and nothing in the records runs."""

import dataclasses
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from forgery import Said
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot
from studies import full_study, made_study
from support import TINY, call

from peftbench.record import read_record, write_record
from peftbench.report import page, plots
from peftbench.report.figures import scores
from peftbench.report.figures.every import figures
from peftbench.report.figures.parts import Material, summary
from peftbench.report.records import read_study
from peftbench.report.styles import Style, style


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 100)), min_size=1, max_size=20))
def test_a_pareto_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = scores.front_of([(cost, summary([score])) for cost, score in points])
    assert front.x == sorted({cost for cost, _ in points})
    for cost, *best in zip(front.x, front.y, front.low, front.high, strict=True):
        assert best == pytest.approx([max(s for c, s in points if c <= cost)] * 3)


def test_plots_are_drawn_and_can_be_opened(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    done = call("plot", "made", "--to", "figures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {Path(line).name for line in done.stdout.splitlines()}
    assert {"entries.png", "seconds.pdf", "memory.svg", "curves.png", "seeds.png"} <= written
    for path in (tmp_path / "figures").glob("*.png"):
        pixels = (255 * pyplot.imread(path)[:, :, :3]).round().astype(int) @ [1 << 16, 1 << 8, 1]
        for method in ("lora", "bitfit", "id3"):
            assert (pixels == int(style(method).colour[1:], 16)).any(), (path, method)
    material = Material(made_study(tmp_path))
    figure = plots.draw(next(scores.costs(material)), material.methods)
    assert [axes.get_title() for axes in figure.axes] == ["cola acc", "mrpc acc", "mean of 2 tasks"]
    for axes in figure.axes:
        points = {tuple(np.round(bars.lines[0].get_xydata()[0], 1)) for bars in axes.containers}
        assert points == {(900, 80.2), (100, 70.2), (300, 80.1)}
    refused = call("plot", "made", "--to", "/proc/figures", cwd=tmp_path)
    assert refused.returncode == 2
    assert "/proc/figures: cannot be written" in refused.stderr


def test_a_mean_over_tasks_is_relative_to_full_fine_tuning(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("head", "mrpc", 0, 0.3)  # not on every task: it has no mean
    write_run("vera", "mrpc", 0, 0.71)
    for task, score in (("mrpc", 0.852), ("cola", 0.802)):
        write_run("full", task, 0, score, entries=10**6)
    mean = next(scores.costs(Material(made_study(tmp_path)))).panels[-1]
    assert (mean.title, mean.y_label) == ("mean of 2 tasks", "points from full fine-tuning")
    shown = {one.name: one for one in mean.series}
    assert {name: round(one.y[0], 2) for name, one in shown.items()} == {
        "lora": -2.5, "bitfit": -12.5, "id3": -2.56, "full": 0.0
    }  # fmt: skip
    assert shown["lora"].low[0] < -2.5 < shown["lora"].high[0]
    assert shown["lora"].dots == [pytest.approx((900, -2.7 + 0.1 * seed)) for seed in range(5)]
    assert shown["full"].low == []  # one seed
    assert mean.front is not None
    assert mean.front.x == [100, 300, 900, 10**6]
    assert mean.front.y == pytest.approx([-12.5, -2.56, -2.5, 0.0])
    for low, middle, high in zip(mean.front.low, mean.front.y, mean.front.high, strict=True):
        assert low - 0.05 <= middle <= high + 0.05
    mrpc = next(scores.seeds(Material(made_study(tmp_path)))).panels[1]
    assert mrpc.below == "below: head 30.0"
    assert mrpc.limits is not None
    assert 60 < mrpc.limits[0] < 70


def test_methods_of_one_cost_stand_side_by_side(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for name, entries in (("lora", 500), ("id3", 500), ("bitfit", 505), ("full", 10**6)):
        write_run(name, "mrpc", 0, 0.8, entries=entries)
    (panel,) = next(scores.costs(Material(made_study(tmp_path)))).panels
    places = sorted(one.x[0] for one in panel.series)
    assert all(other > 1.1 * one for one, other in itertools.pairwise(places))
    assert places[-1] == 10**6
    assert {"500 trainable" in one.notes[0] for one in panel.series if one.name in ("lora", "id3")} == {True}


def looks(method: str) -> tuple[str, str, bool]:
    """What tells a method from others where there are no lines."""
    found = style(method)
    return found.colour, found.marker, found.filled


def test_every_method_has_looks_of_its_own_that_no_other_changes() -> None:
    words = [path.stem for path in Path("conf/method").glob("[!_]*.yaml")]
    new = [f"mine_{number}" for number in range(40)]  # no place in METHODS: a method needs no edit there
    assert len({looks(word) for word in [*words, *new]}) == len(words) + len(new)
    assert [style(word).filled for word in new] == [False] * len(new)
    assert style("lora") == Style("#CC79A7", "D", True, "solid")
    assert style("somebody_elses") == style("somebody_elses")
    assert not style("somebody_elses").filled
    assert style("id3", "like-bitfit").colour == style("id3").colour
    assert style("id3", "like-bitfit").dash != style("id3").dash
    learners = [path.stem for path in Path("conf/learner").glob("[!_]*.yaml")]
    assert len({looks(learner)[0] for learner in learners}) == len(learners), "they are always drawn together"
    assert looks("mos, order 2") == looks("mos")


def test_what_id3_and_adalora_chose_over_time_is_drawn_by_layer_and_kind(tmp_path: Path) -> None:
    words = [*TINY, "study=s", "protocol.max_steps=12"]
    assert call("run", "-m", *words, "method=id3", "budget=40,80", cwd=tmp_path).returncode == 0
    assert call("run", *words, "method=adalora", "method.rank=2", cwd=tmp_path).returncode == 0
    made = {figure.word: figure for figure in figures(Material(read_study(tmp_path / "outputs", "s")))}
    growing, chosen = made["growth"].panels[0], made["chosen_adalora_sst2_acc_sample"]
    assert {one.name: one.y[-1] for one in growing.series} == {"id3 40": 40, "id3 80": 80}
    (joined,) = made["budgets"].panels[0].series
    assert (joined.name, joined.x) == ("id3", [40, 80])
    assert [panel.title for panel in chosen.panels] == [f"after {step} steps" for step in (0, 3, 5, 9, 11)]
    first, last = (panel.map for panel in (chosen.panels[0], chosen.panels[-1]))
    assert first is not None
    assert last is not None
    assert first.rows == ["0", "1"]
    assert first.columns == ["query", "key", "value", "attention_output", "intermediate", "output"]
    triplet = [100 * size / (2 * (4 * 257 + 2 * 641)) for size in (257, 257, 257, 257, 641, 641)]
    assert first.values == [pytest.approx(triplet, abs=0.01)] * 2  # nothing was pruned yet
    assert last.values != first.values
    assert sum(map(sum, last.values)) == pytest.approx(100, abs=0.1)
    drawn = plots.draw(chosen, {})
    assert np.array_equal(drawn.axes[0].images[0].get_array(), first.values)


TYPED = ["method=$(touch f)", "task=`touch f`", "study='a;touch f'"]


def test_a_command_that_the_page_offers_runs_nothing_when_it_is_pasted(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    statuses: dict[str, Literal["done", "failed"]] = {"lora": "done", "bitfit": "failed"}
    for method, status in statuses.items():
        folder = write_run(method, "mrpc", 0, 0.5)
        record = read_record(folder / "result.json")
        write_record(dataclasses.replace(record, status=status, overrides=TYPED), folder)
    content = page.content(made_study(tmp_path))
    offered = [one["command"] for one in (*content["details"], *content["failures"])]
    (line,) = set(offered)
    assert len(offered) == 2
    assert line == """peftbench run 'method=$(touch f)' 'task=`touch f`' 'study='"'"'a;touch f'"'"''"""
    (tmp_path / "peftbench").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "peftbench").chmod(0o755)
    where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    pasted = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert pasted.stdout.splitlines() == ["run", *TYPED]
    assert not (tmp_path / "f").exists()


def test_ties_on_the_page_are_within_the_margin_that_is_given(
    write_run: Callable[..., Path], command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_study(write_run)
    monkeypatch.chdir(tmp_path)
    words = {}
    for margin in ([], ["--margin", "0.1"]):
        assert command("report", "made", "--to", "page.html", *margin)[0] == 0
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        shown = "within 0.1 points," if margin else "within 1 point,"
        assert f"= tied {shown} ? not decided" in text
        data = page.content(made_study(tmp_path), margin=0.1 if margin else 1.0)
        assert page.embedded(data["verdicts"]) in text
        words[len(margin)] = {one["column"]: {pair["word"] for pair in one["pairs"]} for one in data["verdicts"]}
    assert words[0].keys() == words[2].keys()
    assert "tied" in words[0]["cola acc"] & words[0]["mean of these 2 tasks"]
    assert "tied" not in words[2]["cola acc"] | words[2]["mean of these 2 tasks"]
    code, _, err = command("report", "made", "--margin", "0")
    assert (code, "--margin 0: points within which" in err) == (2, True)
