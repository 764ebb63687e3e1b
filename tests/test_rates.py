"""How scores depended on the rates that were tried, and what a table says where a rate was fixed or at an end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import made_study
from support import call

from peftbench.ground.files import RECORD_FILE
from peftbench.record import Record, Search, read_record, write_record
from peftbench.report import rates, table
from peftbench.report.figures import training
from peftbench.report.figures.parts import Material
from peftbench.report.rates import Tried
from peftbench.report.records import column_of, name_of, read_study
from peftbench.report.table import apart

STUDY = Path(__file__).parents[1] / "docs" / "study"
Write = Callable[..., Path]


def searched(chosen: float, scores: dict[float, float | None], **more: Any) -> Search:
    return Search(chosen, "held_out", {f"{rate:g}": score for rate, score in scores.items()}, [], 1.0, **more)


def rewrite(folder: Path, search: Search | None = None, default_lr: float = 1e-3, **protocol: float) -> None:
    """Give a written run a search, its method's default and settings of its protocol."""
    record: Record = read_record(folder / RECORD_FILE)
    config = {**record.config, "protocol": {**record.config["protocol"], **protocol}}
    config["method"] = {**config["method"], "default_lr": default_lr}
    write_record(dataclasses.replace(record, search=search, config=config), folder)


def notes(tmp_path: Path) -> list[str]:
    return table.build(made_study(tmp_path)).notes


def about(tmp_path: Path, words: str) -> list[str]:
    return [note for note in notes(tmp_path) if words in note]


MIDDLE = {1e-4: 0.5, 1e-3: 0.7, 1e-2: 0.6}


