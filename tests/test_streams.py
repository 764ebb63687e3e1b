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
