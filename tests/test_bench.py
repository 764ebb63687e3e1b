"""The bench's own code runs: peers train, processes are measured, a table and a figure come out."""

import collections
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SMALL, checkpoint, write_tokenizer

from peftbench.backbone.model import load_model
from peftbench.config import compose
from peftbench.data.tokens import tokenizer_for
from peftbench.runner.run import Outcome

SCRIPTS = Path(__file__).parents[1] / "scripts"


def write_rte(folder: Path) -> None:
    """Forty rows of each split in the official layout."""
    (folder / "RTE").mkdir()
    for split in ("train", "dev"):
        lines = [f"{i}\tone {i}\tother {i}\t{('entailment', 'not_entailment')[i % 2]}" for i in range(40)]
        (folder / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")


def test_ours_and_the_peers_are_measured_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench
    import whole_runs

    write_rte(tmp_path)
    monkeypatch.setattr(bench, "TASKS", ("rte",))
    measured = bench.cell(tmp_path, tmp_path, rounds=1, steps=2)
    names = ["rte lora ours", "rte lora best", "rte lora run_glue", "rte id3 ours", "rte id3 selective-optimizers"]
    assert list(measured) == names
    for row in measured.values():
        assert row["seconds"][0] > 1
        assert row["products_gflops"][0] > 0
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
        whole_runs.process([sys.executable, f"{whole_runs.PEERS}/hf_trainer.py", "--style", "worst"], lambda _: {}, {})


def test_runs_of_base_size_are_kept_as_they_come_and_stand_beside_their_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench
    import bench_base

    write_rte(tmp_path)
    words = checkpoint("mpnet_base", tmp_path / "weights", whole=True)[2:]
    monkeypatch.setattr(bench_base, "TASKS", ("rte",))
    monkeypatch.setattr(bench_base, "OURS", {"lora": ["method=lora", *words]})
    monkeypatch.setattr(bench_base, "ORDER", ["lora", "lora, Trainer"])
    monkeypatch.setattr(bench_base, "products_rate", lambda: 400.0)  # the test above measures it
    line = ["base", "--data", str(tmp_path), "--weights", str(tmp_path / "weights"), "--models", "mpnet_base"]
    line += ["--rounds", "1", "--steps", "2", "--kept", str(tmp_path / "runs.jsonl")]
    theirs = bench_base.theirs

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_base, "theirs", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.main(line)
    first = bench_base.read(tmp_path / "runs.jsonl")
    assert [run["run"] for run in first] == ["lora"]
    monkeypatch.setattr(bench_base, "theirs", theirs)
    capsys.readouterr()
    bench.main(line)
    runs = bench_base.read(tmp_path / "runs.jsonl")
    assert runs[:1] == first, "nothing is measured twice"
    assert [run["run"] for run in runs] == bench_base.ORDER
    for run in runs:
        assert 0 < run["train_s"] < run["seconds"]
        assert run["products_gflops"] == 400
        assert 0 <= run["accuracy"] <= 1
    shown = capsys.readouterr().out
    ratio = runs[0]["seconds"] / runs[1]["seconds"]
    assert f"| lora / lora, Trainer | whole process | 0.5 | {ratio:.2f} ({ratio:.2f} to {ratio:.2f}) |" in shown
    assert "full / full" not in shown, "what was not measured has no ratio"


def test_ratios_are_of_runs_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_base

    facts = {"model": "m", "task": "rte", "steps": 60, "accuracy": 0.5, "peak_mb": 9.0, "seconds": 9.0, "load": 0.0}
    times = [("id3", 0, 2.0), ("full", 0, 4.0), ("id3", 1, 3.0), ("full", 2, 1.0), ("id3", 3, 6.0), ("full", 3, 3.0)]
    runs = [
        {**facts, "run": run, "round": number, "train_s": seconds, "day": f"2026-12-0{number + 1}",
         "products_gflops": 400.0 + number}
        for run, number, seconds in times
    ]  # fmt: skip
    goal = next(goal for goal in bench_base.GOALS if (goal.run, goal.other) == ("id3", "full"))
    assert bench_base.ratios(runs, goal) == [0.5, 2.0]
    table = bench_base.tables(runs)
    assert "4 days from 2026-12-01 to 2026-12-04; products of 400 to 403 GFLOP/s" in table
    assert "| id3 / full | steps alone | 1.05 | 1.25 (0.50 to 2.00) |" in table


def test_random_weights_of_a_shape_are_a_folder_that_runs_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_base

    write_tokenizer(tmp_path / "tokenizer")
    sizes = {**SMALL, "vocab_size": 300, "num_attention_heads": 2}
    known = compose.cell_from(["model=roberta_base"]).model.config
    words = ["model=roberta_base", *(f"model.config.{key}={size}" for key, size in sizes.items() if key in known)]
    bench_base.write_random_weights(words, tmp_path / "tokenizer", tmp_path / "weights")
    more = [f"model.weights={tmp_path / 'weights'}", "model.sha256=null"]
    model, folder = load_model(compose.cell_from([*words, *more]).model, 2, seed=0)
    assert folder == tmp_path / "weights"
    assert model.weights_sha256 is not None
    assert tokenizer_for(compose.cell_from([*words, *more]).model, folder).pad_id == 1


def test_what_is_made_for_a_gpu_runs_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_gpu

    for words, other in (bench_gpu.METHODS[name] for name in ("lora", "id3")):
        one, two = bench_gpu.ours("bert_tiny", words, 4), bench_gpu.theirs("bert_tiny", other, 4)
        assert one.keys() == two.keys() == {"steps_per_s", "peak_mb"}
        assert min(*one.values(), *two.values()) > 0


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
