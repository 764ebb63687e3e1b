"""The bench's own code runs: a peer trains and says how it went, and a process is measured."""

import json
import sys
from pathlib import Path

import pytest

from peftbench import compose
from peftbench.models import weights_folder

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_the_peer_trains_and_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    (tmp_path / "RTE").mkdir()
    for split in ("train", "dev"):
        lines = [f"{i}\tone {i}\tother {i}\t{('entailment', 'not_entailment')[i % 2]}" for i in range(40)]
        (tmp_path / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    weights = weights_folder(compose.cell_from(["tracker=none"]).model)
    command = [sys.executable, str(bench.PEER), "--style", "best", "--task", "rte", "--method", "lora", "--steps", "2"]
    command += ["--data", str(tmp_path), "--weights", str(weights), "--out", str(tmp_path / "out")]
    found = bench.process(command, lambda text: json.loads(text.splitlines()[-1])["accuracy"], {})
    assert 0 <= found.accuracy <= 1
    assert found.seconds > 1
    assert found.peak_mb > 200
    ours = bench.ours(["task=rte", "method=head"], tmp_path, tmp_path, steps=2)
    assert 0 <= ours.accuracy <= 1
    with pytest.raises(SystemExit, match="exit 2"):
        bench.process([sys.executable, str(bench.PEER), "--style", "worst"], lambda _: None, {})
