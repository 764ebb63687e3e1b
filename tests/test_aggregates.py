"""Scores of several tasks put together: what the definitions say, and nothing across tasks that are not alike."""

import csv
import dataclasses
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib import pyplot
from scipy import stats
from studies import full_study, made_study
from support import call

from peftbench.ground.files import RECORD_FILE
from peftbench.record import read_record, write_record
from peftbench.report import aggregates, comparison, plots, records, statistics
from peftbench.report.figures import few, together
from peftbench.report.figures.parts import Material
from peftbench.report.table import apart

STUDY = Path(__file__).parents[1] / "docs" / "study"
runs = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=6).map(np.array)
matrices = arrays.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(-50, 100))


@given(matrices)
def test_an_interquartile_mean_is_that_of_the_middle_half_of_all_runs(scores: np.ndarray) -> None:
    every = sorted(scores.ravel())
    cut = len(every) // 4
    assert aggregates.interquartile_mean(scores) == pytest.approx(np.mean(every[cut : len(every) - cut]))
    assert aggregates.interquartile_mean(np.stack([scores, scores + 1])) == pytest.approx(
        float(aggregates.interquartile_mean(scores)) + np.arange(2)
    )
    assert aggregates.shares(scores).sum() == pytest.approx(1)


@given(st.lists(st.tuples(runs, runs), min_size=1, max_size=4))
def test_the_probability_of_improvement_is_mann_and_whitneys_share(tasks: list[tuple[np.ndarray, np.ndarray]]) -> None:
    improvement = aggregates.improvement(tasks)
    shares = [stats.mannwhitneyu(one, other).statistic / (len(one) * len(other)) for one, other in tasks]
    assert improvement.value == pytest.approx(np.mean(shares))
    assert aggregates.improvement([(other, one) for one, other in tasks]).value == pytest.approx(1 - improvement.value)
    if improvement.low is not None and improvement.high is not None:
        assert min(len(side) for both in tasks for side in both) >= 3
        assert 0 <= improvement.low <= improvement.high <= 1


def test_an_improvement_in_every_pair_claims_no_certainty() -> None:
    low, high = np.arange(4.0), np.arange(4.0) + 10
    assert aggregates.improvement([(high, low), (high, low)]) == aggregates.Bounded(1.0, None, None)
    overlapping = aggregates.improvement([(low + 2, low)])
    assert overlapping.low is not None
    assert overlapping.low < overlapping.value


@given(matrices)
def test_a_profile_is_the_share_of_runs_above(scores: np.ndarray) -> None:
    at = [float(scores.min()) - 1, *np.linspace(scores.min(), scores.max(), 7)]
    profile = aggregates.profile(scores, at)
    assert [one.value for one in profile] == pytest.approx([float((scores > least).mean()) for least in at])
    assert profile[0].value == 1
    assert profile[-1].value == 0
    assert all(one.value >= other.value for one, other in itertools.pairwise(profile))
    for one in profile:
        assert (one.low is None) == (len(scores) < 3)


def test_runs_are_drawn_within_a_task_and_never_across() -> None:
    """Tasks that differ by 80 points and have no spread of their own leave nothing to be unsure of."""
    scores = np.tile([10.0, 50.0, 90.0], (4, 1))
    for function in aggregates.AGGREGATES.values():
        interval = aggregates.aggregate(scores, function)
        assert (interval.value, interval.low, interval.high) == pytest.approx((50, 50, 50))
    spread = aggregates.aggregate(scores + np.arange(4.0)[:, None], aggregates.mean)
    assert spread.low is not None
    assert spread.high is not None
    assert 50 < spread.low < spread.value == 51.5 < spread.high < 53
    assert aggregates.aggregate(scores[:2], aggregates.mean).low is None


