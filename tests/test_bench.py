"""The bench's own code runs: peers train, processes are measured, a table and a figure come out."""

import ast
import collections
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import SMALL, checkpoint, write_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification

from peftbench.backbone.model import load_model
from peftbench.config import compose
from peftbench.data.tokens import tokenizer_for
from peftbench.runner.run import Outcome
from peftbench.training.trainer import Trainer

SCRIPTS = Path(__file__).parents[1] / "scripts"


def write_rte(folder: Path) -> None:
    """Forty rows of each split in the official layout."""
    (folder / "RTE").mkdir()
    for split in ("train", "dev"):
        lines = [f"{i}\tone {i}\tother {i}\t{('entailment', 'not_entailment')[i % 2]}" for i in range(40)]
        (folder / "RTE" / f"{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of scripts, which can be imported, and the peers', too."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # peers leave one
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return SCRIPTS


def test_ours_and_the_fastest_of_each_peer_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Path
) -> None:
    import bench
    import whole_runs

    write_rte(tmp_path)
    seconds = {"fp32": [9.0, 12.0], "bf16": [9.5, 10.5], "bf16_weights": [8.0, 20.0], "run_glue": [40.0, 40.0]}
    ends = {name: iter(values) for name, values in seconds.items()}
    authors = {name: iter(values) for name, values in {"fp32": [6.0, 8.0], "bf16": [9.0, 9.0]}.items()}
    own = {"lora": iter([5.0, 6.0]), "id3": iter([3.0, 3.0])}

    def theirs(style: str, task: str, method: str, *_: Any) -> Any:
        return whole_runs.Sample(next((authors if method == "id3" else ends)[style]), 200.0, 0.5, 1.0)

    monkeypatch.setattr(bench, "TASKS", ("rte",))
    monkeypatch.setattr(bench, "theirs", theirs)
    monkeypatch.setattr(
        bench, "ours", lambda words, *_: whole_runs.Sample(next(own[words[1].partition("=")[2]]), 100.0, 0.5, 1.0)
    )
    measured = bench.cell(tmp_path, tmp_path, rounds=2, steps=2)
    shown = bench.fastest(measured)
    names = ["rte lora ours", "rte lora best in bf16", "rte lora run_glue", "rte id3 ours"]
    assert list(shown) == [*names, "rte id3 selective-optimizers in fp32"]
    assert {f"rte lora best in {style}" for style in whole_runs.PRECISIONS} < measured.keys(), "all are printed"
    assert measured["rte lora best in bf16"]["ours_to_theirs_time"] == round((5 / 9.5 + 6 / 10.5) / 2, 3)
    assert measured["rte lora run_glue"]["ours_to_theirs_memory"] == 0.5
    assert all(min(row["products_gflops"]) > 0 and row["tokens_per_s"] > 0 for row in measured.values())
    assert len(bench.markdown(shown).splitlines()) == 2 + len(shown)
    bench.draw(shown, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 5_000


def test_a_process_that_fails_ends_the_bench(scripts: Path) -> None:
    import whole_runs

    with pytest.raises(SystemExit, match="exit 2"):
        whole_runs.process([sys.executable, "-c", "exit(2)"], lambda _: {}, {})


PEERS = ["lora fp32", "lora bf16", "lora bf16_weights", "lora run_glue", "bitfit bf16_weights", "full bf16"]


@pytest.mark.parametrize("line", [*PEERS, "id3 fp32", "id3 bf16"])
def test_every_peer_trains_in_every_precision(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scripts: Path
) -> None:
    import hf_trainer
    import selective_optimizers_trainer as authors
    import whole_runs

    method, style = line.split()
    assert style in (*whole_runs.precisions(method), "run_glue")
    monkeypatch.setattr(authors, "BUDGET", 100)
    write_rte(tmp_path)
    checkpoint("bert_tiny", tmp_path / "weights", whole=True)
    words = ["--task", "rte", "--data", tmp_path, "--weights", tmp_path / "weights", "--out", tmp_path / "out"]
    words += ["--steps", 2, "--style", style, "--method", "full" if method == "id3" else method]
    monkeypatch.setattr(sys, "argv", ["peer", *map(str, words)])
    if method == "id3":
        hf_trainer.main(authors.model_for, authors.optimizers_for)
    else:
        hf_trainer.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 <= said["accuracy"] <= 1
    assert said["train_s"] > 0
    assert said["steps"] == 2


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_with_bf16_weights_what_trains_stays_in_fp32(method: str, scripts: Path) -> None:
    import hf_trainer

    spec = compose.cell_from(["model=bert_tiny"]).model
    plain = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(spec.model_type, **spec.config))
    model = hf_trainer.in_style(hf_trainer.with_method(plain, method), "bf16_weights")
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.ndim > 1}
    assert (trained, frozen) == ({torch.float32}, {torch.bfloat16})


