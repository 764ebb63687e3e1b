"""What comes after a run: the GLUE submission, plain transformers folders, labels for new rows, W&B sent later."""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import TINY, call, start
from transformers import AutoModelForSequenceClassification

from peftbench.cli import main
from peftbench.config import compose
from peftbench.ground.errors import DataError
from peftbench.record import Headline, Record, write_record
from peftbench.report import records, submission, sync
from peftbench.runner.deltas import reload
from peftbench.runner.run import Outcome, run

Run = Callable[..., Outcome]
LABELS = {
    "cola": ["unacceptable", "acceptable"], "sst2": ["negative", "positive"], "qnli": ["entailment", "not_entailment"],
    "mrpc": ["not_equivalent", "equivalent"], "qqp": ["not_duplicate", "duplicate"],
    "rte": ["entailment", "not_entailment"], "wnli": ["not_entailment", "entailment"],
    "mnli": ["entailment", "neutral", "contradiction"], "ax": ["entailment", "neutral", "contradiction"],
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Record:
    words = [*TINY, "method=lora", f"outputs={tmp_path_factory.mktemp('outputs')}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).record


def put(root: Path, template: Record, task: str, seed: int, score: float, start: Path | None = None) -> Path:
    """A finished run with test predictions, of official length."""
    config = {**template.config, "task": {**template.config["task"], "labels": LABELS.get(task)}}
    config["init_from"] = None if start is None else str(start)
    cell = dataclasses.replace(template.cell, task=task, seed=seed, study="s", data="folder")
    folder = root / "outputs" / "s" / f"{task}-lora-x" / f"seed{seed}"
    headline = Headline("accuracy", score if task != "ax" else None, None)
    write_record(dataclasses.replace(template, cell=cell, config=config, headline=headline), folder)
    (folder / "predictions").mkdir()
    for file in submission.FILES:
        if file.task == task:
            said = LABELS.get(task, ["-0.300", "5.700", "2.500"])
            lines = [f"{i}\t{said[(i + seed) % len(said)]}\t\t0" for i in range(file.rows)]
            text = "\n".join(["index\tprediction\tlabel\tx", *lines]) + "\n"
            (folder / "predictions" / f"{file.split}.tsv").write_text(text)
    return folder


def test_a_submission_is_what_the_server_takes(template: Record, tmp_path: Path) -> None:
    for task in ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte", "wnli"):
        put(tmp_path, template, task, 0, 0.8)
        put(tmp_path, template, task, 1, 0.9)
    put(tmp_path, template, "ax", 0, 0, start=put(tmp_path, template, "mnli", 0, 0.7))
    put(tmp_path, template, "ax", 1, 0, start=put(tmp_path, template, "mnli", 1, 0.8))
    done = start("submission", "s", "--method", "lora", "--to", "glue.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "CoLA.tsv: cola-lora-x/seed1, dev 90.0" in done.stdout
    assert "AX.tsv: ax-lora-x/seed1" in done.stdout
    with zipfile.ZipFile(tmp_path / "glue.zip") as archive:
        assert sorted(archive.namelist()) == sorted(file.name for file in submission.FILES)
        texts = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert texts["CoLA.tsv"][:4] == ["index\tprediction", "0\t1", "1\t0", "2\t1"]
    assert texts["WNLI.tsv"][1:3] == ["0\t1", "1\t0"]
    assert texts["STS-B.tsv"][1:4] == ["0\t5.000", "1\t2.500", "2\t0.000"]
    assert texts["MNLI-mm.tsv"][1:4] == ["0\tneutral", "1\tcontradiction", "2\tentailment"]
    assert len(texts["QQP.tsv"]) == 390966
    checked = call("submission", "--check", "glue.zip", cwd=tmp_path)
    assert checked.returncode == 0
    first = (tmp_path / "glue.zip").read_bytes()
    call("submission", "s", "--method", "lora", "--to", "glue.zip", cwd=tmp_path)
    assert (tmp_path / "glue.zip").read_bytes() == first


def test_missing_tasks_are_filled_only_on_request(template: Record, tmp_path: Path) -> None:
    put(tmp_path, template, "rte", 0, 0.8)
    refused = call("submission", "s", "--method", "lora", cwd=tmp_path)
    assert refused.returncode == 2
    assert "for CoLA.tsv, SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, ...; --fill" in refused.stderr
    assert not (tmp_path / "submission.zip").exists()
    done = call("submission", "s", "--method", "lora", "--fill-majority", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MRPC.tsv: no run; the majority class 1" in done.stdout
    assert submission.check(tmp_path / "submission.zip") == []
    wrong = call("submission", "s", "--method", "lor", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "--method lor: no finished run in study s; it has lora\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {
        file.name: "\n".join([submission.HEAD, *(f"{i}\t{file.majority}" for i in range(file.rows))]).encode()
        for file in submission.FILES
    }


def zipped(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


BROKEN: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("RTE.tsv", lambda text: text.replace(b"index\tprediction", b"id\tlabel"), "RTE.tsv, line 1: must be index<TAB>"),
    ("RTE.tsv", lambda text: text.replace(b"\n7\t", b"\n8\t", 1), "RTE.tsv, line 9: must begin with the index 7"),
    ("RTE.tsv", lambda text: text.replace(b"\n7\tentailment", b"\n7\tmaybe"), "RTE.tsv, line 9: 'maybe' is none of"),
    ("RTE.tsv", lambda text: text.rsplit(b"\n", 1)[0], "RTE.tsv: 2,999 rows, the official test split has 3,000"),
    ("RTE.tsv", lambda text: text.replace(b"\n7\t", b"\n7 ", 1), "RTE.tsv, line 9"),
    ("STS-B.tsv", lambda text: text.replace(b"\n3\t2.701", b"\n3\t5.2"), "'5.2' is no number from 0 to 5"),
    ("STS-B.tsv", lambda text: text.replace(b"\n3\t2.701", b"\n3\tnan"), "'nan' is no number from 0 to 5"),
    ("CoLA.tsv", lambda text: b"\xff" + text, "CoLA.tsv: not UTF-8"),
    ("CoLA.tsv", lambda text: b"", "CoLA.tsv, line 1"),
]


@pytest.mark.parametrize(("name", "damage", "line"), BROKEN)
def test_a_broken_submission_is_named_with_its_line(
    good: dict[str, bytes], tmp_path: Path, name: str, damage: Callable[[bytes], bytes], line: str
) -> None:
    path = zipped(tmp_path / "bad.zip", {**good, name: damage(good[name])})
    problems = submission.check(path)
    assert len(problems) == 1
    assert line in problems[0]


def test_missing_and_foreign_files_are_named(good: dict[str, bytes], tmp_path: Path) -> None:
    assert submission.check(zipped(tmp_path / "good.zip", good)) == []
    short = zipped(tmp_path / "short.zip", {name: text for name, text in good.items() if name != "AX.tsv"})
    assert submission.check(short) == [f"{short}: has no AX.tsv"]
    nested = zipped(tmp_path / "nested.zip", {f"glue/{name}": text for name, text in good.items()})
    assert len(submission.check(nested)) == 22
    (tmp_path / "no.zip").write_bytes(b"PK no")
    done = call("submission", "--check", "no.zip", cwd=tmp_path)
    assert done.returncode == 3
    assert "no.zip: not a readable zip file" in done.stderr


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 145), value=st.text(max_size=8).filter(lambda text: text not in ("0", "1")))
def test_no_wrong_value_passes(good: dict[str, bytes], tmp_path: Path, row: int, value: str) -> None:
    lines = good["WNLI.tsv"].decode().split("\n")
    lines[row + 1] = f"{row}\t{value}"
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    problems = submission.check(zipped(tmp_path / "bad.zip", {"WNLI.tsv": text}))
    assert [line for line in problems if "has no" not in line], "of the file that is there"


@pytest.mark.parametrize("words", [["method=lora"], ["method=id3", "budget=500"], ["method=bitfit"], ["method=full"]])
def test_an_applied_run_is_the_run(run_tiny: Callable[..., Outcome], tmp_path: Path, words: list[str]) -> None:
    folder = run_tiny(*words, "protocol.precision=fp32", "protocol.lr=1e-2").path.parent
    done = call("apply", str(folder), "--output", "plain", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain" / "model.safetensors").is_file()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    ours, _, _ = reload(folder)
    ours.module.eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 2000, (4, 12), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        torch.testing.assert_close(plain(**batch).logits, ours.forward(batch), atol=1e-5, rtol=1e-5)
    assert plain.config.id2label == {0: "negative", 1: "positive"}


def test_an_adapter_run_cannot_be_applied(run_tiny: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = run_tiny("method=pfeiffer").path.parent
    done = start("apply", str(folder), "--output", "plain", cwd=tmp_path)
    assert done.returncode == 2
    assert "adapters cannot be merged" in done.stderr


def test_new_rows_get_the_runs_own_labels(run_tiny: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_tiny("method=lora", "protocol.precision=fp32")
    folder = outcome.path.parent
    from peftbench.data.sources import SAMPLE

    done = start("predict", str(folder), str(SAMPLE / "SST-2" / "dev.tsv"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = [line.split("\t") for line in (folder / "predictions" / "dev.tsv").read_text().splitlines()][1:]
    ours = [line.split("\t") for line in done.stdout.splitlines()][1:]
    assert [line[1] for line in ours[: len(theirs)]] == [line[1] for line in theirs]
    np.testing.assert_allclose(
        [float(line[2]) for line in ours[: len(theirs)]], [float(line[3]) for line in theirs], atol=1e-4
    )
    (tmp_path / "new.tsv").write_text("text\nfine\n")
    wrong = call("predict", str(folder), "new.tsv", cwd=tmp_path)
    assert wrong.returncode == 3
    assert "new.tsv, line 1: no column 'sentence', only text" in wrong.stderr


def test_sync_logs_the_study_and_says_when_wandb_cannot_be_reached(tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith("tracker=")]
    assert call("run", *words, "study=s", "method=bitfit", cwd=tmp_path).returncode == 0
    for environment, line in (
        ({"WANDB_MODE": "offline"}, "1 run waits to be sent, and W&B has no key here"),
        (
            {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "http://127.0.0.1:9: W&B cannot be reached",
        ),
    ):
        refused = call("sync", "s", cwd=tmp_path, **environment)
        assert refused.returncode == 2
        assert line in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    (offline,) = sync.offline_runs(records.read_study(tmp_path / "outputs", "s"))
    (offline / "run-x.wandb.synced").touch()  # as wandb marks what it has sent
    done = start("sync", "s", cwd=tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert "0 runs sent" in done.stdout
    (media,) = {path.parent for path in (tmp_path / "outputs" / "s" / "wandb").rglob("*.table.json")}
    assert json.loads(next(media.glob("*.table.json")).read_text())["columns"][0] == "method"
    assert list((tmp_path / "outputs" / "s" / "wandb").rglob("*.png"))


OWN = '''
from dataclasses import dataclass
from pathlib import Path

from peftbench.methods.bitfit import BitFit

Path(__file__).with_name("imported").touch()


@dataclass(frozen=True)
class Mine(BitFit):
    """BitFit by another name."""
'''


@pytest.mark.parametrize("within", [False, True], ids=["itself", "within another"])
def test_a_class_of_ones_own_is_imported_only_where_ones_own_configuration_names_it(
    run_tiny: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], within: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_method_{within}"
    (tmp_path / f"{name}.py").write_text(OWN)
    conf = tmp_path / "conf" / "method"
    conf.mkdir(parents=True)
    yaml = f"_target_: {name}.Mine\n"
    if within:
        strata = f"strata:\n  - {{last: null, methods: [{{_target_: {name}.Mine}}]}}\n"
        yaml = f"_target_: peftbench.methods.strata.Strata\n{strata}"
    (conf / "mine.yaml").write_text(yaml + "default_lr: 1.0e-3\n")
    mark = tmp_path / "imported"
    first = run_tiny(f"hydra.searchpath=[file://{conf.parent}]", "method=mine").path.parent
    assert mark.exists()
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\nfine\n")

    def predicted(*words: str) -> int:
        mark.unlink(missing_ok=True)
        sys.modules.pop(name, None)
        monkeypatch.setattr("sys.argv", ["peftbench", "predict", str(first), str(rows), *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert predicted() == 3
    assert f"{name}.Mine" in capsys.readouterr().err
    assert not mark.exists()
    assert predicted("--searchpath", str(conf.parent)) == 0
    assert mark.exists()
    with pytest.raises(DataError, match=f"{name}.Mine"):
        run_tiny("method=lora", f"init_from={first}")
    on = run_tiny(f"hydra.searchpath=[file://{conf.parent}]", "method=mine", f"init_from={first}", "protocol.lr=0.02")
    assert on.record.status == "done"


def test_a_delta_from_before_starts_were_stored_is_refused_where_the_run_had_one(run_tiny: Run) -> None:
    first = run_tiny("method=bitfit")
    second = run_tiny("method=lora", f"init_from={first.path.parent}")
    for outcome in (first, second):
        write_record(dataclasses.replace(outcome.record, versions={"peftbench": "0.2.1"}), outcome.path.parent)
    reload(first.path.parent)
    with pytest.raises(DataError, match=r"peftbench 0\.2\.1 .* init_from alone; run it again"):
        reload(second.path.parent)
