"""Where the output goes: a reader that has seen enough, a full device, a terminal that knows only ASCII."""

import os
import subprocess
from pathlib import Path

import pytest
from support import PYTHON, TINY, start


@pytest.mark.parametrize("words", [["list"], ["count", *TINY], ["plan", *TINY, "seed=0,1"], ["--help"], ["run", *TINY]])
def test_a_reader_that_is_gone_ends_the_command_silently(tmp_path: Path, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PYTHON, *words], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.rglob("result.json"))) == (words[0] == "run"), "nothing that was computed is lost"


def test_predictions_that_nobody_reads_to_the_end_are_no_error(finished: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\n" + "a good film\n" * 4000)  # more lines than a pipe holds
    predict = subprocess.Popen(
        [*PYTHON, "predict", str(finished), str(rows)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    head = subprocess.run(["head", "-1"], stdin=predict.stdout, capture_output=True, text=True, timeout=300)
    assert predict.stdout is not None
    predict.stdout.close()
    predict.stdout = None
    assert predict.communicate(timeout=300)[1] == ""
    assert predict.returncode == 0
    assert head.stdout.startswith("index\tprediction\t")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", [["list"], ["run", *TINY]])
def test_a_full_device_is_one_line(tmp_path: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PYTHON, *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "output: No space left on device\n"


def test_a_terminal_that_knows_only_ascii_gets_plain_characters(tmp_path: Path) -> None:
    done = start("run", *TINY, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "sst2 - lora - bert_tiny" in done.stdout
    assert " +/- " in done.stdout
    counted = start("count", *TINY, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert counted.returncode == 0
    assert counted.stdout.isascii()
    assert "?" not in counted.stdout
