"""What the tests, intervals and marks of a study say: right where the truth is known, and silent about noise."""

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower
from studies import TASKS, full_study, made_study
from support import call, start

from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import read_record
from peftbench.report import (
    bootstrap,
    columns,
    comparison,
    predictions,
    records,
    statistics,
    table,
    verdict,
)
from peftbench.report.columns import Column
from peftbench.report.figures import scores
from peftbench.report.figures.parts import summary
from peftbench.report.statistics import Estimate, Paired
from peftbench.training import metrics

STUDY = Path(__file__).parents[1] / "docs" / "study"


def column(scores: dict[str, list[float]]) -> Column:
    """A column of a table without predictions, seeds numbered from zero."""
    return Column(
        "mrpc acc",
        {name: {(i, 0): value for i, value in enumerate(values)} for name, values in scores.items()},
        {},
        None,
    )


def runs_of(metric: str, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of four runs on 60 rows that are right more often than not, and the labels."""
    if metric in ("pearson", "spearman"):
        labels = random.integers(0, 6, 60) / 1.0
        return np.round(labels + random.normal(size=(4, 60)), 1), labels
    labels = random.integers(0, 3 if metric == "matthews_correlation" else 2, 60)
    return np.where(random.random((4, 60)) < 0.7, labels, random.integers(0, 2, (4, 60))), labels


@pytest.mark.parametrize("metric", bootstrap.METRICS)
def test_scores_of_resampled_rows_are_the_runners_own(metric: str) -> None:
    predicted, labels = runs_of(metric, np.random.default_rng(3))
    drawn = bootstrap.of_rows(metric, predicted, labels, resamples=40)
    rows = np.random.default_rng(0).integers(0, 60, size=(40, 60))
    for run, resample in itertools.product(range(4), range(40)):
        same = metrics.score([metric], predicted[run][rows[resample]], labels[rows[resample]]).values[metric]
        assert drawn[run, resample] == pytest.approx(same, abs=1e-12)
    assert bootstrap.whole(metric, predicted, labels) == pytest.approx(
        [metrics.score([metric], run, labels).values[metric] for run in predicted]
    )
    assert bootstrap.of_rows(metric, np.ones((1, 60)), labels, 3) == pytest.approx(
        np.array([[metrics.score([metric], np.ones(60), labels[rows[i]]).values[metric] for i in range(3)]])
    )


def test_random_masking_is_ahead_of_id3_on_cola_in_the_committed_study() -> None:
    study = records.read_study(STUDY, "glue_small")
    lines = comparison.lines(study, "random_masking", "id3")
    assert lines[0].startswith("random_masking like-bitfit against id3 like-bitfit: ahead on cola MCC; not decided on")
    assert lines[1].startswith("cola MCC: ahead by 10.0 points (95% interval +5")
    assert "better in 4 of 4 seeds" in lines[1]
    assert "this design shows" in lines[2]
    assert lines[4] == "does the difference depend on the task: yes, p = 0.003"
    with pytest.raises(ConfigError, match="id3 like-bitfit is both sides"):
        comparison.lines(study, "id3", "id3 like-bitfit")
    assert lines[5].startswith("mean of these 3 tasks: ")
    assert lines[6].startswith("mean over all tasks like these, 3 of them tried: not decided")
    assert lines[7].startswith("probability of improvement: ")
    assert lines[8].startswith(
        "tested: paired t-test over seeds and dev rows; two-sided, 5%, corrected by Holm for 3 t"
    )
    assert comparison.lines(study, "id3", "random_masking")[1].startswith("cola MCC: behind by 10.0 points")


def test_in_the_committed_study_no_marked_row_stands_below_an_unmarked_one() -> None:
    made = table.build(records.read_study(STUDY, "glue_small"))
    for name in made.columns:
        order = sorted((line.entries[name] for line in made.lines), key=lambda entry: -(entry.value or 0))
        marks = [entry.best or entry.tied for entry in order]
        assert marks == sorted(marks, reverse=True)
        assert [entry.best for entry in order] == [True] + [False] * (len(order) - 1)
    lines = {line.name: line.entries["cola MCC"] for line in made.lines}
    assert not lines["bitfit"].tied
    assert lines["random_masking like-bitfit"].tied


def test_the_error_of_a_mean_holds_seeds_and_rows_and_counts_neither_twice() -> None:
    """Rows that all seeds share do not average out over seeds; what the rows do to one seed alone does."""
    random = np.random.default_rng(0)
    shared, own = random.normal(0, 2, (1, 4000)), random.normal(0, 1, (5, 4000))
    paired = Paired(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), shared + own)
    assert paired.of_seeds == pytest.approx(2.5 / 5)
    assert paired.of_rows == pytest.approx(4, rel=0.1)
    assert paired.estimate is not None
    assert paired.estimate.error == pytest.approx((0.5 + paired.of_rows) ** 0.5)
    half = paired.estimate.interval().high - paired.estimate.mean
    assert half**2 == pytest.approx(stats.t.ppf(0.975, 4) ** 2 * 0.5 + stats.norm.ppf(0.975) ** 2 * paired.of_rows)
    alone = Paired(paired.differences)
    assert alone.p() == pytest.approx(stats.ttest_1samp(alone.differences, 0).pvalue)
    solved = TTestPower().solve_power(nobs=5, alpha=0.05, power=0.8) * 5**0.5
    assert statistics.detectable(4, 0.05) == pytest.approx(solved, rel=1e-3)


def test_the_noise_of_rows_is_that_of_the_seeds_whose_predictions_are_stored(tmp_path: Path) -> None:
    """One absent file neither narrows the interval of a pair nor goes unsaid."""
    for method in ("id3", "random_masking"):
        (cell,) = (STUDY / "glue_small").glob(f"mrpc-{method}-*")
        shutil.copytree(cell, tmp_path / "glue_small" / cell.name)

    def width() -> tuple[float, str]:
        study = records.read_study(tmp_path, "glue_small")
        rows = table.apart(study)[0]
        (mrpc,) = columns.read(study, rows)
        both = mrpc.paired("id3 like-bitfit", "random_masking like-bitfit")
        assert both is not None
        assert both.estimate is not None
        lines = comparison.lines(study, "id3", "random_masking")
        return both.estimate.interval().high - both.mean, next(line for line in lines if line.startswith("mrpc"))

    whole, line = width()
    assert "noise of rows" not in line
    files = sorted((tmp_path / "glue_small").glob("mrpc-id3-*/seed*/predictions/dev.tsv"))
    files[2].unlink()
    most, line = width()
    assert line.count("; noise of rows from 3 of 4 seeds: no predictions of id3 like-bitfit seed 2") == 1
    for file in (files[0], files[1]):
        file.unlink()
    alone, line = width()
    of = ", ".join(f"id3 like-bitfit seed {seed}" for seed in range(3))
    assert f"; noise of rows not known: no predictions of {of}" in line
    assert alone < 0.97 * whole
    assert most == pytest.approx(whole, rel=0.02)


def test_splits_of_few_labels_keep_their_noise_of_rows_where_one_run_has_no_predictions() -> None:
    runs = list(itertools.product((0, 1), (1, 2, 3)))  # (seed, split)
    shared = np.random.default_rng(12).normal(0, 2, 4000)
    known = {name: {run: np.float32(i) + (i == 1) * shared for run in runs} for i, name in enumerate("ab")}
    of = {name: {run: 80.0 + seed for seed, run in enumerate(runs)} for name in "ab"}
    del known["b"][0, 2]
    both = Column("mrpc acc", of, known, 99).paired("b", "a")
    assert both is not None
    assert (both.seeds, both.unit, both.without) == (3, "splits", ("b split 2 seed 0",))
    assert both.of_rows == pytest.approx(4, rel=0.1)
    for run in runs:
        if run[1] != 1:
            known["b"].pop(run, None)
    one = Column("mrpc acc", of, known, 99).paired("b", "a")
    assert one is not None
    assert one.resampled is None, "a single split tells nothing of what several have in common"


@pytest.mark.parametrize(("degrees", "share"), [(2, 0.0), (2, 0.5), (4, 0.9), (7, 0.3)])
def test_a_visible_difference_is_seen_in_four_of_five_repetitions(degrees: float, share: float) -> None:
    """Drawn: means about such a difference, their error in parts, and the limits of an `Estimate` with both."""
    random = np.random.default_rng(6)
    means = random.normal(statistics.detectable(degrees, 0.01, share), 1, 200_000)
    of_seeds = share * random.chisquare(degrees, 200_000) / degrees
    limits = np.sqrt(stats.t.ppf(0.995, degrees) ** 2 * of_seeds + stats.norm.ppf(0.995) ** 2 * (1 - share))
    assert (means > limits).mean() == pytest.approx(0.8, abs=0.004)
    one = Estimate(3.0, of_seeds[0], degrees, 1 - share)
    assert one.interval(0.99).high - 3 == pytest.approx(limits[0])
    if share == 0:
        known = stats.norm.ppf(0.995) + stats.norm.ppf(0.8)
        assert statistics.detectable(degrees, 0.01, share) == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_half_of_all_studies_say_a_larger_visible_difference_than_the_true_one(seeds: int) -> None:
    random, truth = np.random.default_rng(7), statistics.smallest_shown(4 / seeds, seeds - 1, 0.5, tests=3)
    studies = random.normal(0, 2, (1000, seeds)).var(axis=1, ddof=1) / seeds
    said = [Estimate(0.0, float(of_seeds), seeds - 1, 0.5).visible(3) for of_seeds in studies]
    assert np.mean(np.array(said) > truth) == pytest.approx(0.5, abs=0.05)


def test_the_seeds_needed_are_those_of_a_power_analysis() -> None:
    differences = np.random.default_rng(8).normal(1, 2, 6)
    paired = Paired(differences)
    spread = (differences.var(ddof=1) * 5 / stats.chi2.median(5)) ** 0.5
    for tests in (1, 4):
        solved = TTestPower().solve_power(effect_size=abs(paired.mean) / spread, alpha=0.05 / tests, power=0.8)
        assert paired.seeds_needed(tests) == pytest.approx(np.ceil(solved), abs=1)
    rows = np.random.default_rng(9).normal(0, 5, (1, 2000))
    assert Paired(differences, np.repeat(rows, 6, axis=0)).seeds_needed() == np.inf, "on these rows no seeds would do"
    assert Paired(np.array([1.0, -1.0])).seeds_needed() is None
    assert Paired(np.full(3, 2.0)).seeds_needed() is None


@pytest.mark.parametrize("tests", [1, 3])
def test_the_seeds_for_equality_show_it_of_equal_methods_in_four_of_five_repetitions(tests: int) -> None:
    """Drawn: equal methods with so many seeds, on rows that all of them share, and how often they count as equal."""
    random, differences = np.random.default_rng(12), np.random.default_rng(8).normal(0.3, 1, 6)
    rows = random.normal(0, 0.2, (1, 2000))
    paired = Paired(differences, np.repeat(rows, 6, axis=0))
    needed = paired.seeds_for_equality(1.0, tests)
    assert needed is not None
    spread = statistics.unbiased(paired.of_seeds, 5) * 6

    def power(seeds: float) -> float:
        means = random.normal(0, (spread / seeds + paired.of_rows) ** 0.5, 20_000)
        of_seeds = spread / seeds * random.chisquare(seeds - 1, 20_000) / (seeds - 1)
        half = np.sqrt(
            stats.t.ppf(0.05 / tests, seeds - 1) ** 2 * of_seeds + stats.norm.ppf(0.05 / tests) ** 2 * paired.of_rows
        )
        return float(np.mean(abs(means) + half < 1))

    assert power(needed - 1) - 0.01 < 0.8 < power(needed) + 0.01
    assert power(needed - 2) < 0.8 < power(needed + 1)
    assert paired.seeds_for_equality(0.01) == np.inf, "on these rows no seeds would do"
    assert Paired(differences).seeds_for_equality(0.01) == statistics.MOST_SEEDS + 1
    assert Paired(np.full(3, 2.0)).seeds_for_equality(1.0) is None


def test_what_is_not_decided_says_what_a_difference_and_a_tie_would_take() -> None:
    differences, rows = np.array([1.0, -2.0, 2.5, 0.0, -1.0]), np.random.default_rng(9).normal(0, 1, (1, 2000))

    def said(paired: Paired, margin: float = 1.0) -> str:
        (item,) = verdict.judge({("a", "b", "c"): paired}, "1 task", margin)
        return comparison.sentence(item, paired)

    alone = Paired(differences)
    needed = alone.seeds_for_equality(1.0)
    assert "; more than 1000 seeds would show a difference of this size; " in said(alone)
    assert said(alone).endswith(f"; about {needed} seeds would show equality within 1 point if the two are equal")
    shared = said(Paired(differences, np.repeat(rows, 5, axis=0)))
    assert "; no number of seeds on these rows would show a difference of this size; " in shared
    assert shared.endswith("; no number of seeds on these rows would show equality within 1 point if the two are equal")
    assert "equality" not in said(alone, margin=20.0), "this design has seeds enough"


def test_seeds_and_rows_drawn_anew_give_the_interval_of_either_alone_and_of_both() -> None:
    random = np.random.default_rng(10)
    of_seeds, of_rows = random.normal(0, 1, (8, 1)), random.normal(0, 1, (1, 4000))
    seeds_alone = bootstrap.crossed(np.repeat(of_seeds, 4000, axis=1))
    known = stats.bootstrap((of_seeds[:, 0],), np.mean, method="percentile", rng=0).confidence_interval
    assert seeds_alone == pytest.approx((known.low, known.high), abs=0.06)
    rows_alone = bootstrap.crossed(np.repeat(of_rows, 8, axis=0))
    assert rows_alone == pytest.approx(tuple(np.quantile(of_rows, [0.025, 0.975])))
    low, high = bootstrap.crossed(of_seeds + of_rows)
    expected = 2 * 1.96 * (of_seeds.var() / 8 + of_rows.var()) ** 0.5
    assert high - low == pytest.approx(expected, rel=0.05)


def test_tasks_are_drawn_anew_each_by_itself() -> None:
    """The variance of a mean over tasks is that of their means over the tasks' number, also where they are alike."""
    random = np.random.default_rng(13)
    task = random.normal(0, 1, (8, 1)) + random.normal(0, 1, (1, 4000))
    widths = [float(np.ptp(bootstrap.crossed(*[task] * number))) for number in (1, 4)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)
    low, high = bootstrap.crossed(task, task + 10)
    assert (low + high) / 2 == pytest.approx(task.mean() + 5, abs=0.1)


def test_a_verdict_has_the_crossed_interval_from_six_seeds_on_where_rows_are_known() -> None:
    random = np.random.default_rng(11)
    values, rows = random.normal(2, 1, 6), random.normal(2, 1, (6, 500))
    (whole,) = verdict.judge({("a", "b", "c"): Paired(values, rows)}, "tasks", rows={"c": 99})
    assert whole.drawn is not None
    assert (whole.drawn.low, whole.drawn.high) == bootstrap.crossed(rows)
    assert (whole.drawn.mean, whole.rows) == (pytest.approx(values.mean()), 99)
    for paired in (Paired(values), Paired(values[:5], rows[:5]), Paired(values, rows[:5])):
        assert verdict.judge({("a", "b", "c"): paired}, "tasks")[0].drawn is None


def test_the_fronts_interval_is_that_of_the_method_on_it() -> None:
    """Not that of a maximum, which is too high: of eight equal methods the highest mean is above the true front."""
    first, last = summary([70.0, 72.0, 74.0]), summary([73.0, 73.5])
    front = scores.front_of([(3, summary([60.0] * 3)), (2, last), (1, first), (1, summary([50.0, 90.0]))])
    assert (front.x, front.y) == ([1, 2, 3], [72.0, 73.25, 73.25])
    assert (front.low, front.high) == ([first.low, last.low, last.low], [first.high, last.high, last.high])
    random, holds = np.random.default_rng(5), 0
    for _ in range(100):
        drawn = scores.front_of([(1 + cost, summary(random.normal(80, 1, 5))) for cost in range(8)])
        holds += drawn.low[-1] <= 80 <= drawn.high[-1]
    assert holds > 50


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_of_a_mean_holds_as_often_as_it_says(seeds: int) -> None:
    every = np.random.default_rng(7).normal(50, 0.1, (1000, seeds))
    holds = [one.low is not None and one.low <= 50 <= (one.high or 0) for one in map(summary, every)]
    assert np.mean(holds) == pytest.approx(0.95, abs=0.025)


def test_the_interval_of_a_mean_is_students_within_what_a_score_can_be() -> None:
    known = stats.ttest_1samp([80.0, 82.0, 81.0], 0).confidence_interval()
    assert statistics.of_mean([80.0, 82.0, 81.0]) == pytest.approx((known.low, known.high))
    for unknown in ([80.0], [80.0, 80.0, 80.0]):
        one = summary(unknown)
        assert (one.low, one.high, one.words()) == (None, None, f"80.00, n={len(unknown)}")
    assert statistics.of_mean([1.0, 99.0], records.limits_of_column("mrpc acc")) == (0, 100)
    assert statistics.of_mean([1.0, 99.0], records.limits_of_column("qqp f1 (sample)")) == (0, 100)
    assert statistics.of_mean([1.0, 99.0], records.limits_of_column("cola MCC")) == (-100, 100)


@pytest.mark.parametrize("seeds", [2, 5, 9, 13, 40])
def test_p_interval_and_equality_are_of_one_test(seeds: int) -> None:
    """Whatever the number of seeds: at the limit of its interval a difference has p = 5%, and equality likewise."""
    differences = np.random.default_rng(seeds).exponential(2, seeds)
    low = Paired(differences).estimate.interval().low  # type: ignore[union-attr]
    assert Paired(differences - low).p() == pytest.approx(0.05, rel=1e-4)
    (item,) = verdict.judge({("a", "b", "c"): Paired(differences - low + 0.01)}, "1 task")
    assert (item.word, item.test) == ("ahead", "paired t-test over seeds alone")
    shifted = Paired(differences - differences.mean() + 0.5)
    margin = shifted.estimate.interval(0.9).high  # type: ignore[union-attr]
    assert shifted.p_of_equality(margin) == pytest.approx(0.05, rel=1e-4)
    assert "a t-test takes these differences for normal" in comparison.how([item], "")


def test_signs_are_flipped_where_all_seeds_differ_alike() -> None:
    same = Paired(np.full(4, 3.0))
    assert same.estimate is None
    assert (same.p(), same.p_of_equality(4.0), same.p_of_distance(2.0)) == (2 / 2**4,) * 3
    (item,) = verdict.judge({("a", "b", "c"): same}, "1 task")
    assert (item.word, item.test) == ("not decided", "flipped signs over seeds alone")
    assert verdict.judge({("a", "b", "c"): Paired(np.full(6, 3.0))}, "1 task")[0].word == "ahead"
    assert Paired(np.full(6, 1e-14)).p() == 1.0, "scores that are equal but for their last bit"
    assert verdict.judge({("a", "b", "c"): Paired(np.array([9.0]))}, "1 task")[0].word == "not decided"
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@settings(max_examples=25)  # each two verdicts with their power
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(0.1, 5))
def test_a_verdict_says_what_its_numbers_say(values: list[float], margin: float) -> None:
    (item,) = verdict.judge({("a", "b", "c"): Paired(np.array(values))}, "1 task", margin)
    (turned,) = verdict.judge({("b", "a", "c"): Paired(-np.array(values))}, "1 task", margin)
    opposite = {"ahead": "behind", "behind": "ahead"}
    assert turned.word == opposite.get(item.word, item.word)
    if item.interval and "t-test" in item.test:
        assert item.interval.low - 1e-9 <= item.interval.mean <= item.interval.high + 1e-9
        assert (item.interval.low > 0) == (item.word == "ahead") or abs(item.p - 0.05) < 1e-9
    if item.word == "tied":
        assert abs(item.difference) < margin


