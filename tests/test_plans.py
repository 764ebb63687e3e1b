"""Registered plans: written before anything runs, answered exactly, and nothing else is called confirmed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from studies import made_study

from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import read_record, write_record
from peftbench.report import plans

BASE = ["study=p", "model=bert_tiny", "model.weights=random", "task=sst2", "data=sample"]


def run(write: Callable[..., Path], method: str, seed: int, score: float, started: str) -> str:
    """A finished run of the study "made" that started then; gives its cell."""
    folder = write(method, "mrpc", seed, score)
    record = read_record(folder / "result.json")
    write_record(dataclasses.replace(record, time=dataclasses.replace(record.time, started=started)), folder)
    return "/".join(folder.parts[-3:])


def test_a_plan_is_written_before_anything_runs_and_never_changed(
    command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "-m", *BASE, "method=lora,bitfit", "seed=0,1", "--register", "plan.yaml"]
    assert command(*words)[0] == 2, "no claim"
    assert command(*words, "--claim", "lora beats bitfit")[2].startswith("--claim lora beats bitfit: ")
    code, out, err = command(*words, "--claim", "lora > bitfit", "--margin", "2")
    assert (code, err) == (0, "")
    assert "registered; peftbench compare p --plan plan.yaml" in out
    plan = plans.read(tmp_path / "plan.yaml")
    assert (plan.study, plan.claims, plan.margin, len(plan.cells)) == ("p", ["lora > bitfit"], 2.0, 4)
    assert command(*words, "--claim", "lora > bitfit")[0] == 2, "it is there already"
    text = (tmp_path / "plan.yaml").read_text()
    for other in (text.replace("lora >", "full >"), text.replace("margin: 2.0", "margin: x"), "a: [", "", "- 1"):
        (tmp_path / "plan.yaml").write_text(other)
        with pytest.raises(DataError):
            plans.read(tmp_path / "plan.yaml")


def test_a_plan_is_answered_from_its_own_cells_alone(write_run: Callable[..., Path], tmp_path: Path) -> None:
    later, path = "2100-01-01T00:00:00+00:00", tmp_path / "plan.yaml"
    noise = [0.0, 0.003, 0.001, 0.002, 0.004, 0.001]
    cells = [run(write_run, "lora", seed, 0.9 + noise[seed], later) for seed in range(5)]
    cells += [run(write_run, "bitfit", seed, 0.8 + noise[seed + 1], later) for seed in range(5)]
    early = run(write_run, "bitfit", 7, 0.99, "2000-01-01T00:00:00+00:00")
    added = [run(write_run, "lora", seed, 0.1 * seed, later) for seed in (8, 9)]
    planned = [*cells, early, "made/mrpc-lora-00000000/seed3"]
    nowhere = tmp_path / "nowhere"
    plans.write(path, plans.made(path, nowhere, "made", planned, ["lora > bitfit", "bitfit = lora"], 1.0))
    said = plans.answers(made_study(tmp_path), plans.read(path))
    assert said[1].startswith("missing: 2 of 12 planned cells, so every answer is provisional: ")
    assert said[2] == f"left out: 1 cell that ran before the plan was registered: {early}"
    assert said[3].startswith("added: 2 cells that are not planned have no part in this: ")
    assert all(cell in said[3] for cell in added)
    assert said[4].startswith("confirmed: lora > bitfit on mrpc acc: ahead by 10.0 points")
    assert said[5].startswith("refuted: bitfit = lora on mrpc acc: behind by 10.0 points")
    assert said[6].endswith(
        "corrected by Holm for the 2 tests of this plan; a t-test takes these differences for normal"
    )
    with pytest.raises(ConfigError, match="5 of 5 cells have results"):
        plans.made(tmp_path / "late.yaml", tmp_path / "outputs", "made", cells[:5], ["lora > bitfit"], 1.0)
    with pytest.raises(ConfigError, match="is of study other"):
        plans.answers(made_study(tmp_path), dataclasses.replace(plans.read(path), study="other"))
