"""Verdicts on means over tasks: every pair that all tasks have, one family for each reading."""

from collections.abc import Callable
from pathlib import Path

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