def test_methods_are_tied_only_within_the_margin() -> None:
    near = Paired(np.array([0.1, -0.2, 0.15, -0.1, 0.05, 0.0, 0.1, -0.1]))
    assert verdict.judge({("a", "b", "c"): near}, "1 task", 1.0)[0].word == "tied"
    assert verdict.judge({("a", "b", "c"): near}, "1 task", 0.05)[0].word == "not decided"
    assert near.p_of_equality(1.0) == pytest.approx(
        max(
            stats.ttest_1samp(near.differences, -1.0, alternative="greater").pvalue,
            stats.ttest_1samp(near.differences, 1.0, alternative="less").pvalue,
        )
    )


def test_a_row_that_is_shown_to_be_worse_ends_the_marks() -> None:
    """The noisy last row is not shown to be worse, but one above it is."""
    random = np.random.default_rng(0)
    values = [90 + random.normal(0, 0.1, 4), 89.95 + random.normal(0, 0.1, 4), 80 + random.normal(0, 0.1, 4)]
    noisy = np.array([90.0, 60.0, 85.0, 70.0])
    made = column({name: list(row) for name, row in zip("abcd", [*values, noisy], strict=True)})
    contest = verdict.contenders(made)
    assert contest.rows == {"a", "b", "d"}
    assert list(table.tied("bcd", contest)) == ["b"]


