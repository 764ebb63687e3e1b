"""Numbers before nouns: one of a thing is one thing, wherever a command says how many there are."""

from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from hypothesis import given
from hypothesis import strategies as st
from support import TINY

from peftbench.ground.files import RECORD_FILE
from peftbench.ground.quantity import plural, quantity

PLURALS = {"cell": "cells", "entry": "entries", "class": "classes", "batch": "batches", "box": "boxes", "day": "days"}


@pytest.mark.parametrize("noun", PLURALS)
def test_one_thing_and_several(noun: str) -> None:
    assert quantity(1, noun) == f"1 {noun}"
    assert quantity(0, f"more {noun}") == f"0 more {PLURALS[noun]}"
    assert quantity(1234, noun) == f"1,234 {PLURALS[noun]}"
    assert plural(noun) == PLURALS[noun]


@given(st.integers(0, 10**12))
def test_what_follows_one_is_given_and_what_follows_any_other_number(number: int) -> None:
    said, _, rest = quantity(number, "cell is running", "cells are running").partition(" ")
    assert int(said.replace(",", "")) == number
    assert (rest == "cell is running") == (number == 1)


def test_commands_count_one_and_several(finished_study: Path, command: Callable[..., Said], tmp_path: Path) -> None:
    outputs = str(finished_study.parent)
    (record,) = finished_study.rglob(RECORD_FILE)
    assert command("status", "s", "--outputs", outputs)[1] == "s: 1 cell: 1 done\n"
    assert command("stop", "s", "--outputs", outputs)[1].endswith("; 0 cells are running\n")
    again = record.parents[1] / "seed1" / RECORD_FILE
    again.parent.mkdir()
    again.write_bytes(record.read_bytes())
    assert command("status", "s", "--outputs", outputs)[1] == "s: 2 cells: 2 done\n"
    assert command("collect", str(finished_study), "--outputs", str(tmp_path / "x"))[1] == "2 cells copied\n"
    planned = command("plan", *TINY, f"outputs={tmp_path / 'y'}")[1].splitlines()[-1]
    assert planned.startswith("1 cell: 0 need no run, 1 to run")
    few = [command("count", *TINY, "method=lora", f"budget={entries}")[2] for entries in (1, 2)]
    assert [line.partition(";")[0] for line in few] == ["budget: 1 entry", "budget: 2 entries"]
    columns = command("run", "task=rte", "data=hub", "task.folder.text=[]")[2]
    assert "task.folder.text=[]: must have at least 1 entry\n" in columns
