"""The bench's own code runs: peers train, processes are measured, a table and a figure come out."""

import collections
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftbench.runner.run import Outcome

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


def test_a_run_calls_every_function_that_the_fault_driver_breaks(
    monkeypatch: pytest.MonkeyPatch, run_tiny: Callable[..., Outcome]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import faults

    called: collections.Counter[str] = collections.Counter()

    def counted(phase: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            called[phase] += 1
            return plain(*arguments, **named)

        return call

    for phase, (module, name, _) in faults.PHASES.items():
        path, _, last = name.rpartition(".")
        owner = pkgutil.resolve_name(f"{module}:{path}")
        monkeypatch.setattr(owner, last, counted(phase, getattr(owner, last)))
    run_tiny("method=bitfit")
    cells = faults.CELLS  # of the sweep that is broken, each of about so many calls
    assert all(called[phase] * cells >= calls > 0 for phase, (_, _, calls) in faults.PHASES.items()), called