def test_with_one_seed_nothing_is_marked(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for method, score in (("lora", 0.9), ("bitfit", 0.8), ("id3", 0.7)):
        write_run(method, "mrpc", 0, score)
    made = table.build(made_study(tmp_path))
    assert not any(entry.best or entry.tied for line in made.lines for entry in line.entries.values())
    assert made.notes == []


def test_predictions_that_give_another_score_are_left_out_and_named(
    write_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_study(write_run)  # whose predictions are made up
    made = made_study(tmp_path)
    (one, *_) = columns.read(made, table.apart(made)[0])
    assert one.rows is None
    assert "dev.tsv: a row is not of this task; and 29 more files of predictions" in capsys.readouterr().err
    folder = next(STUDY.glob("glue_small/mrpc-lora-*/seed0"))
    record = read_record(folder / "result.json")
    scored = predictions.headline(folder, record)
    assert scored is not None
    assert len(scored.labels) == 408
    copy = tmp_path / "run" / "predictions" / "dev.tsv"
    copy.parent.mkdir(parents=True)
    for text in ("index\tprediction\tlabel\n0\tmaybe\tequivalent\n", "index\tprediction\tlabel\n", "x\n", ""):
        copy.write_text(text)
        with pytest.raises(DataError):
            predictions.headline(tmp_path / "run", record)


def test_compare_says_no_more_than_the_test_shows(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    lines = start("compare", "made", "lora", "bitfit", cwd=tmp_path).stdout.splitlines()
    assert lines[0] == "lora against bitfit: ahead on cola acc, mrpc acc."
    assert lines[-1].startswith("tested: paired t-test over seeds alone; two-sided, 5%, corrected by Holm for 2 tasks")
    assert "tied within 1 point on cola acc" in comparison.lines(made_study(tmp_path), "id3", "lora")[0]
    assert "not decided on cola acc" in comparison.lines(made_study(tmp_path), "id3", "lora", margin=0.1)[0]
    wrong = call("compare", "made", "lora", "bitft", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "bitft: no row of study made; did you mean bitfit?\n"
    wrong = call("compare", "made", "lora", "bitfit", "--margin", "nan", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--margin" in wrong.stderr
    assert "nan" in wrong.stderr


def test_a_methods_word_names_its_row_where_there_is_one_alone(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for i, task in itertools.product(range(2), TASKS):
        write_run("lora", task, i, 0.80 + 0.001 * i)
        for budget in ("50", "like-bitfit"):
            write_run("id3", task, i, 0.7 + 0.001 * i, budget=budget)
        write_run("fish", task, i, 0.6 + 0.001 * i, budget="50")
    made = made_study(tmp_path)
    assert comparison.lines(made, "fish", "id3 50") == comparison.lines(made, "fish 50", "id3 50")
    with pytest.raises(ConfigError, match="id3: no row of study made; did you mean id3 50"):
        comparison.lines(made, "id3", "lora")


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_a_row_that_is_shown_to_be_worse_is_not_bold(
    statistic: table.Statistic, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    """By all of its own seeds it is the first, on those that both have the other is ahead."""
    noise = [0.0, 0.001, 0.003, 0.002]
    for i, own in enumerate(noise):
        write_run("a", "mrpc", i, 0.80 + own)
        write_run("a", "mrpc", i + 4, 0.90 + own)
        write_run("b", "mrpc", i, 0.82 + 2 * own)
    made = made_study(tmp_path)
    rows = table.apart(made)[0]
    lines, _ = table.with_marks(
        table.lines_of(made, rows, ["mrpc acc"], statistic), columns.read(made, rows, table.RESAMPLES)
    )
    entries = {line.name: line.entries["mrpc acc"] for line in lines}
    assert (entries["a"].value or 0) > (entries["b"].value or 0)
    assert not any(entry.best or entry.tied for entry in entries.values())
    note = (
        "mrpc acc: nothing is marked, as the highest, a, is shown to be worse than another on the seeds that both have"
    )
    assert note in table.build(made).notes


def test_every_pair_of_a_column_is_one_family() -> None:
    made = column({"a": [90.0, 91.0, 90.5], "b": [80.0, 81.5, 80.0], "c": [70.0, 72.0, 71.0]})
    items = verdict.matrix([made])
    assert [(item.first, item.second) for item in items] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {(item.tests, item.family) for item in items} == {(3, "pairs in mrpc acc")}
    assert [item.word for item in items] == ["ahead"] * 3
    assert all(isinstance(item.visible, float) for item in items)
    assert Estimate(1.0, 0.25, 10).visible(3) > Estimate(1.0, 0.25, 10).visible()
