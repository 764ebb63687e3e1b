"""Forged lists of cells, and of what was typed for one: a line each, and nothing outside the study is touched."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgery import ESC, MOST_MB, PLACES, Said, bomb, peak_mb, seen
from support import TINY

from peftbench.ground.errors import DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.study import cell_state, index


def listed(**changes: Any) -> bytes:
    """A list of one cell."""
    planned = {"folder": "s/other/seed0", "overrides": ["method=lora", "seed=0"], "reads": None, **changes}
    return json.dumps({"reads": [], "cells": {"0" * 32: planned}}).encode()


NO_LIST = "not a list of a study's cells"
OUTSIDE = "1 cell left out, not inside the study"
# What stands in study.json, by kind, and what the line about it says.
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
def victim(finished_study: Path) -> Path:
    """Somebody's damaged record and checkpoint outside the study."""
    folder = finished_study.parent / "victim"
    folder.mkdir()
    (folder / RECORD_FILE).write_text("{}")
    (folder / "checkpoint.safetensors").write_text("mine")
    return folder


@pytest.mark.parametrize("kind", LISTS)
def test_a_forged_list_of_cells_is_one_line_and_nothing_outside_is_touched(
    finished_study: Path,
    victim: Path,
    tmp_path: Path,
    command: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    content, line = LISTS[kind]
    (finished_study / index.FILE).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    before = seen(tmp_path)
    code, out, err = command("status", "s")
    assert (code, seen(tmp_path)) == (0, before)
    assert out == "s: 1 cell: 1 done\n"
    assert line in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_list_of_cells_at_all_is_one_line(
    finished_study: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    PLACES[kind](finished_study / index.FILE)
    monkeypatch.chdir(tmp_path)
    code, out, err = command("status", "s")
    assert (code, out, len(err.splitlines())) == (0, "s: 1 cell: 1 done\n", 1)


def test_a_list_of_another_version_is_left_as_it_is_and_a_damaged_one_set_aside_by_who_writes(
    finished_study: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["-m", *TINY, "study=s", "method=lora,head"]
    for content, line, code in (LISTS["next version"] + (3,), LISTS["cut"] + (0,)):
        (finished_study / index.FILE).write_bytes(content)
        said = command("plan", *words)
        assert said[0] == 0
        assert line in said[2]
        assert (finished_study / index.FILE).read_bytes() == content
        added = {"a": index.Planned("s/x/seed0", ["method=head"])}
        if code:
            with pytest.raises(DataError, match=line):
                index.add(finished_study, added)
            assert (finished_study / index.FILE).read_bytes() == content
        else:
            index.add(finished_study, added)
            assert (finished_study / f"{index.FILE}.bad1").read_bytes() == content
            assert index.read(finished_study) == added


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
    finished_study: Path, tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {**TYPED, "good": f'- "seed=1;{ESC.encode("unicode_escape").decode()}"\n'.encode()}.items():
        hydra = finished_study / name / "seed0" / ".hydra"
        hydra.mkdir(parents=True)
        (hydra / "overrides.yaml").write_bytes(content)
    for name, put in PLACES.items():
        hydra = finished_study / f"at-{name}" / "seed0" / ".hydra"
        hydra.mkdir(parents=True)
        put(hydra / "overrides.yaml")
    (finished_study / "good" / "seed0" / RECORD_FILE).write_text("{}")
    before = seen(tmp_path)
    code, out, err = command("status", "s")
    assert (code, seen(tmp_path)) == (0, before)
    assert out.startswith(f"s: {2 + len(TYPED) + len(PLACES)} cells: 1 done, 1 failed")
    assert "peftbench run 'seed=1;" in out
    assert sorted(Path(line.split(": ")[0]).parts[2] for line in err.splitlines()) == sorted(
        [*TYPED, *(f"at-{name}" for name in PLACES)]
    )


def test_the_worst_lists_and_zips_take_no_memory(finished_study: Path, tmp_path: Path) -> None:
    wrong = b",".join(b'"%d":0' % key for key in range(990_000))
    (finished_study / index.FILE).write_bytes(b'{"cells": {' + wrong + b"}}")
    (finished_study / cell_state.FILE).write_bytes(b'{"made_of": [], "records": {' + wrong + b"}}")
    (tmp_path / "bomb.zip").write_bytes(bomb(3 << 30))
    peak, out, err = peak_mb([["status", "s"], ["submission", "--check", "bomb.zip"]], tmp_path)
    assert peak < MOST_MB
    assert out.startswith("s: 1 cell: 1 done")
    assert NO_LIST in err
    assert "CoLA.tsv" in err


@pytest.mark.parametrize(
    "words", [["method._target_=bait.Method"], ["+method.inner={_target_: bait.Method}"], ["mine"]]
)
def test_a_class_that_a_list_names_is_not_imported_by_a_worker(
    words: list[str], tmp_path: Path, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bait", raising=False)
    (tmp_path / "bait.py").write_text("open('trace', 'w')\n")
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "mine.yaml").write_text("_target_: bait.Method\ndefault_lr: 0.1\n")
    if words == ["mine"]:
        words = [f"hydra.searchpath=[file://{tmp_path / 'own'}]", "method=mine"]
    study = tmp_path / "outputs" / "s"
    study.mkdir(parents=True)
    (study / index.FILE).write_bytes(listed(overrides=[*TINY, "study=s", *words]))
    code, out, err = command("work", "s")
    assert (code, out) == (3, "1 cell: 0 done, 0 failed, 1 left\n")
    assert "bait.Method is none of this package's classes; --searchpath DIR says where yours are named" in err
    assert not (tmp_path / "trace").exists()
    command("work", "s", "--searchpath", str(tmp_path / "own"))
    assert (tmp_path / "trace").exists(), "one's own configuration vouches for it"
