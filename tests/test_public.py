"""The public functions, used as a notebook would use them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TINY, call

import peftbench

CELL = [*TINY, "method=bitfit", "study=pilot"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a notebook with one finished run was started."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PEFTBENCH_CACHE", str(folder / "cache"))
        peftbench.run(*CELL)
    return folder


def test_importing_it_imports_nothing_heavy_and_what_it_offers_is_what_it_lists(tmp_path: Path) -> None:
    code = (
        "import sys, peftbench\n"
        "heavy = {'torch', 'transformers', 'hydra', 'pandas', 'rich', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from peftbench import *\n"
        "assert set(peftbench.__all__) <= set(globals())\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(dir(peftbench)) >= {'run', 'count', 'load_study', 'apply', '__version__'}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'ran'"):
        _ = peftbench.ran
    for name in peftbench.__all__:
        assert f"    {name}" in str(peftbench.__doc__) or f", {name} " in str(peftbench.__doc__), name


def test_a_run_gives_its_record_says_nothing_and_is_found_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "outputs").stat().st_mtime_ns
    again = peftbench.run(*CELL)
    assert (folder / "outputs").stat().st_mtime_ns == before
    assert again.record.status == "done"
    assert again.record.cell.method == "bitfit"
    assert again.record.headline.value is not None
    assert (again.folder / "delta.safetensors").is_file()
    assert capsys.readouterr().out == ""
    printed = call("run", *CELL, cwd=folder)
    assert "already done" in printed.stdout, "the command finds what a notebook ran"
    assert str(again.folder) in printed.stdout


def test_wrong_words_and_another_runner_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(peftbench.ConfigError, match="did you mean bitfit"):
        peftbench.run("method=bitfitt")
    with pytest.raises(peftbench.ConfigError, match=r"protocol\.lr"):
        peftbench.run(*TINY, "protocol.lr=-1")
    with pytest.raises(peftbench.DataError, match="nowhere"):
        peftbench.run(*TINY, "data=folder", "data.path=nowhere")
    from peftbench.config.compose import cell_from
    from peftbench.study.cell import folder_of
    from peftbench.study.lock import Lock

    with Lock(folder_of(cell_from(CELL))), pytest.raises(Exception, match="is running it"):
        peftbench.run(*CELL)


def test_what_ends_a_training_is_raised_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="loss is nan"):
        peftbench.run(*TINY, "method=full", "protocol.lr=1e9", "study=pilot")
    (record,) = peftbench.load_study("pilot").records
    assert record.status == "diverged"


def test_a_count_is_the_command_s(tmp_path: Path) -> None:
    counts = peftbench.count(*TINY, "method=lora", "method.rank=4")
    assert counts.backbone == 2 * 4 * 128 * 4  # layers, query and value with two factors each, width, rank
    assert counts.total == counts.backbone + counts.head
    with pytest.raises(peftbench.ConfigError, match=r"method\.rank"):
        peftbench.count("method=lora", "method.rank=0")


def test_a_study_is_loaded_by_name_or_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_folder = peftbench.load_study(folder / "outputs" / "pilot")
    monkeypatch.chdir(folder)
    assert peftbench.load_study("pilot").records == by_folder.records
    (row,) = by_folder.frame().to_dict("records")
    assert (row["task"], row["method"]) == ("sst2", "bitfit")
    assert row["score"] == pytest.approx(100 * by_folder.records[0].headline.value)
    assert (by_folder.folders[0] / "result.json").is_file()
    with pytest.raises(peftbench.ConfigError, match="did you mean pilot"):
        peftbench.load_study("pilott")


def test_a_run_is_applied(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    study = peftbench.load_study(folder / "outputs" / "pilot")
    plain = peftbench.apply(study.folders[0], tmp_path / "plain")
    model = AutoModelForSequenceClassification.from_pretrained(plain)
    assert set(model.config.label2id) == {"negative", "positive"}
    with pytest.raises(peftbench.DataError):
        peftbench.apply(tmp_path / "nothing", tmp_path / "plain")
