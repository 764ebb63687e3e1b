"""What the tests and intervals of a table say: exact where they can be, silent about noise."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import TASKS, full_study, made_study
from support import call, start

from peftbench.ground.errors import ConfigError
from peftbench.report import statistics, verdict


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
    interval = statistics.bootstrap(values)
    assert interval is not None
    assert interval.low - 1e-9 <= interval.mean <= interval.high + 1e-9


@pytest.mark.filterwarnings("error")
def test_equal_seeds_are_compared_without_a_warning() -> None:
    scores = {"head": [4.63559874942472] * 3, "full": [25.6, 28.4, 27.0], "lora": [25.0, 28.0, 26.0]}
    assert statistics.not_beaten(scores) == {"full", "lora"}


def test_compare_says_no_more_than_the_test_shows(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    lines = start("compare", "made", "lora", "bitfit", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("lora beats bitfit over all tasks: 10.0 points, 10 pairs")
    assert len(lines) == 4
    lines = verdict.lines(made_study(tmp_path), "id3", "lora")
    assert lines[0].startswith("No difference between id3 and lora over all tasks outside the noise")
    wrong = call("compare", "made", "lora", "bitft", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "bitft: no row of study made; did you mean bitfit?\n"


def test_a_methods_word_names_its_row_where_there_is_one_alone(write_run: Callable[..., Path], tmp_path: Path) -> None:
    for i, task in itertools.product(range(2), TASKS):
        write_run("lora", task, i, 0.80 + 0.001 * i)
        for budget in ("50", "like-bitfit"):
            write_run("id3", task, i, 0.7 + 0.001 * i, budget=budget)
        write_run("fish", task, i, 0.6 + 0.001 * i, budget="50")
    made = made_study(tmp_path)
    assert verdict.lines(made, "fish", "id3 50") == verdict.lines(made, "fish 50", "id3 50")
    with pytest.raises(ConfigError, match="id3: no row of study made; did you mean id3 50"):
        verdict.lines(made, "id3", "lora")
