"""The bench's own code runs: peers train, processes are measured, a table and a figure come out."""

import importlib
import operator
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_ours_and_the_peers_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    (tmp_path / "RTE").mkdir()
    for split in ("train", "dev"):
        lines = [f"{i}\tone {i}\tother {i}\t{('entailment', 'not_entailment')[i % 2]}" for i in range(40)]
        (tmp_path / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(bench, "TASKS", ("rte",))
    measured = bench.cell(tmp_path, tmp_path, rounds=1, steps=2)
    names = ["rte lora ours", "rte lora best", "rte lora run_glue", "rte id3 ours", "rte id3 selective-optimizers"]
    assert list(measured) == names
    for row in measured.values():
        assert row["seconds"][0] > 1
        assert row["peak_mb"] > 200
        assert 0 <= row["accuracy"][0] <= 1
    theirs = measured["rte lora best"]
    assert theirs["ours_to_theirs_time"] == pytest.approx(
        measured["rte lora ours"]["seconds"][0] / theirs["seconds"][0], abs=1e-3
    )
    assert len(bench.markdown(measured).splitlines()) == 2 + len(names)
    bench.draw(measured, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="exit 2"):
        bench.process([sys.executable, str(bench.PEERS / "hf_trainer.py"), "--style", "worst"], lambda _: None, {})


def test_every_function_that_the_fault_driver_breaks_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import faults

    for module, name, calls in faults.PHASES.values():
        assert callable(operator.attrgetter(name)(importlib.import_module(module)))
        assert calls > 0
