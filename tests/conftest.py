"""Shared fixtures: a small backbone that needs no download, and real GLUE where it lies beside the checkout."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import TINY

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.runner.run import Outcome, run

GLUE = Path(__file__).resolve().parents[2] / "shared" / "glue"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no W&B account, a cache of the test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
