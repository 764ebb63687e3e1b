"""Threads: no more than the cores and the control group's quota allow, waiting passively, unless somebody said so."""

import importlib
import multiprocessing
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import joblib
import pytest
from forgery import Said
from support import TINY, start

from peftbench.commands import run, work
from peftbench.ground import environment
from peftbench.ground.environment import LAUNCHED, cgroup_quota, prepare
from peftbench.ground.errors import ConfigError
from peftbench.study import compose_many

SET_HERE = (
    "OMP_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
)
NUMBAS = """
import os
os.cpu_count, os.sched_getaffinity = lambda: 64, lambda _: set(range(64))
from peftbench.ground import environment
environment.cgroup_quota = lambda: 3.0
environment.prepare()
import numba
environment.leave_threads_to_workers()
environment.prepare()
print(numba.config.NUMBA_NUM_THREADS, os.environ["NUMBA_NUM_THREADS"])
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody said how many threads compute, on a machine of 64 cores."""
    for name in SET_HERE:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(environment, "cgroup_quota", lambda: None)
    monkeypatch.setattr(environment, "chosen_threads", {})


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


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("cores", "quota", "threads"), [(64, 2.0, "2"), (64, 1.5, "2"), (64, 0.1, "1"), (2, None, "2")]
)
def test_threads_are_as_many_as_can_run(
    cores: int, quota: float | None, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(environment, "cgroup_quota", lambda: quota)
    prepare()
    assert os.environ["OMP_NUM_THREADS"] == threads
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_cells_are_composed_by_as_many_processes_as_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(workers: int, **_: object) -> None:
        raise RuntimeError(f"{workers} beside this one")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(environment, "cgroup_quota", lambda: 3.0)
    monkeypatch.setattr(compose_many, "ProcessPoolExecutor", refuse)
    with pytest.raises(RuntimeError, match=r"^2 beside this one$"):
        list(compose_many.cells_from([[]] * compose_many.FEW))


@pytest.mark.parametrize(
    ("said", "number"),
    [({}, "3"), ({"OMP_NUM_THREADS": "5,2"}, "5"), ({"OMP_NUM_THREADS": "5", "NUMBA_NUM_THREADS": "4"}, "4")],
)
def test_numba_starts_no_more_threads_than_torch_unless_somebody_said_so(said: dict[str, str], number: str) -> None:
    """On a machine of 64 cores with a quota of 3; it refuses another number once it has started them."""
    variables = {**{name: value for name, value in os.environ.items() if name not in SET_HERE}, **said}
    found = subprocess.run([sys.executable, "-c", NUMBAS], env=variables, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [number, number]


def test_what_somebody_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"OMP_NUM_THREADS": "7", "GOMP_SPINCOUNT": "100", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "5"}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    prepare()
    assert {name: os.environ[name] for name in said} == said
    assert "OMP_WAIT_POLICY" not in os.environ


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of torchrun in the environment."""
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unlaunched")
@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"RANK": "x"}, "RANK=x: must be a whole number, at least 0"),
        ({"RANK": ""}, "RANK=: must be a whole number"),
        ({"RANK": "²"}, "RANK=²: must be a whole number"),
        ({"RANK": "\x1b]0;x\x07"}, r"RANK=\x1b]0;x\x07: must be a whole number"),
        ({"RANK": "1"}, "RANK=1: must be below WORLD_SIZE, which is 1"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1: must be a whole number, at least 0"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3: must be below WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be a whole number, at least 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: needs RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them"),
        ({**TORCHRUN, "RANK": "2"}, "RANK=2: must be below WORLD_SIZE, which is 2"),
        ({**TORCHRUN, "MASTER_PORT": "http"}, "MASTER_PORT=http: must be a whole number"),
        ({"WANDB_INIT_TIMEOUT": "abc"}, "WANDB_INIT_TIMEOUT=abc: must be a number of seconds above 0"),
        ({"WANDB_INIT_TIMEOUT": "nan"}, "WANDB_INIT_TIMEOUT=nan: must be a number of seconds above 0"),
        ({"WANDB_MODE": "onlin"}, "WANDB_MODE=onlin: must be one of online, "),
        ({"OMP_NUM_THREADS": "4,x"}, "OMP_NUM_THREADS=x: must be a whole number, at least 1"),
    ],
)
def test_a_wrong_word_is_one_line_that_names_its_variable(
    variables: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        prepare()
    (problem,) = caught.value.problems
    assert problem.startswith(line)


@pytest.mark.usefixtures("unlaunched")
def test_what_torchrun_sets_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    prepare()


def test_python_without_documentation_is_refused_in_a_line(tmp_path: Path) -> None:
    refused = start("count", cwd=tmp_path, PYTHONOPTIMIZE="2")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "PYTHONOPTIMIZE=2: must be 0 or 1, libraries need their documentation\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unset")
def test_threads_are_set_before_a_command_is_imported(
    command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch looks once, as it is imported; `test_help_imports_nothing_heavy` says that nothing did before."""
    imported, plain = list[tuple[str, str | None]](), importlib.import_module

    def spy(name: str) -> object:
        imported.append((name, os.environ.get("OMP_NUM_THREADS")))
        return plain(name)

    monkeypatch.setattr(importlib, "import_module", spy)
    assert command("list", "model").code == 0
    assert imported[0] == ("peftbench.commands.words", "64")


@pytest.mark.usefixtures("unset")
def test_workers_of_one_command_get_their_share_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Worker:
        exitcode = 0

        def __init__(self, **_: object) -> None: ...
        def join(self) -> None: ...
        def start(self) -> None:
            asked.append(os.environ["OMP_NUM_THREADS"])

    prepare()
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: Namespace(Process=Worker))
    assert work.share(Namespace(workers=4), 0.0) == [0] * 4
    assert asked == ["16"] * 4


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("said", [None, "5"])
def test_processes_of_a_launcher_count_for_themselves(
    said: str | None, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unless somebody set a number; joblib, which divides the cores, knows of a nested group's quota."""
    found: list[object] = []

    def hydra_jobs(_: object) -> tuple[list[int], None]:
        found.extend([os.environ.get("OMP_NUM_THREADS"), joblib.cpu_count()])
        return [], None

    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(environment, "cgroup_quota", lambda: 1.0)

    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(run, "hydra_jobs", hydra_jobs)
    assert command("run", "-m", *TINY, "seed=0,1", f"outputs={tmp_path}").code == 1  # both are left
    assert found == [said, 1]


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("quota", "processes", "threads"), [(None, 2, "32"), (None, 3, "21"), (2.0, 2, "1"), (2.0, 9, "1")]
)
def test_workers_of_a_machine_share_its_cores(
    quota: float | None, processes: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cgroup_quota", lambda: quota)
    prepare()
    environment.share_threads(processes)
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    environment.share_threads(processes)
    assert os.environ["OMP_NUM_THREADS"] == "5", "somebody set it"