def test_scores_are_relative_to_full_where_it_has_every_task(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("head", "mrpc", 0, 0.3)
    before = aggregates.comparable(apart(made_study(tmp_path))[0])
    assert (before.scale, before.relative) == ("dev score (%)", False)
    write_run("full", "mrpc", 0, 0.85)
    assert not aggregates.comparable(apart(made_study(tmp_path))[0]).relative, "full has one task of two"
    write_run("full", "cola", 0, 0.80)
    comparable = aggregates.comparable(apart(made_study(tmp_path))[0])
    assert (comparable.scale, comparable.columns) == ("points from full fine-tuning", ["cola acc", "mrpc acc"])
    assert comparable.scores.keys() == {"lora", "bitfit", "id3", "full"}, "head has one task of two"
    assert comparable.scores["lora"] == pytest.approx(before.scores["lora"] - [80.0, 85.0])
    assert comparable.scores["full"] == pytest.approx(np.zeros((1, 2)))


def test_the_aggregates_of_a_study_are_shown_in_every_format(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("head", "mrpc", 0, 0.3)
    output = call("table", "made", "--show", "aggregates", cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    assert "cola acc, mrpc acc put together, dev score (%) [95% interval]" in output.stdout
    assert "left out, without a seed that has every task: head" in output.stdout
    printed = call("table", "made", "--show", "aggregates", "--format", "csv", cwd=tmp_path)
    rows = {(row["method"], row["aggregate"]): row for row in csv.DictReader(io.StringIO(printed.stdout))}
    assert len(rows) == 9
    lora = [80.0, 80.1, 80.2, 80.3, 80.4]
    assert float(rows["lora", "IQM"]["value"]) == pytest.approx(np.mean(sorted(lora * 2)[2:8]))
    assert float(rows["lora", "mean"]["low"]) < 80.2 < float(rows["lora", "mean"]["high"])
    assert (rows["bitfit", "median"]["runs"], rows["bitfit", "median"]["tasks"]) == ("5", "2")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--show", "agregates"),
            "--show agregates: there is no such view; did you mean aggregates or rates or merges?",
        ),
        (("--show", "aggregates", "--paper", "id3"), "--paper: is for --show scores, not for aggregates"),
    ],
)
def test_a_view_that_cannot_be_is_refused(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    refused = call("table", "anything", *words, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith(line)


def test_two_methods_of_the_committed_study_are_compared_run_by_run() -> None:
    study = records.read_study(STUDY, "glue_small")
    (line,) = (text for text in comparison.lines(study, "full", "bitfit") if text.startswith("probability"))
    columns = apart(study)[0].groupby(["name", "column"])["score"].apply(list)
    shares = [
        np.mean([one > other for one in columns["full", task] for other in columns["bitfit", task]])
        for task in ("cola MCC", "mrpc acc", "stsb pearson")
    ]
    assert f"full scores above bitfit in {100 * np.mean(shares):.0f}% of pairs of runs, mean of these 3 tasks" in line


def test_full_fine_tuning_of_few_labels_or_with_a_prompt_is_no_base() -> None:
    study = records.read_study(STUDY, "list")
    assert any(record.cell.method == "full" for record in study.done())
    assert not aggregates.comparable(apart(study)[0]).relative
    whole = aggregates.comparable(apart(records.read_study(STUDY, "shots"))[0])
    assert whole.relative
    assert whole.scores["full"].mean() == pytest.approx(0)
    assert (whole.scores["full 8/class"] < 0).all(axis=1).any()


def test_all_tasks_together_are_drawn(write_run: Callable[..., Path], tmp_path: Path) -> None:
    write_run("lora", "mrpc", 0, 0.8)
    assert not list(together.profiles(Material(made_study(tmp_path)))), "one task has nothing to put together"
    for seed, task, (method, least) in itertools.product(range(4), ("mrpc", "cola"), [("lora", 0.8), ("id3", 0.7)]):
        if (method, task, seed) != ("lora", "mrpc", 0):
            write_run(method, task, seed, least + 0.01 * seed)
    material = Material(made_study(tmp_path))
    (profiles,), (means,) = together.profiles(material), together.aggregates(material)
    series = {one.name: one for one in profiles.panels[0].series}
    assert (series["lora"].y[0], series["id3"].y[0]) == (100, 75), "it begins where a tenth of all runs lie below"
    assert series["id3"].y[-1] == 0
    at = next(i for i, x in enumerate(series["id3"].x) if x > 74)
    assert (series["id3"].y[at], series["lora"].y[at]) == (0, 100)
    for low, middle, high in zip(series["id3"].low, series["id3"].y, series["id3"].high, strict=True):
        assert low <= middle <= high
    assert [panel.title for panel in means.panels] == ["IQM of 2 tasks", "median of 2 tasks", "mean of 2 tasks"]
    for figure in (profiles, means):
        drawing = plots.draw(figure, material.methods)
        assert [axis.get_xlabel() for axis in drawing.axes] == ["dev score (%)"] * len(figure.panels)
        pyplot.close(drawing)


def test_the_seeds_of_a_split_are_averaged_before_anything_is_drawn_anew(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """Three splits of four seeds are three repetitions, which the seeds of each hardly move."""
    of_splits = {"lora": [70.0, 80.0, 75.0], "bitfit": [72.0, 77.0, 76.0]}
    for method, split, seed in itertools.product(of_splits, range(3), range(4)):
        score = of_splits[method][split] + (-1, 1, -0.5, 0.5)[seed]
        folder = write_run(method, "mrpc", 10 * split + seed, score / 100)
        record = read_record(folder / RECORD_FILE)
        config = {**record.config, "shots": {"per_class": 8, "split": split + 1}}
        cell = dataclasses.replace(record.cell, seed=seed)
        write_record(dataclasses.replace(record, config=config, cell=cell), folder)
    study = made_study(tmp_path)
    (figure,) = few.shots(Material(study))
    drawn = {one.name: (one.y[0], one.low[0], one.high[0]) for one in figure.panels[0].series}
    scores = aggregates.comparable(apart(study)[0]).scores
    for method, means in of_splits.items():
        assert drawn[method] == pytest.approx((np.mean(means), *(statistics.of_mean(means) or ())))
        assert sorted(scores[f"{method} 8/class"].ravel()) == pytest.approx(sorted(means))
    assert any("a run is a split, the mean over its seeds" in note for note in aggregates.sheet(study).notes)
    (line,) = (said for said in comparison.lines(study, "lora", "bitfit") if said.startswith("probability"))
    above = np.mean([one > other for one in of_splits["lora"] for other in of_splits["bitfit"]])
    assert f"in {100 * above:.0f}% of pairs of splits (95% interval" in line
    assert line.endswith("; with so few splits it is too narrow, about 90% of them hold with 3)")
