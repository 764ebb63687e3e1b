"""make=merged: a finished run folded into its backbone is a newer backbone that runs start from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from safetensors.torch import load_file
from support import TINY

from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256
from peftbench.config import compose
from peftbench.runner.deltas import reload
from peftbench.runner.run import Outcome, run

Run = Callable[..., Outcome]
Command = Callable[..., Said]
CELL = ["data=sample", "data.limit=48", "tracker=none", "progress=false", "protocol.max_length=24"]
CELL += ["protocol.batch_size=8", "protocol.max_steps=2", "protocol.precision=fp32", "protocol.lr=0.01"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a small BERT in a real folder, which lacks its pooler."""
    return checkpoint("bert_base_uncased", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def train(source: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a cell on it; the run's folder."""
    here = tmp_path_factory.mktemp("runs")

    def go(*overrides: str) -> Path:
        words = [*source, *CELL, f"outputs={here / 'outputs'}", f"cache={here / 'cache'}", *overrides]
        return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent

    return go


def weights(words: list[str]) -> dict[str, torch.Tensor]:
    folder = next(word for word in words if word.startswith("model.weights=")).partition("=")[2]
    return load_file(Path(folder) / WEIGHTS_FILE)


def in_full(name: str) -> str:
    return name if name.startswith("bert.") else f"bert.{name}"


@pytest.mark.parametrize("method", ["full", "lora", "bitfit", "head"])
def test_a_run_folded_in_is_a_backbone_that_the_next_run_starts_from(
    method: str, source: list[str], train: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    folder = train("task=rte", f"method={method}")
    code, out, err = command("backbone", "make=merged", f"make.run={folder}", "--to", str(tmp_path / "newer"))
    assert code == 0, err
    words = out.split()
    before = {in_full(name): one for name, one in weights(source).items()}
    after = load_file(tmp_path / "newer" / WEIGHTS_FILE)
    model, tuner, _ = reload(folder)
    tuner.merge()
    expected = {name: p for name, p in model.backbone() if name in after}
    assert expected
    assert all(torch.equal(after[name], p) for name, p in expected.items()), "the run as it ended, bit for bit"
    assert before.keys() <= after.keys()
    assert ("bert.pooler.dense.weight" in after) == (method in ("full", "bitfit")), "a pooler that the run trained"
    assert any(not torch.equal(after[name], before[name]) for name in before) == (method != "head")
    assert not any("classifier" in name for name in after)
    facts = json.loads((tmp_path / "newer" / "merged.json").read_text())
    moved = math.sqrt(sum(float((after[name] - one).double().norm() ** 2) for name, one in before.items()))
    assert facts["distance"] == pytest.approx(moved, rel=1e-6)
    assert facts["delta"] == file_sha256(folder / "delta.safetensors")
    assert (facts["method"], facts["task"], facts["seed"]) == (method, "rte", 0)
    assert f"{method} of rte, seed 0: the backbone has moved by" in err
    sizes = [word for word in source if word.startswith("model.config.")]
    cell = compose.cell_from([*words, *sizes])
    record = run_on(words, sizes, tmp_path)
    assert record.record.hashes.weights == cell.model.sha256 == file_sha256(tmp_path / "newer" / WEIGHTS_FILE)
    assert record.record.drawn == ([] if "bert.pooler.dense.weight" in after else model_drawn(folder))


def model_drawn(folder: Path) -> list[str]:
    return sorted(reload(folder)[0].drawn)


def run_on(words: list[str], sizes: list[str], here: Path) -> Outcome:
    words = [*words, *sizes, *CELL, "task=sst2", "method=bitfit", f"outputs={here / 'outputs'}", f"cache={here}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words)


def test_a_scale_says_how_far_it_goes(
    source: list[str], train: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    folder = train("task=sst2", "method=lora")
    for scale in ("0.25", "1"):
        words = ("make=merged", f"make.run={folder}", f"make.scale={scale}")
        assert command("backbone", *words, "--to", str(tmp_path / scale))[0] == 0
    before = {in_full(name): one for name, one in weights(source).items()}
    quarter, whole = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("0.25", "1"))
    for name, one in before.items():
        torch.testing.assert_close(quarter[name] - one, (whole[name] - one) / 4, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_folded_in_is_one_line(
    run_tiny: Run, train: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    def refused(code: int, *words: str) -> str:
        said = command("backbone", "make=merged", *words, "--to", str(tmp_path / "newer"))
        assert (said[0], said[1], said[2].count("\n")) == (code, "", 1), said
        return said[2]

    folder = train("task=rte", "method=houlsby", "protocol.max_steps=1")
    assert "make.run: must be given" in refused(2)
    assert "adapters cannot be merged" in refused(2, f"make.run={folder}")
    assert "model=bert_tiny: not a word of make=merged" in refused(2, f"make.run={folder}", "model=bert_tiny")
    assert "make.scale=0: must be" in refused(2, f"make.run={folder}", "make.scale=0")
    assert "not a readable record" in refused(3, f"make.run={tmp_path}")
    random = run_tiny("method=bitfit", "protocol.max_steps=1").path.parent
    assert TINY[1] == "model.weights=random"
    assert "its backbone is random" in refused(2, f"make.run={random}")
    assert not (tmp_path / "newer").exists()
