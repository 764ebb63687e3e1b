"""Shared fixtures: a small backbone that needs no download, and real GLUE where it lies beside the checkout."""

import fcntl
import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import studies
from browser import CHROMIUM, Browser, chromium
from forgery import Said, in_process
from huggingface_hub import constants
from hypothesis import settings
from matrix import EVERY
from support import TINY

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.files import RECORD_FILE
from peftbench.record import read_record
from peftbench.runner.run import Outcome, run
from peftbench.training.trainer import Trainer

settings.register_profile("loaded", deadline=None)  # on a machine that does other things, too
settings.load_profile("loaded")
GLUE = Path(__file__).resolve().parents[2] / "shared" / "glue"


def pytest_collection_finish() -> None:
    """Garbage is not looked for among what imports made, as in the command: it cost a run half of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no W&B account, a cache of the test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for processes that tests start
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what was read from the environment at the import
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="session")
def glue() -> Path:
    """Real GLUE in the layout of the official download."""
    if not GLUE.is_dir():
        pytest.skip(f"real GLUE is not at ../shared/glue beside this checkout ({GLUE})")
    return GLUE


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Cell]:
    """Make a small cell; overrides come on top."""

    def make(*overrides: str) -> Cell:
        return compose.cell_from([*TINY, f"outputs={tmp_path / 'outputs'}", *overrides])

    return make


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Outcome]:
    """Run a small cell; overrides come on top."""

    def go(*overrides: str) -> Outcome:
        words = [*TINY, f"outputs={tmp_path / 'outputs'}", *overrides]
        config = compose.load(words)
        return run(compose.build(config), compose.resolved(config), words)

    return go


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of LoRA in the study "s"; tests read it."""
    folder = tmp_path_factory.mktemp("finished")
    words = [*TINY, "method=lora", "study=s", f"outputs={folder / 'outputs'}", f"cache={folder / 'cache'}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture(scope="session")
def row_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """A row of the matrix -> its finished run, made once for all tests of all processes; they read it."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "rows"
    place.mkdir(exist_ok=True)

    def made(name: str) -> Outcome:
        folder = place / name
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not list(folder.rglob(RECORD_FILE)):
                words = [*TINY, *EVERY[name].overrides, f"outputs={folder}", f"cache={place / 'cache'}"]
                config = compose.load(words)
                run(compose.build(config), compose.resolved(config), words)
        (path,) = folder.rglob(RECORD_FILE)
        return Outcome(read_record(path), path)

    return made


@pytest.fixture(scope="session")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the same rows with another backbone; tests read it."""
    folder = tmp_path_factory.mktemp("older")
    words = [
        *TINY,
        "model=bert_mini",
        "method=bitfit",
        "protocol.lr=0.02",
        f"outputs={folder / 'outputs'}",
        f"cache={folder / 'cache'}",
    ]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; one for all tests, each of which opens pages of its own."""
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    with chromium(tmp_path_factory.mktemp("browser")) as one:
        yield one


@pytest.fixture
def finished_study(finished: Path, tmp_path: Path) -> Path:
    """The folder of a study with that one record."""
    folder = tmp_path / "outputs" / "s" / finished.parent.name / "seed0"
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_bytes((finished / RECORD_FILE).read_bytes())
    return folder.parents[1]


@pytest.fixture
def write_run(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run of the study "made": `studies.write_run` without its first two arguments."""
    return partial(studies.write_run, read_record(finished / RECORD_FILE), tmp_path / "outputs")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run a command in this process: exit code, output, errors."""
    return lambda *words: in_process(list(words), capfd, monkeypatch)


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the process get a SIGTERM in the middle of a given step (0: of none)."""
    plain = Trainer.step
    at = [0]

    def step(self: Trainer, number: int, *rest: Any) -> None:
        if number == at[0] and at[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)

    def set_to(number: int) -> None:
        at[0] = number

    return set_to
