"""What a stranger made: forged records, lists of cells and zips are one line each, and everything good is still shown.

Nothing that they name is imported, read outside the study or written; memory and time stay bounded.
"""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from support import TINY

from peftbench.cli import main
from peftbench.config import compose
from peftbench.ground.errors import DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.record import record_status
from peftbench.runner.run import run
from peftbench.study import index, standing

ESC = "\x1b]52;c;ZXZpbA==\x07"  # puts a word on the clipboard of many terminals
MOST_MB = 1000  # that a command may take, whatever it is given
Said = tuple[int, str, str]


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder with what changes when it does; links are not followed."""
    return {
        str(path.relative_to(folder)): (found.st_mode, found.st_size, found.st_mtime_ns)
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] != "cache" and not path.is_dir()
        for found in [path.lstat()]
    }


def command(words: list[str], capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Said:
    """The command in this process: exit code, output, errors."""
    patch.setattr(sys, "argv", ["peftbench", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capture.readouterr()
    assert "Traceback" not in err
    assert not set("\x1b\x07\x9b") & set(out + err), "a terminal would obey"
    assert all(len(line) <= 200 for line in err.splitlines()), err
    return int(ended.value.code or 0), out, err


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    return lambda *words: command(list(words), capfd, monkeypatch)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run."""
    words = [*TINY, "method=lora", "study=s", f"outputs={tmp_path_factory.mktemp('good')}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture
def study(good: Path, tmp_path: Path) -> Path:
    """A study with one good record."""
    folder = tmp_path / "outputs" / "s" / good.parent.name / "seed0"
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_bytes((good / RECORD_FILE).read_bytes())
    return folder.parents[1]


def peak_mb(lines: list[list[str]], where: Path) -> tuple[float, str, str]:
    """What commands take at most, one after the other in a process of their own, in MiB; what they said."""
    code = (
        "import sys\n"
        "from peftbench.cli import main\n"
        f"for words in {lines!r}:\n"
        "    sys.argv = ['peftbench', *words]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "peak, = (line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('\\npeak', peak)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    out, _, peak = done.stdout.rpartition("peak")
    return int(peak) / 1024, out, done.stderr


# Records: what is done to a good one, by kind. Text in the place of a mapping is the file itself.


def signed(raw: dict[str, Any]) -> bytes:
    raw = {key: value for key, value in raw.items() if key != "sha256"}
    raw["sha256"] = sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    return json.dumps(raw).encode()


def with_value(*steps: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    """Signed anew with another value at a place."""

    def forge(raw: dict[str, Any]) -> bytes:
        inner = raw
        for step in steps[:-1]:
            inner = inner[step]
        inner[steps[-1]] = value
        return signed(raw)

    return forge


def without(*steps: str) -> Callable[[dict[str, Any]], bytes]:
    """Signed anew with nothing at a place."""

    def forge(raw: dict[str, Any]) -> bytes:
        inner = raw
        for step in steps[:-1]:
            inner = inner[step]
        del inner[steps[-1]]
        return signed(raw)

    return forge


def plain(content: bytes) -> Callable[[dict[str, Any]], bytes]:
    return lambda raw: content


DEEP = json.loads("[" * 900 + "]" * 900)
RECORDS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": plain(b""),
    "cut": lambda raw: signed(raw)[:700],
    "unsigned": lambda raw: signed(raw).replace(b"0.5", b"0.9"),
    "list": plain(b"[]"),
    "null": plain(b"null"),
    "word": plain(b'"result"'),
    "not-json": plain(b"\x80\x04\x95pickle"),
    "deep-file": plain(b"[" * 200_000),
    "deep-keys": plain(b'{"a":' * 200_000),
    "deep-value": with_value("config", "method", value=DEEP),
    "infinite": with_value("headline", "value", value=float("inf")),
    "nan": with_value("time", "total_s", value=float("nan")),
    "huge-number": with_value("cell", "seed", value=10**30),
    "long-number": lambda raw: signed(raw).replace(b'"seed": 0', b'"seed": ' + b"9" * 6000),
    "above-one": with_value("headline", "value", value=80.0),
    "negative": with_value("counts", "backbone", value=-1),
    "half-entry": with_value("counts", "backbone", value=1.5),
    "word-for-number": with_value("time", "train_s", value="fast"),
    "true-for-number": with_value("memory", "peak_mb", value=True),
    "no-time": with_value("time", value={}),
    "no-memory": with_value("memory", value={}),
    "no-protocol": without("config", "protocol"),
    "no-rate": without("config", "protocol", "lr"),
    "zero-rate": with_value("config", "protocol", "lr", value=0),
    "no-cell": without("cell"),
    "no-config": with_value("config", value=[]),
    "labels": with_value("config", "task", "labels", value=3),
    "budget": with_value("budget", value={"name": "none"}),
    "growth": with_value("budget", "growth", value=[["a", "b"]]),
    "hashes": with_value("hashes", value=["a"]),
    "status": with_value("status", value="excellent"),
    "surrogate": with_value("cell", "method", value="\ud800"),
    "terminal": with_value("cell", "method", value=f"lora{ESC}"),
    "terminal-key": with_value("config", "method", f"rank{ESC}", value=1),
    "terminal-word": with_value("overrides", value=[f"method=lora{ESC}"]),
    "long-name": with_value("cell", "model", value="m" * 100_000),
    "empty-name": with_value("cell", "task", value=""),
}
OTHER_VERSIONS = {"next-version": with_value("schema", value=99), "word-version": with_value("schema", value="2")}
WORST: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "lists": plain(b"[" + b"[]," * 4_000_000 + b"0]"),
    "numbers": plain(b'{"overrides": [' + b"1," * 6_000_000 + b"1]}"),
    "keys": plain(b"{" + b",".join(b'"%d":0' % key for key in range(390_000)) + b"}"),
    "words": with_value("overrides", value=[1] * 390_000),
    "metrics": with_value("metrics", "evaluations", value=[{}] * 190_000),
    "large": plain(b" " * (17 << 20)),
}
PLACES: dict[str, Callable[[Path], None]] = {  # in the place of a record, no file, or one of another kind
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "device": lambda path: path.symlink_to("/dev/tty"),
    "zeros": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10 << 30),
}
BESIDE: dict[str, Callable[[Path], None]] = {  # in the place of a good record's predictions
    "pipe": lambda path: os.mkfifo(path),
    "zeros": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10 << 30),
    "latin": lambda path: path.write_bytes(b"prediction\tlabel\n\xff\t\xff\n"),
}
VIEWS = {
    "table": ["table", "s"],
    "markdown": ["table", "s", "--format", "md"],
    "report": ["report", "s", "--to", "{to}/report.html"],
    "plot": ["plot", "s", "--to", "{to}"],
    "status": ["status", "s"],
}


