"""`table --show distances` and `--show merges`: lengths and cosines of changes, and merges over all their tasks."""

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


def test_a_merge_is_shown_as_a_share_of_its_tasks_own_runs(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = {("mrpc", 0): 0.8, ("mrpc", 1): 0.5, ("rte", 0): 0.4, ("rte", 1): 0.5, ("cola", 0): 0.0, ("cola", 1): 0.25}

    def row(name: str, scores: dict[str, tuple[float, ...]], keys: dict[str, Any], *parents: str, **facts: Any) -> None:
        for task, by_seed in scores.items():
            for seed, score in enumerate(by_seed):
                run = write_run(name, task, seed, score, lr=1e-3 * (1 + len(parents)))
                record = read_record(run / "result.json")
                of = {f"s/{one or task}/seed{seed}": "0" * 64 for one in parents or ("",)}
                hashes = dataclasses.replace(record.hashes, parents=of)
                write_record(dataclasses.replace(record, made=Made("merge", keys, facts), hashes=hashes), run)

    every = {task: (own[task, 0], own[task, 1]) for task in ("mrpc", "rte", "cola")}
    row("own run of lora", every, {"ceiling": True})
    row("joint training of lora", {"mrpc": (0.4, 0.4), "rte": (0.4, 0.4)}, {}, "joint")
    norms = {**MERGED, "scale": 0.5, "tried": {"0.5, keep 0.2": {"mrpc": 0.5}, "1, keep 0.2": {"mrpc": 0.5}}}
    row("ties of lora, kept head", {"mrpc": (0.4, 0.5), "rte": (0.3, 0.5)}, {"merge": "ties"}, "mrpc", "rte", **norms)
    row("ties of lora, kept head", dict.fromkeys(every, (0.2, 0.25)), {"merge": "ties"}, *every, **norms)
    refitted = {"head": "refitted"}
    row("own run of lora, refitted head", dict.fromkeys(every, (0.4, 0.5)), {"ceiling": True, **refitted})
    row(
        "ties of lora, refitted head", dict.fromkeys(every, (0.2, 0.25)), {"merge": "ties", **refitted}, *every, **norms
    )
    write_run("lora", "mrpc", 0, 0.5)
    code, out, err = command("table", "made", "--show", "merges", "--format", "csv")
    assert (code, err) == (0, "")
    rows = [*csv.DictReader(io.StringIO(out))]
    means = {(one["task"], one["method"], one["measure"]): float(one["mean"]) for one in rows}
    pair, three = "mrpc, rte", "cola, mrpc, rte"
    assert means[pair, "ties of lora, kept head", "of own runs"] == pytest.approx(((0.5 + 0.75) / 2 + 1) / 2)
    assert means[pair, "ties of lora, kept head", "score"] == pytest.approx((0.35 + 0.5) / 2)
    assert means[pair, "ties of lora, kept head", "longest : shortest"] == 3
    assert means[pair, "ties of lora, kept head", "scale"] == 0.5
    assert means[pair, "joint training of lora", "of own runs"] == pytest.approx(((0.5 + 1) / 2 + 0.8) / 2)
    assert means[three, "own run of lora", "of own runs"] == 1
    # CoLA's own run of seed 0 scored nothing, of which there is no share; and so none of seed 1 is in the mean
    assert means[three, "ties of lora, kept head", "of own runs"] == pytest.approx(((0.25 + 0.5) / 2 + 0.5) / 2)
    assert means[three, "ties of lora, refitted head", "of own runs"] == pytest.approx(
        ((0.2 + 0.2) / 0.4 / 2 + 0.5) / 2
    )
    assert means[three, "ties of lora, kept head", "tasks"] == 3
    assert {one["runs"] for one in rows} == {"2"}
    assert means[three, "ties of lora, kept head", "tried"] == 2
    shown = command("table", "made", "--show", "merges", "--format", "md").out
    assert "the largest or smallest one tried: ties of lora, kept head (smallest in 2 of 2 seeds), ties of" in shown
    assert "no share for cola of lora: not every seed has an own run with more than one answer" in shown


def test_a_study_without_merges_is_one_line(
    write_run: Write, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    give(write_run("port", "mrpc", 0, 0.5), "port", PORTED)
    code, out, err = command("table", "made", "--show", "merges")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "study made: holds no merge; peftbench merge makes one" in err
