"""A comparison over several tasks: whether it depends on the task, and its mean in two readings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM
from studies import made_study

from peftbench.report import bootstrap, comparison, over_tasks, verdict
from peftbench.report.columns import Column, by_task
from peftbench.report.statistics import Paired


def test_over_tasks_the_two_readings_differ_where_tasks_do() -> None:
    random = np.random.default_rng(5)
    pairs = {f"t{i}": Paired(random.normal(mean, 0.5, 5)) for i, mean in enumerate((10, -3, -1))}
    apart = over_tasks.combine(pairs)
    assert apart is not None
    assert apart.interaction is not None
    assert apart.interaction < 0.001
    assert apart.fixed is not None
    assert apart.fixed.p() < 0.05
    assert apart.random is not None
    assert apart.random.mean == pytest.approx(apart.fixed.mean)
    assert apart.random.p() > 0.3
    means = [
        paired.mean for paired in pairs.values()
    ]  # of a balanced design the model is the t-test of the tasks' means
    assert apart.random.p() == pytest.approx(stats.ttest_1samp(means, 0).pvalue, rel=1e-2)


def one_way(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean squares between and within of a balanced design."""
    seeds, means = len(differences[0]), [one.mean() for one in differences]
    return seeds * float(np.var(means, ddof=1)), float(np.mean([one.var(ddof=1) for one in differences]))


def test_the_mean_over_all_tasks_is_the_closed_form_of_balanced_designs() -> None:
    """Searle, Casella and McCulloch 1992, section 4.5; where tasks differ no more than their seeds it is one sample."""
    random = np.random.default_rng(0)
    base = np.array([1.0, 2.0, 3.0, 2.0, 4.0, 0.0, 1.0, 3.0])
    studies = [[base, base[::-1], np.roll(base, 3)]]  # whose tasks agree exactly
    studies += [[random.normal(random.normal(0, size), 1, 5) for _ in range(4)] for size in [0.0, 0.3, 0.6, 2.0] * 8]
    singular = 0
    for differences in studies:
        together = over_tasks.combine({f"t{i}": Paired(one) for i, one in enumerate(differences)})
        assert together is not None
        assert together.random is not None
        assert together.between is not None
        assert together.fixed is not None
        between, within = one_way(differences)
        every = np.concatenate(differences)
        if between > within:
            assert together.between == pytest.approx(((between - within) / len(differences[0])) ** 0.5, rel=1e-3)
            error2 = between / len(every)
        else:
            singular += 1
            assert together.between == 0
            error2 = float(((every - every.mean()) ** 2).sum()) / (len(every) - 1) / len(every)
        assert together.random.mean == pytest.approx(every.mean())
        assert together.random.error**2 == pytest.approx(max(error2, together.fixed.error**2), rel=1e-4)
    assert 5 < singular < 28


def test_the_mean_over_all_tasks_of_unequal_numbers_of_seeds_is_the_mixed_models() -> None:
    random = np.random.default_rng(1)
    differences = [random.normal(mean, 1, seeds) for mean, seeds in ((4, 3), (-3, 9), (1, 5), (0, 4), (6, 7))]
    model = MixedLM(
        np.concatenate(differences), np.ones((28, 1)), groups=np.repeat(range(5), [len(one) for one in differences])
    )
    fit = model.fit(reml=True)
    assert fit.converged
    together = over_tasks.combine({f"t{i}": Paired(one) for i, one in enumerate(differences)})
    assert together is not None
    assert together.random is not None
    assert together.random.mean == pytest.approx(fit.params[0], rel=1e-3)
    assert together.random.error == pytest.approx(fit.bse[0], rel=1e-2)
    assert together.between == pytest.approx(fit.cov_re[0, 0] ** 0.5, rel=1e-3)
    exact = over_tasks.combine({f"t{i}": Paired(np.full(3, value)) for i, value in enumerate((1.0, 2.0, 6.0))})
    assert exact is not None
    assert exact.random is not None
    assert exact.random.p() == pytest.approx(stats.ttest_1samp([1.0, 2.0, 6.0], 0).pvalue), "seeds alike, tasks apart"


def test_whether_the_difference_depends_on_the_task_is_brown_and_forsythes_test() -> None:
    """Brown and Forsythe 1974 with the numerator's degrees of freedom of Mehrotra 1997, written out."""
    random = np.random.default_rng(4)
    samples = [random.normal(mean, sd, seeds) for mean, sd, seeds in ((0, 1, 4), (1, 3, 9), (2, 0.5, 5))]
    together = over_tasks.combine({f"t{i}": Paired(one) for i, one in enumerate(samples)})
    assert together is not None
    seeds, means = np.array([len(one) for one in samples]), np.array([one.mean() for one in samples])
    variances, share = np.array([one.var(ddof=1) for one in samples]), seeds / seeds.sum()
    parts = (1 - share) * variances
    ratio = (seeds * (means - (share * means).sum()) ** 2).sum() / parts.sum()
    below = parts.sum() ** 2 / (parts**2 / (seeds - 1)).sum()
    above = parts.sum() ** 2 / ((share * variances).sum() ** 2 + ((1 - 2 * share) * variances**2).sum())
    assert together.interaction == pytest.approx(stats.f.sf(ratio, above, below))