def cell(where: Path, name: str) -> Path:
    folder = where / "outputs" / "s" / name / "seed0"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def forgery(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one good record and every forged one."""
    where = tmp_path_factory.mktemp("forgery")
    record = (good / RECORD_FILE).read_bytes()
    (cell(where, "good") / RECORD_FILE).write_bytes(record)
    for name, forge in {**RECORDS, **OTHER_VERSIONS}.items():
        (cell(where, f"bad-{name}") / RECORD_FILE).write_bytes(forge(json.loads(record)))
    for name, put in PLACES.items():
        put(cell(where, f"bad-{name}") / RECORD_FILE)
    for name, put in BESIDE.items():
        beside = cell(where, f"beside-{name}")
        (beside / "predictions").mkdir()
        (beside / RECORD_FILE).write_bytes(record)
        put(beside / "predictions" / "dev.tsv")
    return where


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_study_with_forged_records_names_each_and_shows_the_good_one(
    forgery: Path, tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    monkeypatch.chdir(forgery)
    before = seen(forgery)
    code, out, err = call(*(word.format(to=tmp_path) for word in VIEWS[view]))
    assert code == 0, err
    assert seen(forgery) == before, "what only reads changes nothing"
    if view == "status":  # it looks at less of a record than a table does
        records = {name: forgery / "outputs" / "s" / f"bad-{name}" / "seed0" / RECORD_FILE for name in RECORDS}
        failed = [*PLACES, *(name for name, path in records.items() if record_status(path) != "done")]
        count = len([*RECORDS, *PLACES, *OTHER_VERSIONS, *BESIDE]) + 1
        assert len(failed) >= 20
        assert out.startswith(f"s: {count} cells: {count - len(failed)} done, {len(failed)} failed")
        assert all(f"failed: s/bad-{name}/seed0: " in out for name in failed)
        assert "peftbench run\n" not in out, "nothing says what was typed"
    else:
        names = (*RECORDS, *PLACES, *OTHER_VERSIONS)
        assert [name for name in names if f"left out: outputs/s/bad-{name}/seed0/" not in err] == []
    if view in ("table", "markdown"):
        assert "50.0" in out


def test_the_worst_records_take_neither_memory_nor_time(good: Path, tmp_path: Path) -> None:
    record = (good / RECORD_FILE).read_bytes()
    (cell(tmp_path, "good") / RECORD_FILE).write_bytes(record)
    for name, forge in WORST.items():
        (cell(tmp_path, f"bad-{name}") / RECORD_FILE).write_bytes(forge(json.loads(record)))
    peak, out, err = peak_mb([["table", "s", "--format", "md"], ["status", "s"]], tmp_path)
    assert peak < MOST_MB
    assert "| lora" in out
    assert f"s: {1 + len(WORST)} cells: " in out
    assert all(f"bad-{name}" in err for name in WORST)


# Lists of cells: what stands in study.json, by kind, and what the line about it says.


def listed(**changes: Any) -> bytes:
    """A list of one cell."""
    planned = {"folder": "s/other/seed0", "overrides": ["method=lora", "seed=0"], "reads": None, **changes}
    return json.dumps({"reads": [], "cells": {"0" * 32: planned}}).encode()


NO_LIST = "not a list of a study's cells"
OUTSIDE = "1 cells left out, not inside the study"
LISTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", NO_LIST),
    "cut": (listed()[:40], NO_LIST),
    "null": (b"null", NO_LIST),
    "list": (b"[]", NO_LIST),
    "no cells": (b"{}", NO_LIST),
    "cells are a list": (b'{"cells": []}', NO_LIST),
    "a cell is a word": (b'{"cells": {"a": "s/x/seed0"}}', NO_LIST),
    "no folder": (b'{"cells": {"a": {"overrides": []}}}', NO_LIST),
    "folder is a number": (listed(folder=3), NO_LIST),
    "words are numbers": (listed(overrides=[1, 2]), NO_LIST),
    "words are a text": (listed(overrides="method=lora"), NO_LIST),
    "place is a word": (listed(reads="first"), NO_LIST),
    "deep": (b"[" * 100_000, NO_LIST),
    "not text": (b"\xff\x80\x04", NO_LIST),
    "not finite": (b'{"cells": {}, "x": Infinity}', NO_LIST),
    "half a character": (listed(folder="s/\ud800/seed0"), NO_LIST),
    "many values": (b'{"cells": [' + b"{}," * 2_000_000 + b"0]}", NO_LIST),
    "next version": (b'{"schema": 2, "cells": "elsewhere"}', "of schema 2, this version reads schema 1"),
    "absolute": (listed(folder="/etc/x/y"), OUTSIDE),
    "above": (listed(folder="../home/project"), OUTSIDE),
    "above, hidden": (listed(folder="s/x/../../../home"), OUTSIDE),
    "above, three deep": (listed(folder="s/../victim"), OUTSIDE),
    "another study": (listed(folder="victim/x/seed0"), OUTSIDE),
    "the study itself": (listed(folder="s"), OUTSIDE),
    "terminal": (listed(folder=f"s/x{ESC}/seed0"), OUTSIDE),
}


@pytest.fixture
def victim(study: Path) -> Path:
    """Somebody's damaged record and checkpoint outside the study."""
    folder = study.parent / "victim"
    folder.mkdir()
    (folder / RECORD_FILE).write_text("{}")
    (folder / "checkpoint.safetensors").write_text("mine")
    return folder


@pytest.mark.parametrize("kind", LISTS)
def test_a_forged_list_of_cells_is_one_line_and_nothing_outside_is_touched(
    study: Path, victim: Path, tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    content, line = LISTS[kind]
    (study / index.FILE).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = seen(tmp_path)
    code, out, err = call("status", "s")
    assert (code, seen(tmp_path)) == (0, before)
    assert out == "s: 1 cells: 1 done\n"
    assert line in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_list_of_cells_at_all_is_one_line(
    study: Path, tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    PLACES[kind](study / index.FILE)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("status", "s")
    assert (code, out, len(err.splitlines())) == (0, "s: 1 cells: 1 done\n", 1)


def test_a_list_of_another_version_is_left_as_it_is_and_a_damaged_one_set_aside_by_who_writes(
    study: Path, tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *TINY, "study=s", "method=lora,head"]
    for content, line, code in (LISTS["next version"] + (3,), LISTS["cut"] + (0,)):
        (study / index.FILE).write_bytes(content)
        said = call("plan", *words)
        assert said[0] == 0
        assert line in said[2]
        assert (study / index.FILE).read_bytes() == content
        added = {"a": index.Planned("s/x/seed0", ["method=head"])}
        if code:
            with pytest.raises(DataError, match=line):
                index.add(study, added)
            assert (study / index.FILE).read_bytes() == content
        else:
            index.add(study, added)
            assert (study / f"{index.FILE}.bad1").read_bytes() == content
            assert index.read(study) == added


TYPED: dict[str, bytes] = {  # .hydra/overrides.yaml
    "empty": b"",
    "cut": b"- method=lora\n- 'task=",
    "word": b"method=lora",
    "mapping": b"method: lora",
    "numbers within": b"- [1, 2]\n",
    "alias": b"- &a b\n- *a\n",
    "bomb": b"a: &a {x: 1}\n" + b"".join(b"%c: &%c {<<: [*%c, *%c]}\n" % (i + 1, i + 1, i, i) for i in range(97, 122)),
    "object": b"- !!python/object/apply:os.system ['touch forged']\n",
    "not text": b"\xff\xfe\x00\x01",
    "deep": b"[" * 60_000,
    "large": b"- a\n" * 50_000,
}


def test_what_was_typed_for_a_cell_is_a_list_or_a_line(
    study: Path, tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {**TYPED, "good": f'- "seed=1;{ESC.encode("unicode_escape").decode()}"\n'.encode()}.items():
        hydra = study / name / "seed0" / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "overrides.yaml").write_bytes(content)
    for name, put in PLACES.items():
        hydra = study / f"at-{name}" / "seed0" / ".hydra"
        hydra.mkdir(parents=True)
        put(hydra / "overrides.yaml")
    (study / "good" / "seed0" / RECORD_FILE).write_text("{}")
    before = seen(tmp_path)
    code, out, err = call("status", "s")
    assert (code, seen(tmp_path)) == (0, before)
    assert out.startswith(f"s: {2 + len(TYPED) + len(PLACES)} cells: 1 done, 1 failed")
    assert "peftbench run 'seed=1;" in out
    assert sorted(Path(line.split(": ")[0]).parts[2] for line in err.splitlines()) == sorted(
        [*TYPED, *(f"at-{name}" for name in PLACES)]
    )


# Zips: what is done to a good submission.


def zipped(contents: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return out.getvalue()


def patched(content: bytes, at: int, value: int) -> bytes:
    """With two bytes changed in the header of the first member, and in the list at the end."""
    found = bytearray(content)
    struct.pack_into("<H", found, content.index(b"PK\x03\x04") + at, value)
    struct.pack_into("<H", found, content.index(b"PK\x01\x02") + at + 2, value)
    return bytes(found)


def bomb(size: int) -> bytes:
    """A member of so many zeros, made without them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # the same again, as often as one likes
    packed = packed * (size >> 24) + packer.flush()
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(packed), 100, 8, 0)  # it says: 100 bytes
    entry = struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0)
    first = b"PK\x03\x04" + head + b"CoLA.tsv" + packed
    last = b"PK\x01\x02" + entry + b"CoLA.tsv"
    return first + last + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(last), len(first), 0)


COLA = b"index\tprediction\n" + b"0\t0\n" * 1062
SMALL = {"CoLA.tsv": b"index\tprediction\n" * 20}
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "not a readable zip file"),
    "word": (lambda: b"hello", "not a readable zip file"),
    "cut": (lambda: zipped(SMALL)[:-10], "not a readable zip file"),
    "encrypted": (lambda: patched(zipped(SMALL), 6, 1), "CoLA.tsv: is encrypted"),
    "unknown compression": (lambda: patched(zipped(SMALL), 8, 77), "CoLA.tsv: is compressed by another method"),
    "lzma": (lambda: zipped(SMALL, zipfile.ZIP_LZMA), "CoLA.tsv: is compressed by another method"),
    "corrupt": (lambda: zipped(SMALL).replace(b"CoLA.tsv\xcb", b"CoLA.tsv\xff", 1), "CoLA.tsv: is damaged"),
    "other name within": (lambda: zipped(SMALL).replace(b"CoLA.tsv", b"RTEx.tsv", 1), "CoLA.tsv: is damaged"),
    "bomb": (lambda: bomb(3 << 30), "CoLA.tsv"),
    "zeros": (lambda: zipped({"CoLA.tsv": bytes(64 << 20)}), "CoLA.tsv: larger than"),
    "many files": (lambda: zipped({f"{i}.tsv": b"" for i in range(300)}), "300 files"),
    "above": (lambda: zipped({"../../forged.tsv": b"x"}), "../../forged.tsv is none of the official files"),
    "absolute": (lambda: zipped({"/tmp/forged.tsv": b"x"}), "/tmp/forged.tsv is none of the official files"),
    "terminal": (lambda: zipped({f"a{ESC}.tsv": b"x"}), "is none of the official files"),
    "terminal within": (lambda: zipped({"CoLA.tsv": COLA + f"0\t{ESC}".encode()}), "CoLA.tsv"),
    "long line": (lambda: zipped({"CoLA.tsv": COLA + b"0\t" + b"9" * 7_000_000}), "CoLA.tsv"),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_a_forged_zip_is_refused_in_lines(
    tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, line = ZIPS[kind]
    monkeypatch.chdir(tmp_path)
    Path("glue.zip").write_bytes(make())
    before = seen(tmp_path)
    code, out, err = call("submission", "--check", "glue.zip")
    assert (code, out, seen(tmp_path)) == (3, "", before)
    assert line in err


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_zip_at_all_is_refused_in_a_line(
    tmp_path: Path, call: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    PLACES[kind](tmp_path / "glue.zip")
    code, out, err = call("submission", "--check", "glue.zip")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("glue.zip: ")


def test_the_worst_lists_and_zips_take_no_memory(study: Path, tmp_path: Path) -> None:
    wrong = b",".join(b'"%d":0' % key for key in range(990_000))
    (study / index.FILE).write_bytes(b'{"cells": {' + wrong + b"}}")
    (study / standing.FILE).write_bytes(b'{"made_of": [], "records": {' + wrong + b"}}")
    (tmp_path / "bomb.zip").write_bytes(bomb(3 << 30))
    peak, out, err = peak_mb([["status", "s"], ["submission", "--check", "bomb.zip"]], tmp_path)
    assert peak < MOST_MB
    assert out.startswith("s: 1 cells: 1 done")
    assert NO_LIST in err
    assert "CoLA.tsv" in err
