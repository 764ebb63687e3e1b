"""The command as a person uses it: real processes, exit codes, what is on the screen."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import TINY, begin, call, losses, start

from peftbench.commands.dispatch import COMMANDS
from peftbench.config.words import LISTED


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['peftbench', '--help']\n"
        "from peftbench.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'transformers', 'hydra', 'pandas', 'wandb', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("run", "count", "list", "table", "export", "exit codes"):
        assert word in done.stdout


def test_a_run_ends_with_the_path_of_its_record_and_is_not_run_twice(tmp_path: Path) -> None:
    first = start("run", *(word for word in TINY if word != "progress=false"), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[0], "a progress bar leaves nothing in a pipe"
    path = tmp_path / first.stdout.splitlines()[-1]
    record = json.loads(path.read_text())
    assert record["status"] == "done"
    for word in ("status", "done", "accuracy", "backbone entries", "training", "MiB peak"):
        assert word in first.stdout
    before = path.stat().st_mtime_ns
    second = call("run", *TINY, cwd=tmp_path)
    assert second.returncode == 0
    assert "already done" in second.stdout
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert path.stat().st_mtime_ns == before


def test_a_sweep_runs_every_cell_and_the_table_shows_it(tmp_path: Path) -> None:
    sweep = start("run", "-m", *TINY, "study=pilot", "method=bitfit,lora", "seed=0,1", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert "4 cells: 4 done, 0 failed" in sweep.stdout
    assert len(list((tmp_path / "outputs" / "pilot").glob("*/*/result.json"))) == 4
    table = start("table", "pilot", cwd=tmp_path, COLUMNS="160")
    assert table.returncode == 0, table.stderr
    assert "sample" in table.stdout
    rows = [line for line in table.stdout.splitlines() if line.startswith(("│ bitfit", "│ lora"))]
    assert len(rows) == 2
    assert all(" ± " in row for row in rows)


def test_budgets_on_the_command_line(tmp_path: Path) -> None:
    done = call("run", "-m", *TINY, "method=id3", "budget=50,200", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = call("run", *TINY, "method=id3", "budget.like=bitfit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = call("run", *TINY, "method=id3", "budget.like=bitfit", cwd=tmp_path)
    assert "already done" in again.stdout
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert sorted(record["budget"]["used"] for record in records) == [50, 200, 3072]
    for record in records:
        assert record["budget"]["asked"] == record["budget"]["used"] == record["counts"]["backbone"]
        assert record["budget"]["left"] == 0
        assert [count for _, count in record["budget"]["growth"]][-1] == record["budget"]["used"]
        assert sum(record["budget"]["by_layer"].values()) == record["budget"]["used"]
        growth = dict(record["budget"]["growth"])
        steps = [moment["step"] for moment in record["budget"]["over_time"]]
        assert (steps[0], steps[-1], steps) == (min(growth), max(growth), sorted(set(steps)))
        for moment in record["budget"]["over_time"]:
            assert sum(moment["by_kind"].values()) == sum(moment["by_layer"].values()) == growth[moment["step"]]


def test_a_cell_that_diverges_does_not_stop_a_sweep(tmp_path: Path) -> None:
    words = [*TINY, "study=pilot", "method=full", "protocol.clip=null", "protocol.schedule=constant"]
    sweep = call("run", "-m", *words, "protocol.lr=1e9,1e-4", cwd=tmp_path)
    assert sweep.returncode == 101, sweep.stderr
    assert "2 cells: 1 done, 1 failed" in sweep.stdout
    assert "diverged" in sweep.stdout
    table = call("table", "pilot", cwd=tmp_path, COLUMNS="160")
    assert "diverged: sst2 full seed 0" in table.stdout


def test_bad_input_costs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    wrong = call("run", *TINY, "protocol.lr=-1", "method.rnk=3", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert len(wrong.stderr.splitlines()) == 2
    assert "did you mean method.rank" in wrong.stderr
    missing = call("run", *TINY, "data=folder", "data.path=nowhere", cwd=tmp_path)
    assert missing.returncode == 3
    assert missing.stderr.strip() == "data.path=nowhere: no such folder"
    in_sweep = call("run", "-m", *TINY, "method=lora,lara", "seed=0,1", cwd=tmp_path)
    assert in_sweep.returncode == 2
    assert in_sweep.stderr.count("did you mean lora") == 1
    for words in (["table", "nothing"], ["count", "model=bert"], ["list", "taks"], ["rum"]):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "outputs").exists()


def test_hydras_own_switches_work(tmp_path: Path) -> None:
    shown = call("run", "--cfg", "job", "task=rte", cwd=tmp_path)
    assert shown.returncode == 0
    assert "config: rte" in shown.stdout
    helped = call("run", "--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert "task: " in helped.stdout
    completed = start("-sc", "query=bash", cwd=tmp_path, COMP_LINE="peftbench run task=s", COMP_POINT="20")
    assert set(completed.stdout.split()) == {"task=sst2", "task=stsb"}


def test_list_names_every_word(tmp_path: Path) -> None:
    done = start("list", "tasks", cwd=tmp_path)
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"):
        assert f"  {task} " in done.stdout
    assert "_base" not in done.stdout
    assert "after a run:" not in done.stdout
    every = call("list", cwd=tmp_path).stdout
    groups = [every.index(f"{group}:\n") for group in ("train", "many machines", "results", "after a run")]
    assert groups == sorted(groups)
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", every[: every.index("\nmodel\n")], re.MULTILINE), command
    assert all(f"\n{group}\n" in every for group in LISTED)


def test_a_lora_run_is_exported_to_peft(tmp_path: Path) -> None:
    """PEFT loads the adapter to the run's own predictions, on real MiniLM."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from peftbench.backbone.weights import weights_folder
    from peftbench.config import compose

    words = ["tracker=none", "data.limit=40", "protocol.max_steps=4", "protocol.lr=0.01", "progress=false"]
    done = call("run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = (tmp_path / done.stdout.splitlines()[-1]).parent
    assert start("export", str(run), "--to", str(tmp_path / "adapter"), cwd=tmp_path).returncode == 0

    folder = weights_folder(compose.cell_from([]).model)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    import peftbench

    sample = Path(peftbench.__file__).parent / "data" / "sample" / "SST-2" / "dev.tsv"
    rows = [line.split("\t")[0] for line in sample.read_text(encoding="utf-8").splitlines()[1:41]]
    with torch.no_grad():
        logits = model(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    ours = [line.split("\t")[3:] for line in (run / "predictions" / "dev.tsv").read_text().splitlines()[1:]]
    expected = torch.tensor([[float(number) for number in row] for row in ours])
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0)  # the run computed in bf16

    from peftbench.runner import deltas

    ours_fp32, _, _ = deltas.reload(run)
    with torch.no_grad():
        exact = ours_fp32.module.eval()(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, exact, atol=1e-5, rtol=0)

    refused = call("export", str(tmp_path), "--to", str(tmp_path / "x"), cwd=tmp_path)
    assert refused.returncode == 3


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no")
CPU = {"ACCELERATE_USE_CPU": "true"}


def launched(launcher: tuple[str, ...], words: list[str], folder: Path) -> str:
    """What two processes say that a launcher starts."""
    line = [sys.executable, "-m", *launcher, "-m", "peftbench", "run", *words]
    both = subprocess.run(line, cwd=folder, env={**os.environ, **CPU}, capture_output=True, text=True, timeout=300)
    assert both.returncode == 0, both.stderr[-3000:]
    return both.stdout


def joined(words: list[str], folder: Path) -> str:
    """What two processes say that get the words that launchers put into the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    both = [begin("run", *words, cwd=folder, **CPU, **where, **rank) for rank in ranks]
    said = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    return "".join(out for out, _ in said)


BUDGET = "budget=103"
IN_TWO: dict[str, tuple[list[str], tuple[str, ...] | None]] = {  # the words of a method, and what starts two processes
    "lora": (["method=lora", "method.dropout=0"], TORCHRUN),
    "id3": (["method=id3", BUDGET], ACCELERATE),
    "random masking": (["method=random_masking", BUDGET], None),
    "threshold": (["method=id3", BUDGET, "method.threshold=20", "method.steps=3"], None),
    "adalora": (["method=adalora", "method.dropout=0"], None),
    "hut": (["method=hut"], None),
    "linear adapter": (["method=linear_adapter"], None),
    "lst": (["method=lst", "method.examples=3"], None),
    "light peft": (["method=light_peft", "method.dropout=0", "method.estimation=3"], None),
    "peft's adalora": (
        ["method=peft", "method.type=adalora", "method.config.init_r=4", "method.config.target_r=2"],
        None,
    ),
}


@pytest.mark.parametrize(("method", "launcher"), IN_TWO.values(), ids=IN_TWO)
def test_two_processes_train_as_one(tmp_path: Path, method: list[str], launcher: tuple[str, ...] | None) -> None:
    """Data parallelism through accelerate: the same losses, and the same chosen entries, as one process."""
    # batches of 9 rows: unequal parts, and a last batch of 3 rows
    words = [*TINY, *method, "protocol.precision=fp32", "protocol.batch_size=9", "protocol.lr=0.01"]
    words += ["+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0"]
    alone = call("run", *words, "outputs=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    words += ["outputs=both"]
    said = joined(words, tmp_path) if launcher is None else launched(launcher, words, tmp_path)
    assert said.count("result.json") == 1, "only the first process speaks"

    def series(folder: str) -> list[float]:
        (path,) = (tmp_path / folder).rglob("metrics.jsonl")
        return losses(path.parent)

    def delta(folder: str) -> dict[str, torch.Tensor]:
        (path,) = (tmp_path / folder).rglob("delta.safetensors")
        return load_file(path)

    assert series("both") == pytest.approx(series("alone"), rel=1e-4)
    one, two = delta("alone"), delta("both")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3, msg=name)
    (record,) = (tmp_path / "both").rglob("result.json")
    assert json.loads(record.read_text())["hardware"]["processes"] == 2


def test_a_method_of_somebody_elses_yaml_runs_sweeps_and_is_reproduced(tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\nkinds: [query]\n")
    words = [*TINY, f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "method=mine"]
    assert call("run", *words, cwd=tmp_path).returncode == 0
    (overrides,) = tmp_path.glob("outputs/default/*/seed0/.hydra/overrides.yaml")
    assert words[-2] in yaml.safe_load(overrides.read_text())
    sweep = call("run", "-m", *words, "seed=0,1", cwd=tmp_path)
    assert sweep.stdout.splitlines()[-1] == "2 cells: 2 done (1 of them before), 0 failed"
    (folder / "mine.yaml").write_text("_target_: peftbench.methods.bitfit.BitFit\ndefault_lr: 1.0e-3\nkinds: [value]\n")
    sweep = call("run", "-m", *words, "seed=0,1", cwd=tmp_path)
    assert sweep.stdout.splitlines()[-1] == "2 cells: 2 done, 0 failed"
