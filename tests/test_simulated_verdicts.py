"""Verdicts on studies of known truth: wrong in at most 5% of them, and given as often as their design says."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from peftbench.report import over_tasks, statistics, verdict
from peftbench.report.columns import Column
from peftbench.report.statistics import Estimate, Paired

SCRIPTS = Path(__file__).parents[1] / "scripts"
REPEATS = 2000
SEEDS_SPREAD, ROWS_SPREAD = 0.6, 0.25  # points: standard deviation of one seed's difference, and of what all share


def limits(count: int, of: int = REPEATS) -> tuple[float, float]:
    """The 98% interval of a rate: of 2000 studies at most 6.2% may be wrong, and 10% would not pass by chance."""
    low, high = proportion_confint(count, of, alpha=0.02, method="beta")
    return float(low), float(high)


def drawn(random: np.random.Generator, seeds: int, truth: float = 0.0) -> Paired:
    """The differences of one study, on rows that all its seeds share, and those on rows drawn anew."""
    differences = truth + ROWS_SPREAD * random.normal() + SEEDS_SPREAD * random.standard_normal(seeds)
    rows = ROWS_SPREAD * random.standard_normal((1, 150))
    return Paired(differences, rows + 0.5 * SEEDS_SPREAD * random.standard_normal((seeds, 150)))


def shifted(estimates: Sequence[Estimate], by: float) -> list[Estimate]:
    """The same studies of methods that are so many points further apart."""
    return [replace(one, mean=one.mean + by) for one in estimates]


@pytest.mark.parametrize("seeds", [3, 8])
def test_a_pair_is_wrong_in_at_most_5_percent_and_shows_what_its_design_says(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    studies = [drawn(random, seeds) for _ in range(REPEATS)]
    equal = [one for study in studies if (one := study.estimate) is not None]
    low, high = limits(sum(study.p() < 0.05 for study in studies))
    assert low < 0.05
    assert high > 0.02, "nor is it never wrong: the rate has something to tell"
    apart = shifted(equal, 1.0)
    low, high = limits(sum(one.p_of_equality(1.0) < 0.05 for one in apart))
    assert low < 0.05
    assert high > 0.02
    assert limits(sum(one.p_of_distance(1.0) < 0.05 for one in apart))[0] < 0.05, "refuted, a margin apart"
    parts = SEEDS_SPREAD**2 / seeds, seeds - 1, ROWS_SPREAD**2
    larger = shifted(equal, statistics.smallest_shown(*parts))
    low, high = limits(sum(one.p() < 0.05 and one.mean > 0 for one in larger))
    assert low < 0.8 < high
    low, high = limits(sum(one.p_of_equality(1.0) < 0.05 for one in equal))
    assert low - 0.01 < statistics.power_of_equality(*parts, margin=1.0) < high + 0.01


def test_means_over_tasks_are_wrong_in_at_most_5_percent() -> None:
    """Tasks whose true difference is the same, then such whose differences vary over them about a mean."""
    random, fixed, varying, depends = np.random.default_rng(1), [], [], 0
    for _ in range(REPEATS):
        alike = over_tasks.combine({f"t{i}": drawn(random, 5) for i in range(3)})
        apart = over_tasks.combine({f"t{i}": drawn(random, 5, random.normal(0, 0.5)) for i in range(3)})
        assert alike is not None
        assert apart is not None
        assert alike.fixed is not None
        assert apart.random is not None
        assert alike.interaction is not None
        fixed.append(alike.fixed)
        varying.append(apart.random)
        depends += alike.interaction < 0.05
    assert limits(depends)[0] < 0.05
    for estimates in (fixed, varying):
        assert limits(sum(one.p() < 0.05 for one in estimates))[0] < 0.05
        assert limits(sum(one.p_of_equality(1.0) < 0.05 for one in shifted(estimates, 1.0)))[0] < 0.05
        assert limits(sum(one.p_of_distance(1.0) < 0.05 for one in shifted(estimates, 1.0)))[0] < 0.05
    assert limits(sum(one.p() < 0.05 for one in fixed))[1] > 0.02


def test_the_best_of_equal_methods_is_among_those_that_may_be_the_best() -> None:
    random, outside = np.random.default_rng(2), 0
    for _ in range(REPEATS):
        scores = {f"m{i}": {(seed, 0): float(random.normal(80, 1)) for seed in range(5)} for i in range(4)}
        outside += "m0" not in verdict.contenders(Column("rte acc", scores, {}, None)).rows
    low, high = limits(outside)
    assert low < 0.05
    assert high > 0.01


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation", "pearson", "spearman"])
def test_equal_methods_are_seldom_told_apart_by_any_metric(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import simulated_studies

    task, parts = simulated_studies.Task(metric, 100, metric, 0.6), simulated_studies.Parts(0.5, 0.0005, 0.05)
    studies = simulated_studies.pairs(np.random.default_rng(3), task, 3, np.zeros(800), parts)
    low, high = limits(sum(study.p() < 0.05 for study in studies), 800)
    assert low < 0.05
    assert high > 0.01


def test_the_script_makes_its_tables_in_pieces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import verdicts

    def said(*words: str) -> list[str]:
        few = ["--repeats", "3", "--seeds", "3", "--tasks", "2", "--methods", "3", "--into", str(tmp_path / "made")]
        monkeypatch.setattr("sys.argv", ["verdicts.py", *few, *words])
        verdicts.main()
        return capsys.readouterr().out.splitlines()

    assert said("--minutes", "0")[-1] == "5 pieces are left: call this again"
    marks = said("--part", "marks")
    assert "| 3 | 3 | 3 | the best of 3 is 15 points ahead: not marked |  | 0.0 (0.0 to 70.8) |" in marks
    kept = (tmp_path / "made").read_text()
    monkeypatch.setitem(verdicts.PARTS, "marks", None)  # what is there is not made again
    assert said("--part", "marks") == marks
    assert (tmp_path / "made").read_text() == kept
    tables = said("--part", "errors", "ties", "power", "metrics")
    assert tables[-1] == "nothing is left"
    assert sum(line.startswith("| 2 | 3 | 3 | ") for line in tables) > 15
