"""The learning rate is chosen on rows that the score is not read from, and the tries are kept."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import TINY, call

from peftbench.config import compose
from peftbench.record import (
    Evaluation,
    Git,
    Hardware,
    Hashes,
    Memory,
    Metrics,
    Record,
    Search,
    Times,
    find_records,
    read_record,
)
from peftbench.study import search
from peftbench.training.metrics import standard_error

SMALL = [*TINY, "method=bitfit", "select=lr", "select.max_steps=3"]


def test_the_tries_differ_from_the_cell_in_what_the_search_says_alone() -> None:
    cell = compose.cell_from([*SMALL, "seed=3", "study=pilot", "select.factors=[1,0.1]"])
    cells = [compose.cell_from([*SMALL, "seed=3", "study=pilot", *words]) for words in search.tries(cell)]
    assert [one.protocol.lr for one in cells] == [1e-4, 1e-3]
    assert {(one.seed, one.study, one.protocol.selection, one.protocol.max_steps) for one in cells} == {
        (0, "pilot.search", "held_out", 3)
    }
    assert all(one.method == cell.method and one.data == cell.data for one in cells)
    assert len({one.folder for one in cells}) == 2


def test_a_cell_with_a_search_is_another_cell() -> None:
    plain = compose.cell_from([*SMALL, "select=none"])
    assert plain.fingerprint != compose.cell_from(SMALL).fingerprint
    assert compose.cell_from(SMALL).fingerprint != compose.cell_from([*SMALL, "select.rows=dev"]).fingerprint


def record(value: float | None, status: str = "done", loss: float | None = None, collapsed: bool = False) -> Record:
    evaluations = [Evaluation(1, 1.0, {}, collapsed, score, loss) for score in (0.9, value)]
    return Record(
        schema=1, status=status, cell=None, fingerprint="", headline=None, counts=None, budget={}, overrides=[],
        metrics=Metrics(evaluations[0], evaluations, "held_out", False), time=Times(2.0, 1.0, 1.0, 0.0, "", ""),
        memory=Memory(0.0), throughput=None, hashes=Hashes(), versions={}, git=Git(None, None),
        hardware=Hardware("cpu", 1, 1, 1), config={},
    )  # fmt: skip


def test_the_best_rate_is_chosen_of_equals_the_nearest_and_never_a_failed_one() -> None:
    cell = compose.cell_from([*SMALL, "protocol.lr=1e-3", "select.factors=[1,3,10,30]"])
    values = iter([record(0.5), record(0.7), record(0.7), record(0.99, "diverged")])
    result = search.try_rates(cell, lambda words: (next(values), words[-1]))
    assert result.chosen == 3e-3
    assert result.scores == {"0.001": 0.5, "0.003": 0.7, "0.01": 0.7, "0.03": None}
    assert result.seconds == 8.0


def test_where_all_tries_predict_one_class_the_loss_chooses() -> None:
    cell = compose.cell_from([*SMALL, "protocol.lr=1e-3", "select.factors=[1,3,10]"])
    values = iter([record(0.0, loss=0.62), record(0.0, loss=0.60), record(0.0, loss=0.61)])
    result = search.try_rates(cell, lambda words: (next(values), "folder"))
    assert result.chosen == 3e-3
    assert result.losses == {"0.001": 0.62, "0.003": 0.60, "0.01": 0.61}
    rte = [
        record(0.527, loss=0.90, collapsed=True),
        record(0.473, loss=0.693, collapsed=True),
        record(0.99, "diverged"),
    ]
    for tries, chosen in (
        (rte, 3e-3),  # each predicts another class
        ([rte[0], dataclasses.replace(rte[1], metrics=record(0.473, loss=0.693).metrics), rte[2]], 1e-3),
        ([record(0.473, collapsed=True), record(0.527, collapsed=True), rte[2]], 3e-3),  # no loss is known
    ):
        values = iter(tries)
        assert search.try_rates(cell, lambda words, values=values: (next(values), "folder")).chosen == chosen


def test_the_rate_of_the_head_is_searched_at_the_chosen_learning_rate() -> None:
    words = [*SMALL, "protocol.lr=1e-3", "protocol.head_lr=0.01", "select.factors=[1,3]", "select.head_factors=[0.1,1]"]
    asked: list[list[str]] = []
    values = iter([record(0.5), record(0.7), record(0.8), record(0.75)])

    def run_try(try_words: list[str]) -> tuple[Record, str]:
        asked.append([word for word in try_words if "lr=" in word])
        return next(values), f"folder{len(asked)}"

    result = search.try_rates(compose.cell_from(words), run_try)
    assert (result.chosen, result.chosen_head) == (3e-3, 1e-3)
    assert result.head_scores == {"0.001": 0.8, "0.01": 0.75}
    assert asked[:2] == [["protocol.lr=0.001"], ["protocol.lr=0.003"]]
    assert asked[2:] == [["protocol.lr=0.003", f"protocol.head_lr={rate}"] for rate in (0.001, 0.01)]
    assert result.seconds == 8.0


def test_a_run_uses_both_chosen_rates_and_its_record_says_so(tmp_path: Path) -> None:
    words = [*SMALL, "study=pilot", f"outputs={tmp_path}", "protocol.head_lr=0.01", "select.factors=[1]"]
    done = call("run", *words, "select.head_factors=[0.1,1]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tries = [read_record(path) for path in find_records(tmp_path / "pilot.search")]
    assert [one.config["protocol"]["head_lr"] for one in tries].count(0.001) == 1
    assert len(tries) == 2, "the try at the usual rate of the head serves both"
    (searched,) = (read_record(path).search for path in find_records(tmp_path / "pilot"))
    assert searched is not None
    assert searched.head_scores.keys() == {"0.001", "0.01"}
    assert f"head_lr {searched.chosen_head:g} chosen" in done.stdout
    final = {one.config["protocol"]["head_lr"]: one.metrics.evaluations[-1] for one in tries}
    assert searched.head_losses == {f"{lr:g}": one.loss for lr, one in final.items()}
    assert all(one.loss is not None and 0 < one.loss < 3 for one in final.values())


def test_a_try_that_another_runner_has_is_asked_for_again_after_the_others() -> None:
    cell = compose.cell_from([*SMALL, "protocol.lr=1e-3", "select.factors=[1,3,10]"])
    asked: list[str] = []

    def run_try(words: list[str]) -> tuple[Record, str] | None:
        asked.append(words[-1])
        return None if asked.count("protocol.lr=0.001") == 1 and words[-1] == "protocol.lr=0.001" else (record(0.5), "")

    assert search.try_rates(cell, run_try).chosen == 1e-3
    assert asked == ["protocol.lr=0.001", "protocol.lr=0.003", "protocol.lr=0.01", "protocol.lr=0.001"]


def test_a_sweep_searches_once_and_every_seed_uses_what_was_chosen(tmp_path: Path) -> None:
    words = [*SMALL, "study=pilot", f"outputs={tmp_path}", "select.factors=[0.1,1,10]"]
    done = call("run", "-m", *words, "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tries = [read_record(path) for path in find_records(tmp_path / "pilot.search")]
    records = [read_record(path) for path in find_records(tmp_path / "pilot")]
    assert len(tries) == 3
    assert len(records) == 2
    scores = {one.lr: one.metrics.evaluations[-1].metrics["accuracy_held_out"] for one in tries}
    best = max(scores.values())
    for one in records:
        assert one.search is not None
        losses = {one.lr: one.metrics.evaluations[-1].loss for one in tries if scores[one.lr] == best}
        assert one.lr == min(losses, key=lambda lr: losses[lr] or math.inf)
        assert {float(lr): value for lr, value in one.search.scores.items()} == scores
        assert all((tmp_path / folder / "result.json").is_file() for folder in one.search.folders)
    facts = [json.loads(line) for line in next(tmp_path.glob("pilot/*/seed1/metrics.jsonl")).read_text().splitlines()]
    assert max(fact["lr"] for fact in facts if "lr" in fact) <= records[0].lr


def predictions(folder: Path, right: int, rows: int, split: str = "held_out") -> None:
    """Predictions of SST-2 of which so many are right; both classes are predicted."""
    words = ["negative", "positive"]
    lines = [f"{i}\t{words[(i + (i >= right)) % 2]}\t{words[i % 2]}\t0\t0" for i in range(rows)]
    (folder / "predictions").mkdir(parents=True)
    text = "\n".join(["index\tprediction\tlabel\tnegative\tpositive", *lines]) + "\n"
    (folder / "predictions" / f"{split}.tsv").write_text(text)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([0.60, 0.77, 0.80, 0.70], 3e-3),  # sqrt(0.8 * 0.2 / 100) = 0.04
        ([0.759, 0.70, 0.80, 0.79], 1e-2),
        ([0.761, 0.70, 0.80, 0.79], 1e-3),
        ([None, 0.50, 0.80, 0.80], 1e-2),
    ],
)
def test_one_standard_error_below_the_best_the_smallest_rate_is_taken(
    scores: list[float | None], chosen: float, tmp_path: Path
) -> None:
    words = [*SMALL, "protocol.lr=1e-3", "select.factors=[1,3,10,30]", f"outputs={tmp_path}"]
    predictions(tmp_path / "10", right=80, rows=100)
    tries = [record(score) for score in scores]

    def result(*more: str) -> Search:
        values = iter(tries)
        return search.try_rates(compose.cell_from([*words, *more]), lambda _: (next(values), "10"))

    by_rule = result("select.rule=one_se")
    assert (by_rule.chosen, by_rule.rule) == (chosen, "one_se")
    assert by_rule.error == pytest.approx(0.04)
    assert (result().chosen, result().rule, result().error) == (1e-2, "best", None)


def test_where_the_best_try_predicts_one_class_its_error_has_no_part(tmp_path: Path) -> None:
    words = [*SMALL, "protocol.lr=1e-3", "select.factors=[1,3]", f"outputs={tmp_path}", "select.rule=one_se"]
    tries = [record(0.6, loss=0.62), record(0.6, loss=0.60)]
    for one in tries:
        one.metrics.evaluations[-1] = dataclasses.replace(one.metrics.evaluations[-1], collapsed=True)
    values = iter(tries)
    result = search.try_rates(compose.cell_from(words), lambda _: (next(values), "there are none"))
    assert (result.chosen, result.error) == (3e-3, None)


@given(st.dictionaries(st.floats(1e-6, 1), st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 0.3))
def test_what_is_taken_is_within_the_error_and_nothing_smaller_is(scores: dict[float, float], error: float) -> None:
    top = max(scores, key=lambda rate: scores[rate])
    taken = search.smallest_within(scores, top, error)
    assert taken <= top
    assert scores[taken] >= scores[top] - error
    assert all(scores[rate] < scores[top] - error for rate in scores if rate < taken)


def test_the_rule_is_part_of_a_search_and_best_is_what_it_was() -> None:
    plain, best, one_se = ([*SMALL, *more] for more in ([], ["select.rule=best"], ["select.rule=one_se"]))
    assert compose.cell_from(plain).fingerprint == compose.cell_from(best).fingerprint
    assert compose.cell_from(plain).fingerprint != compose.cell_from(one_se).fingerprint
    without = [compose.cell_from([*words, "select.factors=null"]).fingerprint for words in (best, one_se)]
    assert without[0] == without[1], "where nothing is searched the rule says nothing"
    tries = [[compose.cell_from([*words, *more]).folder for more in search.tries(compose.cell_from(words))]
             for words in (best, one_se)]  # fmt: skip
    assert tries[0] == tries[1], "the tries are found again"


def test_the_error_of_a_correlation_is_its_spread_over_the_rows_that_the_try_kept(tmp_path: Path) -> None:
    words = [
        *TINY,
        "task=stsb",
        "method=bitfit",
        "select=lr",
        "select.max_steps=3",
        "study=pilot",
        f"outputs={tmp_path}",
    ]
    more = [f"outputs={tmp_path}", "select.factors=[1,10]", "select.rule=one_se", "protocol.lr=1e-3"]
    done = call("run", *words, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (one,) = (read_record(path).search for path in find_records(tmp_path / "pilot"))
    assert one is not None
    assert one.rule == "one_se"
    assert f"chosen (the smallest within one standard error, {one.error:.4f}, of the best)" in done.stdout
    scores = {float(rate): score for rate, score in one.scores.items() if score is not None}
    top = max(scores, key=lambda rate: scores[rate])
    folder = tmp_path / one.folders[list(scores).index(top)]
    rows = [line.split("\t") for line in (folder / "predictions" / "held_out.tsv").read_text().splitlines()[1:]]
    predicted, labels = (np.array([float(row[at]) for row in rows]) for at in (1, 2))
    assert one.error == pytest.approx(standard_error("pearson", predicted, labels))
    assert one.chosen == min(rate for rate, score in scores.items() if score >= scores[top] - one.error)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["select.factors=[]"], "select.factors"),
        (["select.factors=[0]"], "select.factors"),
        (["select.factors=[-1]"], "select.factors"),
        (["select.rows=test"], "select.rows"),
        (["select.max_steps=0"], "select.max_steps"),
        (["select.head_factors=[1]"], "select.head_factors=[1.0]: needs protocol.head_lr"),
        (
            ["select=none", "select.head_factors=[1]", "protocol.head_lr=1e-3"],
            "select: head_factors=[1.0] needs factors",
        ),
        (["select.rule=worst"], "select.rule"),
        (["select=boundaries", "method=spafit", "select.rule=one_se"], "select: rule=one_se takes the smallest"),
        (["select=lrr"], "did you mean lr"),
    ],
)
def test_an_impossible_search_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    done = call("run", *SMALL, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert line in done.stderr
    assert all("select" in problem for problem in done.stderr.splitlines())