def test_peers_run_without_this_bench_on_one_gpu(scripts: Path) -> None:
    """This bench's kernels change torch's own products; and the Trainer would share batches over all GPUs."""
    import one_gpu

    for path in (scripts / "peers").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert not any(name.partition(".")[0] == "peftbench" for name in named), path.name
    importlib.reload(one_gpu)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


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
    monkeypatch.setattr(bench_base, "ORDER", ["lora", "lora, Trainer in bf16"])
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
    assert f"| lora / lora, Trainer in bf16 | whole process | 0.5 | {ratio:.2f} ({ratio:.2f} to {ratio:.2f}) |" in shown
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


def test_a_peers_fastest_precision_is_the_one_that_counts(scripts: Path) -> None:
    import bench_base

    facts = {"model": "m", "task": "rte", "steps": 60, "accuracy": 0.5, "peak_mb": 9.0, "train_s": 1.0, "load": 0.0}
    facts |= {"day": "2026-12-01", "products_gflops": 400.0}
    times = {"lora": [4.0, 5.0], "lora, Trainer in fp32": [8.0, 10.0], "lora, Trainer in bf16": [7.0, 12.0]}
    times |= {"lora, Trainer in bf16_weights": [20.0], "lora, Trainer": [9.0, 9.0]}  # the last by an earlier version
    runs = [
        {**facts, "run": name, "round": number, "seconds": seconds}
        for name, values in times.items()
        for number, seconds in enumerate(values)
    ]
    known = {name.partition(" in ")[0] for name in bench_base.ORDER}
    assert {name for goal in bench_base.GOALS for name in (goal.run, goal.other)} <= known
    goal = bench_base.GOALS[0]
    assert bench_base.ratios(runs, goal) == [0.5, 0.5]
    table = bench_base.tables(runs)
    assert "| lora / lora, Trainer in fp32 | whole process | 0.5 | 0.50 (0.50 to 0.50) |" in table
    assert "in bf16" not in table
    assert bench_base.ratios([run for run in runs if run["run"] in ("lora", "lora, Trainer")], goal) == []


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


def test_what_is_made_for_a_gpu_runs_without_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scripts: Path
) -> None:
    import bench_gpu
    import trainer_steps

    def measured(line: list[str]) -> dict[str, float]:
        """In this process, what has one of its own."""
        monkeypatch.setattr(sys, "argv", line)
        {bench_gpu.__file__: bench_gpu, str(scripts / "peers" / "trainer_steps.py"): trainer_steps}[line[0]].main()
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert len(said["times"]) == 4
        assert said["peak_mb"] > 0
        order.append(line[0])
        return {"steps_per_s": float(len(order)), "peak_mb": said["peak_mb"]}

    order: list[str] = []
    monkeypatch.setattr(bench_gpu, "measured_alone", measured)
    found = bench_gpu.beside("bert_tiny", "id3", steps=4, rounds=2)
    assert [Path(name).name for name in order] == ["bench_gpu.py", "trainer_steps.py", "trainer_steps.py"] * 2, "turns"
    assert "Trainer, full in bf16" in found, "the faster"
    assert (found["ours / theirs"], found["least"]) == (round((1 / 3 + 4 / 6) / 2, 2), 0.33)
    assert bench_gpu.theirs("bert_tiny", "lora", 4, "bf16_weights")["peak_mb"] > 0


FEW = ("model=bert_tiny", "model.config.vocab_size=2000")


def test_cells_in_one_pass_learn_what_each_learns_alone(monkeypatch: pytest.MonkeyPatch, scripts: Path) -> None:
    import fused_cells

    found = fused_cells.same(*FEW)
    assert len(found) == 2 * len(fused_cells.METHODS)
    for name, row in found.items():
        assert len(set(row["losses"])) == 3, "cells of three seeds"
        assert row["greatest difference"] < (2e-2 if name.endswith("bf16") else 1e-5), name
    monkeypatch.setattr(fused_cells, "ROUNDS", 1)
    times = fused_cells.measure(2, 8, "method=lora", *FEW)
    assert {"alone", "2 together", "4 together", "8 together"} < times.keys()


