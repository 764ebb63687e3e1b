"""Forged records: a line names each, everything good is still shown; memory and time stay bounded."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from forgery import ESC, MOST_MB, PLACES, Said, peak_mb, seen

from peftbench.ground.files import RECORD_FILE
from peftbench.record import record_status

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


def failed(raw: dict[str, Any]) -> bytes:
    """Signed anew as of a run that failed with this error."""
    return signed({**raw, "status": "failed", "error": f"at\x1b[2J\nRuntimeError: no{ESC} such\r\x9b31m layer\n"})


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
FAILED = {"terminal-error": failed}  # of these the text is cleaned
OTHER_VERSIONS = {"next-version": with_value("schema", value=99), "word-version": with_value("schema", value="2")}
WORST: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "lists": plain(b"[" + b"[]," * 4_000_000 + b"0]"),
    "numbers": plain(b'{"overrides": [' + b"1," * 6_000_000 + b"1]}"),
    "keys": plain(b"{" + b",".join(b'"%d":0' % key for key in range(390_000)) + b"}"),
    "words": with_value("overrides", value=[1] * 390_000),
    "metrics": with_value("metrics", "evaluations", value=[{}] * 190_000),
    "large": plain(b" " * (17 << 20)),
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


def cell(folder: Path, name: str) -> Path:
    folder = folder / "outputs" / "s" / name / "seed0"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def forgery(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one good record and every forged one."""
    where = tmp_path_factory.mktemp("forgery")
    record = (finished / RECORD_FILE).read_bytes()
    (cell(where, "good") / RECORD_FILE).write_bytes(record)
    for name, forge in {**RECORDS, **FAILED, **OTHER_VERSIONS}.items():
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
    forgery: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    monkeypatch.chdir(forgery)
    before = seen(forgery)
    code, out, err = command(*(word.format(to=tmp_path) for word in VIEWS[view]))
    assert code == 0, err
    assert seen(forgery) == before, "what only reads changes nothing"
    if view == "status":  # it looks at less of a record than a table does
        records = {
            name: forgery / "outputs" / "s" / f"bad-{name}" / "seed0" / RECORD_FILE for name in (*RECORDS, *FAILED)
        }
        failed = [*PLACES, *(name for name, path in records.items() if record_status(path) != "done")]
        count = len([*RECORDS, *FAILED, *PLACES, *OTHER_VERSIONS, *BESIDE]) + 1
        assert len(failed) >= 20
        assert out.startswith(f"s: {count} cells: {count - len(failed)} done, {len(failed)} failed")
        assert all(f"failed: s/bad-{name}/seed0: " in out for name in failed)
        assert "failed: s/bad-terminal-error/seed0: failed: RuntimeError: no\\x1b]52;" in out
        assert "peftbench run\n" not in out, "nothing says what was typed"
    else:
        names = (*RECORDS, *PLACES, *OTHER_VERSIONS)
        assert [name for name in names if f"left out: outputs/s/bad-{name}/seed0/" not in err] == []
    if view in ("table", "markdown"):
        assert "50.0" in out


def test_the_worst_records_take_neither_memory_nor_time(finished: Path, tmp_path: Path) -> None:
    record = (finished / RECORD_FILE).read_bytes()
    (cell(tmp_path, "good") / RECORD_FILE).write_bytes(record)
    for name, forge in WORST.items():
        (cell(tmp_path, f"bad-{name}") / RECORD_FILE).write_bytes(forge(json.loads(record)))
    peak, out, err = peak_mb([["table", "s", "--format", "md"], ["status", "s"]], tmp_path)
    assert peak < MOST_MB
    assert "| lora" in out
    assert f"s: {1 + len(WORST)} cells: " in out
    assert all(f"bad-{name}" in err for name in WORST)
