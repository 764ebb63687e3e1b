"""Test rows that are asked for after a run: predicted from its delta, without training."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from support import TINY

from peftbench.data.sources import SAMPLE
from peftbench.notebook import run
from peftbench.training.trainer import Trainer

WORDS = [*(word for word in TINY if word != "data=sample"), "study=s", "data=folder", "data.path=rows"]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of rows with a test split, beside which the test works."""
    shutil.copytree(SAMPLE, tmp_path / "rows")
    lines = (tmp_path / "rows" / "SST-2" / "dev.tsv").read_text().splitlines()[1:30]
    texts = [f"{number}\t{line.split(chr(9))[0]}" for number, line in enumerate(lines)]
    (tmp_path / "rows" / "SST-2" / "test.tsv").write_text("\n".join(["index\tsentence", *texts]) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "rows"


ROWS_OF_SST2 = 1821  # of the official test split


def no_step(*_: object) -> None:
    raise AssertionError("the run is finished: nothing is to be trained")


METHODS = {
    "lora": ["method=lora"],
    "bitfit in fp32": ["method=bitfit", "protocol.precision=fp32"],
    "id3": ["method=id3", "budget=2000"],
    "full": ["method=full"],
    "id3_adapter": ["method=id3_adapter", "budget=2000"],
}


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS.keys())
def test_predictions_asked_for_later_are_those_of_the_run(
    rows: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*WORDS, *words, "outputs=whole", "predict_test=true")
    first = run(*WORDS, *words)
    assert not (first.folder / "predictions" / "test.tsv").exists()
    log = (first.folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(Trainer, "step", no_step)
    later = run(*WORDS, *words, "predict_test=true")
    assert later.folder == first.folder
    kept = [(result.folder / "predictions" / "test.tsv").read_text() for result in (later, whole)]
    assert kept[0] == kept[1]
    assert (later.record.metrics, later.record.time) == (first.record.metrics, first.record.time)
    assert later.record.hashes.data == whole.record.hashes.data
    assert (later.folder / "metrics.jsonl").read_bytes() == log
    stat = (later.folder / "result.json").stat().st_mtime_ns
    run(*WORDS, *words, "predict_test=true")
    run(*WORDS, *words)
    assert (later.folder / "result.json").stat().st_mtime_ns == stat, "nothing is left to be done"


def test_a_run_that_starts_from_another_predicts_as_itself(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run(*WORDS, "method=lora")
    words = [*WORDS, "method=bitfit", f"init_from={start.folder}"]
    whole = run(*words, "outputs=whole", "predict_test=true")
    run(*words)
    monkeypatch.setattr(Trainer, "step", no_step)
    later = run(*words, "predict_test=true")
    kept = [(result.folder / "predictions" / "test.tsv").read_text() for result in (later, whole)]
    assert kept[0] == kept[1]


def test_a_sweep_predicts_for_its_finished_cells_and_what_comes_of_it_can_be_submitted(
    rows: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = "".join(f"{number}\tgood\n" for number in range(ROWS_OF_SST2))
    (rows / "SST-2" / "test.tsv").write_text(f"index\tsentence\n{texts}")
    words = [*WORDS, "method=head", "seed=0,1", "data.limit=null"]
    assert command("run", "-m", *words).code == 0
    assert "2 cells: 2 need no run" in command("plan", *words).out
    monkeypatch.setattr(Trainer, "step", no_step)
    asked = [*words, "predict_test=true"]
    planned = command("plan", *asked)
    assert "2 cells: 0 need no run" in planned.out, planned.out
    swept = command("run", "-m", *asked)
    assert (swept.code, swept.out.splitlines()[-1]) == (0, "2 cells: 2 done, 0 failed"), swept
    assert "2 cells: 2 need no run" in command("plan", *asked).out
    submitted = command("submission", "s", "--method", "head", "--to", "glue.zip", "--fill-majority")
    assert submitted.code == 0, submitted.err
    with zipfile.ZipFile(tmp_path / "glue.zip") as packed:
        assert len(packed.read("SST-2.tsv").splitlines()) == 1 + ROWS_OF_SST2
