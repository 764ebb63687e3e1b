"""Threads: no more than the cores and the control group's quota allow, waiting passively, unless somebody said so."""

import os
from pathlib import Path

import pytest

from peftbench.ground import environment
from peftbench.ground.environment import cgroup_quota, prepare

SET_HERE = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_least_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(own, "0::/outer/inner\n")
    write(root / "outer" / "inner" / "cpu.max", "max 100000\n")
    assert cgroup_quota(root, own) is None
    write(root / "outer" / "cpu.max", "150000 100000\n")
    assert cgroup_quota(root, own) == 1.5
    write(root / "outer" / "inner" / "cpu.max", "50000 100000\n")
    assert cgroup_quota(root, own) == 0.5


def test_within_a_container_its_own_group_is_the_root(tmp_path: Path) -> None:
    write(tmp_path / "own", "0::/docker/0123\n")
    write(tmp_path / "cgroup" / "cpu.max", "200000 100000\n")
    assert cgroup_quota(tmp_path / "cgroup", tmp_path / "own") == 2.0


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    write(own, "5:memory:/a\n4:cpu,cpuacct:/a\n")
    write(root / "cpu" / "a" / "cpu.cfs_quota_us", "300000\n")
    write(root / "cpu" / "a" / "cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(root, own) == 3.0
    write(root / "cpu" / "a" / "cpu.cfs_quota_us", "-1\n")
    assert cgroup_quota(root, own) is None


def test_where_there_are_no_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(64, 2.0, "2"), (64, 1.5, "2"), (64, 0.1, "1"), (2, None, "2")]
)
def test_threads_are_as_many_as_can_run(
    cores: int, quota: float | None, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SET_HERE:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(environment, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(environment, "_threads", [])
    prepare()
    assert os.environ["OMP_NUM_THREADS"] == threads
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_what_somebody_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"OMP_NUM_THREADS": "7", "GOMP_SPINCOUNT": "100", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "5"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    prepare()
    assert {name: os.environ[name] for name in said} == said
    assert "OMP_WAIT_POLICY" not in os.environ
