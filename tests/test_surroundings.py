"""What the command stands on and may not have: a home, a cache, the Hub, its own yaml files."""

import errno
import os
import pwd
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from forgery import seen
from support import TINY, start

from peftbench.cli import main
from peftbench.data import hub


def answer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The command's exit code, in this process."""
    monkeypatch.setattr(sys, "argv", ["peftbench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's user: a number without a name, no HOME, nothing set."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("PEFTBENCH_CACHE")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


@pytest.mark.usefixtures("homeless")
def test_who_has_no_home_runs_the_packages_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "data.limit=16", "protocol.max_steps=1", "tracker=none", "progress=false"]
    assert answer(words, monkeypatch) == 0
    assert "done" in capsys.readouterr().out
    cache = tmp_path / "temporary" / f"peftbench-{os.geteuid()}"
    assert list((cache / "tokens").iterdir())
    assert cache.stat().st_mode & 0o077 == 0, "nobody else writes or reads it"
    cache.chmod(0o777)
    assert answer(["run", *TINY], monkeypatch) == 2
    line = f"cache=~/.cache/peftbench: no home, and {cache} cannot be used (others may write it)\n"
    assert capsys.readouterr().err == line
    assert answer(["run", *TINY, "outputs='~/runs'"], monkeypatch) == 2
    assert capsys.readouterr().err == "~/runs: this user has no home folder; give the path without ~\n"
    assert not (tmp_path / "~").exists()


def test_a_cache_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert answer(["run", *TINY, "cache=file/in"], monkeypatch) == 2
    line = "cache=file/in: cannot be written (Not a directory); cache=... names another folder\n"
    assert capsys.readouterr().err == line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


QUIET = ["tracker=none", "progress=false"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["run", *QUIET, "model=bert_base_cased"],
            ["model=bert_base_cased", "google-bert/bert-base-cased: it is not reachable"],
        ),
        (["run", *TINY, "data=hub"], ["data=hub", "nyu-mll/glue", "data=sample need no network"]),
        (["convert", "prajjwal1/bert-tiny"], ["prajjwal1/bert-tiny", "the Hub gives no such model"]),
    ],
)
def test_a_hub_that_does_not_answer_is_asked_once(
    words: list[str],
    names: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import datasets.config
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0)
        for settings in (constants, datasets.config):
            monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "SECONDS", 0.1)
        hub.go_offline_unless_reachable.cache_clear()
        monkeypatch.chdir(tmp_path)
        assert answer(words, monkeypatch) == 3
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2
    assert all(name in "\n".join(lines) for name in names), lines
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("words", [["run"], ["list"], ["count"]])
def test_an_installation_without_its_yaml_files_says_so(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peftbench.config.words.__file__", str(tmp_path / "peftbench" / "config" / "words.py"))
    assert answer(words, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no yaml files: neither {tmp_path / 'peftbench' / 'conf'} nor ")


def test_nothing_that_lies_in_the_folder_is_imported(tmp_path: Path) -> None:
    for name in ("yaml", "torch", "hydra", "omegaconf", "numpy", "signal", "argparse", "json"):
        (tmp_path / f"{name}.py").write_text(f"open('trace', 'a').write({name!r} + ' ')\n")
    listed = start("list", "task", cwd=tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "sst2" in listed.stdout
    assert not (tmp_path / "trace").exists(), (tmp_path / "trace").read_text()
    assert not (tmp_path / "__pycache__").exists()


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of outputs with a finished study, on a file system that was mounted read-only; root may write any."""
    monkeypatch.chdir(tmp_path)
    assert answer(["run", *TINY], monkeypatch) == 0
    make_draft, make_folder = tempfile.mkstemp, os.mkdir

    def refuse(folder: Any) -> None:
        if "outputs" in Path(folder or "").parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def draft(*rest: Any, dir: Any = None, **more: Any) -> tuple[int, str]:
        refuse(dir)
        return make_draft(*rest, dir=dir, **more)

    def folder(path: Any, *rest: Any, **more: Any) -> None:
        refuse(path)
        make_folder(path, *rest, **more)

    monkeypatch.setattr(tempfile, "mkstemp", draft)
    monkeypatch.setattr(os, "mkdir", folder)
    return tmp_path / "outputs"


@pytest.mark.parametrize("words", [["run"], ["run", "-m"], ["plan", "--save"]], ids=" ".join)
def test_outputs_that_are_read_only_from_the_start_are_one_line(
    words: list[str], read_only: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = seen(read_only)
    capsys.readouterr()
    assert answer([*words, *TINY, "method=bitfit"], monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"outputs=outputs: outputs/default\S* cannot be written \(Read-only file system\)", line)
    assert answer(["run", *TINY], monkeypatch) == 0, "what is finished is read"
    assert seen(read_only).items() >= before.items(), "nothing is lost"
