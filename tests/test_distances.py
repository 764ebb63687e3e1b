"""`table --show distances`: what merges and ports say of lengths and cosines, row by row."""

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgery import Said

from peftbench.record import Made, read_record, write_record

Write = Callable[..., Path]
Command = Callable[..., Said]
MERGED = {"norms": {"rte": 1.0, "sst2": 3.0}, "cosines": {"rte, sst2": 0.25}, "sign_agreement": {"rte, sst2": 0.75}}
PORTED = {"distance": 0.5, "length": 10.0, "change": {"length": 2.0, "cosine": -0.5, "cosines": {"query": 0.1}}}
ANEW = {
    "change": {"length": 4.0, "cosine": 0.5}, "cosines": {"query": 0.2}, "weights_in_residuals": 9.0,
    "residual": {"length": 6.0, "in_changes": 1.5}, "residual_in_changes": {"query": 1.2},
}  # fmt: skip


def give(run: Path, by: str, facts: dict[str, Any]) -> None:
    """Make a run an artefact of a command, with such facts."""
    write_record(dataclasses.replace(read_record(run / "result.json"), made=Made(by, {}, facts)), run)


@pytest.fixture
def shown(write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Said]:
    monkeypatch.chdir(tmp_path)
    return lambda: command("table", "made", "--show", "distances", "--format", "csv")


def test_every_row_has_what_its_command_measured_and_others_have_none(
    write_run: Write, shown: Callable[[], Said]
) -> None:
    for seed, scale in ((0, 0.5), (1, 1.0)):
        give(write_run("ties", "mrpc", seed, 0.5), "merge", {**MERGED, "scale": scale})
    give(write_run("port", "mrpc", 0, 0.5), "port", PORTED)
    give(write_run("scaled", "mrpc", 0, 0.5), "port", {"distance": 0.5, "length": 10.0, "scale": 1.25})
    give(write_run("pcb", "mrpc", 0, 0.5), "merge", {**MERGED, "scale": 2.0, "keep": 0.1})
    give(write_run("anew", "mrpc", 0, 0.5), "port", ANEW)
    give(write_run("newer backbone", "mrpc", 0, 0.5), "port", {})
    write_run("lora", "mrpc", 0, 0.5)
    code, out, err = shown()
    assert (code, err) == (0, "")
    rows = [*csv.DictReader(io.StringIO(out))]
    means = {(row["method"], row["measure"]): float(row["mean"]) for row in rows}
    assert means == {
        ("ties", "scale"): 0.75, ("ties", "length"): 2, ("ties", "cosine"): 0.25, ("ties", "equal signs"): 0.75,
        ("scaled", "scale"): 1.25, ("scaled", "moved"): 0.05,
        ("pcb", "scale"): 2, ("pcb", "keep"): 0.1, ("pcb", "length"): 2, ("pcb", "cosine"): 0.25,
        ("pcb", "equal signs"): 0.75, ("port", "moved"): 0.05,
        ("port", "length"): 2, ("port", "cosine"): -0.5, ("port", "cosine, query"): 0.1,
        ("anew", "length"): 4, ("anew", "cosine"): 0.5, ("anew", "cosine, query"): 0.2,
        ("anew", "apart"): 1.5, ("anew", "apart, query"): 1.2,
    }  # fmt: skip
    assert {row["runs"] for row in rows if row["method"] == "ties"} == {"2"}


def test_facts_of_another_kind_are_left_out_and_a_study_without_any_is_one_line(
    write_run: Write, shown: Callable[[], Said]
) -> None:
    for place, facts in enumerate([{"norms": "long"}, {**MERGED, "scale": float("nan")}, {"change": [1]}]):
        give(write_run(f"odd{place}", "mrpc", 0, 0.5), ("merge", "merge", "port")[place], facts)
    code, out, err = shown()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "study made: holds no merge and no port" in err