def test_the_mean_of_these_tasks_has_the_interval_of_seeds_and_rows_drawn_anew() -> None:
    random = np.random.default_rng(6)
    tasks = {name: Paired(random.normal(2, 1, 6), random.normal(2, 1, (6, 300))) for name in "abc"}
    together = over_tasks.combine(tasks)
    assert together is not None
    assert together.drawn is not None
    rows = [one.resampled for one in tasks.values() if one.resampled is not None]
    assert (together.drawn.low, together.drawn.high) == bootstrap.crossed(*rows)
    fixed, random_tasks = comparison.over_all(together, 3, 1.0)[1:]
    assert f"; seeds and rows drawn anew: {together.drawn.low:+.1f} to {together.drawn.high:+.1f})" in fixed
    assert "drawn anew" not in random_tasks
    for other in (Paired(random.normal(2, 1, 6)), Paired(random.normal(2, 1, 5), random.normal(2, 1, (5, 300)))):
        without = over_tasks.combine({**tasks, "d": other})
        assert without is not None
        assert (without.fixed is not None, without.drawn) == (True, None)


@pytest.mark.filterwarnings("error")
def test_a_singular_fit_is_said_and_warns_nobody() -> None:
    base = np.array([1.0, 2.0, 3.0, 2.0])
    together = over_tasks.combine({"a": Paired(base), "b": Paired(base[::-1] + 0.01)})
    assert together is not None
    assert together.between == 0
    assert together.random is not None
    assert any("a singular fit" in line for line in comparison.over_all(together, 2, 1.0))
    assert over_tasks.combine({"a": Paired(base), "b": Paired(np.array([1.0]))}) is None
    flat = over_tasks.combine({"a": Paired(np.full(3, 2.0)), "b": Paired(np.full(3, 2.0))})
    assert flat is not None
    assert (flat.fixed, flat.random, flat.interaction) == (None, None, None)


def test_a_task_with_a_single_seed_is_counted_nowhere_and_named(write_run: Callable[..., Path], tmp_path: Path) -> None:
    pairs = {("a", "b", task): Paired(np.array(values)) for task, values in (("c", [1.0, 2.0]), ("d", [1.0, 3.0]))}
    items = verdict.judge({**pairs, ("a", "b", "e"): Paired(np.array([1.0]))}, "tasks")
    assert "corrected by Holm for 2 tasks" in comparison.how(items, "")
    for seed in range(3):
        write_run("lora", "mrpc", seed, 0.8 + 0.01 * seed)
        write_run("bitfit", "mrpc", seed, 0.7 + 0.02 * seed)
    write_run("lora", "cola", 0, 0.8)
    write_run("bitfit", "cola", 0, 0.7)
    lines = comparison.lines(made_study(tmp_path), "lora", "bitfit")
    assert "left out over tasks, fewer than two pairs of runs: cola acc" in lines
    assert lines[-1].endswith(
        "5%, one test, so nothing is corrected; equality within 1 likewise, by two one-sided tests; a t-test takes "
        "these differences for normal"
    )
    write_run("lora", "cola", 1, 0.8)
    write_run("bitfit", "cola", 1, 0.71)
    both = comparison.lines(made_study(tmp_path), "lora", "bitfit")
    assert any(line.startswith("mean of these 2 tasks: ") for line in both)
    assert "corrected by Holm for 2 tasks; equality within 1 likewise" in both[-1]
    assert "not corrected: what is said over tasks" in both[-1]


def test_both_dev_sets_of_mnli_are_one_task_of_a_mean(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for seed in range(3):
        for task in ("rte", "mnli", "mnli_mismatched"):
            higher = {"rte": 0.02, "mnli": 0.04, "mnli_mismatched": 0.06}[task]
            write_run("lora", task, seed, 0.7 + higher + 0.001 * seed)
            write_run("bitfit", task, seed, 0.7 + 0.002 * (2 - seed))
    lines = comparison.lines(made_study(tmp_path), "lora", "bitfit")
    assert "ahead on mnli acc, mnli_mismatched acc, rte acc" in lines[0], "each has its own verdict"
    (mean,) = (line for line in lines if line.startswith("mean of these "))
    assert mean.startswith("mean of these 2 tasks: ahead: +3.4 points"), "half of 1.9 and half of 4.9, less 0.1"
    assert "one task where it is about tasks: mnli acc and mnli_mismatched acc" in lines
    assert any(line.startswith("probability") and "mean of these 2 tasks" in line for line in lines)


def test_columns_of_one_task_become_their_mean_on_the_runs_that_all_have() -> None:
    drawn = {seed: np.full(4, float(seed)) for seed in range(3)}
    matched = Column("mnli acc m", {"a": {(s, 0): 80.0 + s for s in range(3)}, "b": {(0, 0): 1.0}}, {}, None)
    other = {"a": {(s, 0): 70.0 + s for s in (1, 2)}, "c": {(0, 0): 1.0}}
    mismatched = Column("mnli_mismatched acc mm", other, {"a": {(1, 0): drawn[1], (2, 0): drawn[2]}}, 9)
    sample = Column("mnli acc m (sample)", {"a": {(0, 0): 5.0}}, {}, None)
    rte = Column("rte acc", {"a": {(0, 0): 60.0}}, {}, None)
    made = by_task([matched, rte, mismatched, sample])
    assert [one.name for one in made] == ["mnli acc m and mnli_mismatched acc mm", "rte acc", "mnli acc m (sample)"]
    assert made[0].scores == {"a": {(1, 0): 76.0, (2, 0): 77.0}}
    assert (made[0].resampled, made[0].rows) == ({}, None), "the rows of one are not known"
    known = replace(matched, resampled={"a": {(s, 0): 3 * drawn[s] for s in range(3)}}, rows=9)
    both = by_task([known, mismatched])[0]
    assert {run: list(values) for run, values in both.resampled["a"].items()} == {(1, 0): [2.0] * 4, (2, 0): [4.0] * 4}