def test_what_a_ladder_keeps_and_how_long_choosing_takes_are_measured(
    monkeypatch: pytest.MonkeyPatch, scripts: Path
) -> None:
    import bench_ladder
    import bench_selective

    names = ("full", "lora", "lst", "lst, every second rung", "head")
    kept = {name: bench_ladder.saved_mb(bench_ladder.trainer_of(*bench_ladder.METHODS[name], *FEW)) for name in names}
    assert kept["full"] > kept["lora"] > kept["lst"] > kept["lst, every second rung"] > kept["head"] >= 0
    assert bench_ladder.peak_mb("lora", "bert_tiny") > 0
    monkeypatch.setattr(bench_selective, "MATRICES", ((32, 16),))
    monkeypatch.setattr(bench_selective, "DENSITIES", (0.01,))
    (found,) = {row["density"] for row in bench_selective.crossover()["crossover_ms"]}
    assert found == 0.01
    assert bench_selective.selection_ms("model=bert_tiny", "budget=500")["budget"] == 500


def test_a_peak_has_the_first_step(monkeypatch: pytest.MonkeyPatch, scripts: Path) -> None:
    import bench_ladder
    import bench_methods

    def peaks() -> tuple[float, float]:
        return bench_methods.measure("bitfit", "bert_tiny", 1)["peak_mb"], bench_ladder.peak_mb("head", "bert_tiny")

    before = peaks()
    plain = Trainer.step

    def step(self: Trainer, number: int, *rest: Any) -> None:
        if number == 0:
            torch.ones(75, 2**20)  # 300 MiB
        plain(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    assert all(peak > without + 200 for peak, without in zip(peaks(), before, strict=True))


def test_a_limit_is_of_the_gpus_memory_where_there_is_one(monkeypatch: pytest.MonkeyPatch, scripts: Path) -> None:
    import bench_methods

    shares: list[float] = []
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(bench_methods.resource, "setrlimit", lambda _, limit: limits.append(limit))
    bench_methods.bound(12.0)
    assert limits == [(12 * 2**30, 12 * 2**30)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=48 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    bench_methods.bound(12.0)
    assert shares == [0.25]
    assert len(limits) == 1


# Called where a script imports torch within a function.
IMPORTS = {
    "bench.limit": "import bench; bench.limit('bert_tiny')",
    "bench_methods.measure": "import bench_methods; bench_methods.measure('lora', 'bert_tiny', 1)",
    "bench_gpu.one": "import bench_gpu; bench_gpu.one('bert_tiny', 'lora', 1)",
    **{
        name: f"import {name}"
        for name in ("products", "bench_selective", "bench_pruned", "bench_ladder", "bench_bridge", "fused_cells")
    },
}
UNTIL_TORCH = """
import json, os, sys

class Torch:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyError("OMP_WAIT_POLICY" in os.environ)

sys.meta_path.insert(0, Torch())
for name, line in json.loads(sys.argv[1]).items():
    os.environ.pop("OMP_WAIT_POLICY", None)
    for module in [module for module in sys.modules if "bench" in module or module == "prepared"]:
        del sys.modules[module]
    try:
        exec(line)
    except KeyError as error:
        print(json.dumps([name, error.args[0]]))
"""


def test_threads_are_set_before_torch_looks(scripts: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{scripts}:{scripts.parent}"}
    line = [sys.executable, "-c", UNTIL_TORCH, json.dumps(IMPORTS)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[name, True] for name in IMPORTS]


def test_the_authors_id3_steps_when_it_is_asked_to(monkeypatch: pytest.MonkeyPatch, scripts: Path) -> None:
    import bench_selective

    word = "model=bert_tiny"
    known = compose.cell_from([word, "tracker=none"])
    monkeypatch.setattr(bench_selective.compose, "cell_from", lambda _: known)
    monkeypatch.setattr(bench_selective, "BATCH", 2)
    steppers = {style: bench_selective.peer_stepper(True, style) for style in bench_selective.precisions("id3")}
    times = bench_selective.alternating(steppers, rounds=2)
    assert all(row["min_ms"] > 0 for row in times.values())


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