def test_the_committed_study_says_that_the_heads_rate_was_fixed_and_where_a_search_ended(tmp_path: Path) -> None:
    done = call("table", "glue_small", "--outputs", str(STUDY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "head_lr=0.005 was fixed for all methods but head, while lr differs or was searched: " in done.stdout
    assert "the largest lr tried was chosen" in done.stdout
    assert "lora 0.0015 (cola MCC, mrpc acc, stsb pearson)" in done.stdout
    assert "the smallest lr tried was chosen" in done.stdout
    assert "random_masking like-bitfit 0.009 (cola MCC" in done.stdout
    study = read_study(STUDY, "glue_small")
    ends = {(one.name, one.column): one.edge for one in rates.tried(study, apart(study)[0])}
    assert len(ends) == 24
    for record in study.done():  # by hand, from every record
        assert record.search is not None
        tried = sorted(map(float, record.search.scores))
        end = {tried[0]: "lower", tried[-1]: "upper"}.get(record.search.chosen)
        assert ends[name_of(record), column_of(record)] == end


def test_a_fixed_rate_of_the_head_is_said_where_several_have_it_and_their_own_would_differ(
    write_run: Write, tmp_path: Path
) -> None:
    folders = {method: write_run(method, "mrpc", 0, 0.8) for method in ("lora", "bitfit", "head")}
    search = searched(1e-3, MIDDLE)
    rewrite(folders["head"], search)
    rewrite(folders["lora"], search, head_lr=5e-3)
    assert about(tmp_path, "head_lr") == [], "one method alone has a rate for its head"
    rewrite(folders["bitfit"], search, head_lr=5e-3)
    (note,) = about(tmp_path, "head_lr=0.005 was fixed for all methods but head, while lr differs or was searched: ")
    assert "select.head_factors" in note
    rewrite(folders["bitfit"], search, head_lr=1e-3)
    assert about(tmp_path, "was fixed") == [], "each has its own"
    for method in ("lora", "bitfit"):
        rewrite(folders[method], head_lr=5e-3)
    assert about(tmp_path, "head_lr") == [], "without it their heads would train at one rate, too"
    rewrite(folders["bitfit"], head_lr=5e-3, lr=2e-3)
    assert about(tmp_path, "head_lr=0.005 was fixed for all methods but head, while lr differs or was searched: ")
    rewrite(write_run("id3", "mrpc", 0, 0.8), search, head_lr=1e-3)
    assert about(tmp_path, "head_lr=0.005 was fixed for bitfit, lora, while"), "whatever another method has"
    rewrite(folders["head"], search, head_lr=1e-3)
    assert len(about(tmp_path, "head_lr=")) == 2, "two groups of methods, each with its rate"
    of_head = searched(1e-3, MIDDLE, chosen_head=5e-4, head_scores={"0.0005": 0.8, "0.005": 0.7, "0.0001": 0.1})
    for folder in folders.values():
        rewrite(folder, of_head, head_lr=5e-3)
    assert about(tmp_path, "was fixed") == [], "all were searched but id3, which is alone"


def test_a_search_of_one_method_is_shown_beside_a_rate_that_others_were_given(write_run: Write, tmp_path: Path) -> None:
    for method in ("lora", "bitfit"):
        rewrite(write_run(method, "mrpc", 0, 0.8), searched(1e-3, MIDDLE), head_lr=5e-3)
    of_head = searched(1e-3, MIDDLE, chosen_head=5e-4, head_scores={"0.0005": 0.8, "0.005": 0.7, "0.0001": 0.1})
    rewrite(write_run("full", "mrpc", 0, 0.8), of_head, head_lr=5e-3)
    (note,) = about(tmp_path, "head_lr=0.005 was fixed for all methods but full")
    assert ", and while a search chose 0.0005 for full on mrpc acc: " in note


def test_one_learning_rate_for_methods_whose_defaults_differ_is_said(write_run: Write, tmp_path: Path) -> None:
    lora, full = (write_run(method, "mrpc", 0, 0.8) for method in ("lora", "full"))
    assert about(tmp_path, "was fixed") == [], "their defaults are the same"
    rewrite(lora, default_lr=5e-4)
    rewrite(full, default_lr=5e-5)
    (note,) = about(tmp_path, "lr=0.001 was fixed for all methods, whose own defaults differ (full 5e-05, lora 0.0005)")
    assert "select=lr" in note
    rewrite(full, default_lr=5e-5, lr=2e-3)
    assert about(tmp_path, "was fixed") == [], "each has its own"
    rewrite(full, searched(1e-3, MIDDLE), default_lr=5e-5)
    assert about(tmp_path, "was fixed") == [], "one was searched, and the other alone"
    rewrite(write_run("bitfit", "mrpc", 0, 0.8), default_lr=5e-4)
    assert about(tmp_path, "was fixed") == [], "the search chose the rate that both others were given"
    but = "lr=0.001 was fixed for all methods but full, "
    rewrite(full, searched(1e-4, MIDDLE), default_lr=5e-5)
    assert about(tmp_path, f"{but}while a search chose 0.0001 for full on mrpc acc: ")
    rewrite(full, searched(1e-3, MIDDLE), default_lr=5e-5)
    rewrite(lora, default_lr=1e-4)
    assert about(tmp_path, f"{but}whose own defaults differ (bitfit 0.0005, lora 0.0001): ")


@given(scores=st.dictionaries(st.floats(1e-6, 1), st.none() | st.floats(0, 1), min_size=1, max_size=6), data=st.data())
def test_an_end_is_where_no_rate_was_tried_beyond(scores: dict[float, float | None], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(sorted(scores)))
    below, above = (any(rate < chosen for rate in scores), any(rate > chosen for rate in scores))
    expected = {(True, False): "upper", (False, True): "lower"}.get((below, above))
    assert Tried("lora", "mrpc acc", "lr", scores, chosen).edge == expected


def test_a_rate_that_failed_lies_beyond_and_is_not_drawn(write_run: Write, tmp_path: Path) -> None:
    head = {"0.001": 0.9, "0.01": 0.8, "0.1": None}
    both = searched(1e-2, {1e-3: 0.5, 1e-2: 0.7, 1e-1: None}, chosen_head=1e-3, head_scores=head)
    rewrite(write_run("lora", "mrpc", 0, 0.8), both, head_lr=1e-2)
    assert about(tmp_path, "largest") == []
    (note,) = about(tmp_path, "the smallest head_lr tried was chosen")
    assert note.endswith("(select.head_factors): lora 0.001 (mrpc acc)")
    of_lr, of_head = training.rates(Material(made_study(tmp_path)))
    for figure, word, points, dots in (
        (of_lr, "learning_rates", [(1e-3, 50), (1e-2, 70)], [(1e-2, 70)]),
        (of_head, "head_rates", [(1e-3, 90), (1e-2, 80)], [(1e-3, 90)]),
    ):
        ((series,),) = (panel.series for panel in figure.panels)
        assert figure.word == word
        assert list(zip(series.x, series.y, strict=True)) == [(x, pytest.approx(y)) for x, y in points]
        assert series.dots == [(x, pytest.approx(y)) for x, y in dots]


def test_what_a_stranger_writes_for_a_rate_is_left_out(write_run: Write, tmp_path: Path) -> None:
    words = {"<b>": 0.5, "nan": 0.5, "-1": 0.5, "0": 0.5, "1e999": 0.5, "0.001": 0.7}
    rewrite(write_run("lora", "mrpc", 0, 0.8), Search(1e-3, "held_out", words, [], 1.0))  # type: ignore[arg-type]
    (one,) = rates.tried(made_study(tmp_path), apart(made_study(tmp_path))[0])
    assert one.known == {1e-3: pytest.approx(70)}
    assert one.edge is None


def test_a_view_says_what_the_rates_beside_the_chosen_one_lose(write_run: Write, tmp_path: Path) -> None:
    head = {"0.001": 0.9, "0.01": 0.8}
    both = searched(1e-2, {1e-4: 0.5, 1e-3: 0.6, 1e-2: 0.7, 1e-1: None}, chosen_head=1e-3, head_scores=head)
    rewrite(write_run("lora", "mrpc", 0, 0.8), both, head_lr=1e-2)
    write_run("bitfit", "mrpc", 0, 0.8)  # searched nothing
    done = call("table", "made", "--show", "rates", "--format", "md", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "lora" in line]
    assert lines == [
        "| mrpc acc | lora | lr | 0.01 | 70.0 | -10.0 | failed | -20.0 | 4, 0.0001 to 0.1 |",
        "| mrpc acc | lora | head_lr | 0.001 | 90.0 | none | -10.0 | -10.0 | 2, 0.001 to 0.01 |",
    ]
    numbers = call("table", "made", "--show", "rates", "--format", "csv", cwd=tmp_path).stdout.splitlines()
    assert numbers[0] == "task,method,key,rate,score,chosen"
    assert len(numbers) == 7
    assert [line.rpartition(",")[2] for line in numbers[1:]] == list("001010")


def test_a_study_that_searched_nothing_has_no_such_view(write_run: Write, tmp_path: Path) -> None:
    write_run("lora", "mrpc", 0, 0.8)
    done = call("table", "made", "--show", "rates", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no rate was searched" in done.stderr
