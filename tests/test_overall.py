"""Verdicts on means over tasks: every pair that all tasks have, one family for each reading."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests
from studies import full_study, made_study

from peftbench.report import columns, over_tasks, overall
from peftbench.report.table import apart


def test_every_pair_that_all_tasks_have_is_judged_in_its_mean(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    for seed in range(2):
        write_run("head", "mrpc", seed, 0.3)  # on one of the tasks alone
    write_run("lora", "cola", 5, 0.70)
    study = made_study(tmp_path)
    read = columns.read(study, apart(study)[0])
    verdicts = overall.matrix(read)
    assert overall.matrix(read[:1]) == []
    fixed = [one for one in verdicts if one.column == "mean of these 2 tasks"]
    assert {(one.first, one.second): one.word for one in fixed} == {
        ("id3", "lora"): "tied", ("id3", "bitfit"): "ahead", ("lora", "bitfit"): "ahead"
    }  # fmt: skip
    assert all(one.drawn is None for one in verdicts), "the predictions are made up"
    uncorrected = []
    for one in fixed:
        pairs = {column.name: paired for column in read if (paired := column.paired(one.first, one.second))}
        assert one.difference == pytest.approx(sum(paired.mean for paired in pairs.values()) / 2)
        together = over_tasks.combine(pairs)
        assert together is not None
        assert together.fixed is not None
        uncorrected.append(together.fixed.p())
        assert (one.seeds, one.unit, one.tests, one.family) == (2, "tasks", 3, "3 pairs in the mean of these 2 tasks")
    assert [one.p for one in fixed] == pytest.approx(list(multipletests(uncorrected, method="holm")[1]))


def test_the_mean_of_these_tasks_has_what_the_crossed_bootstrap_draws() -> None:
    random = np.random.default_rng(0)

    def column(name: str) -> columns.Column:
        rows = {row: {(seed, 0): random.normal(80, 1, 200) for seed in range(6)} for row in "ab"}
        means = {row: {run: float(values.mean()) for run, values in runs.items()} for row, runs in rows.items()}
        return columns.Column(name, means, rows, 99)

    read = [column("rte acc"), column("mrpc acc")]
    fixed, over_all = overall.matrix(read)
    together = over_tasks.combine({one.name: one.paired(fixed.first, fixed.second) for one in read})  # type: ignore
    assert together is not None
    assert fixed.drawn == together.drawn
    assert fixed.drawn is not None
    assert over_all.drawn is None
