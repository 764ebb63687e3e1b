"""Registered plans: written before anything runs, answered exactly, and nothing else is called confirmed."""

import dataclasses
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forgery import Said
from scipy import stats
from studies import made_study

from peftbench.config import compose
from peftbench.config.fingerprint import digest
from peftbench.ground import registered
from peftbench.ground.errors import ConfigError, DataError
from peftbench.record import read_record, write_record
from peftbench.report import plans
from peftbench.report.planned import Test as Claimed
from peftbench.report.planned import parts
from peftbench.report.plans import Plan
from peftbench.report.records import column_of, column_of_cell, name_of, name_of_cell

BASE = ["study=p", "model=bert_tiny", "model.weights=random", "task=sst2", "data=sample"]


def run(write: Callable[..., Path], method: str, seed: int, score: float, started: str, task: str = "mrpc") -> str:
    """A finished run of the study "made" that started then; gives its cell."""
    folder = write(method, task, seed, score)
    record = read_record(folder / "result.json")
    write_record(dataclasses.replace(record, time=dataclasses.replace(record.time, started=started)), folder)
    return "/".join(folder.parts[-3:])


LATER = "2100-01-01T00:00:00+00:00"


def plan(cells: Sequence[str], *claims: str, columns: Sequence[str] = ("mrpc acc",), margin: float = 1.0) -> Plan:
    """A plan of the study "made" that has all claims on all columns."""
    tests = [Claimed(*parts(claim), column) for claim in claims for column in columns]
    return Plan("made", datetime.now(UTC).isoformat(), "0", margin, list(cells), list(claims), tests)


def cells_apart(write: Callable[..., Path], method: str, points: Sequence[float], task: str = "mrpc") -> list[str]:
    """Runs of a method and of bitfit whose differences are these."""
    cells = []
    for seed, difference in enumerate(points):
        cells.append(run(write, method, seed, 0.8 + 0.01 * seed + difference / 100, LATER, task))
        cells.append(run(write, "bitfit", seed, 0.8 + 0.01 * seed, LATER, task))
    return cells


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
    made = plans.read(tmp_path / "plan.yaml")
    assert (made.study, made.claims, made.margin, len(made.cells)) == ("p", ["lora > bitfit"], 2.0, 4)
    assert made.tests == [Claimed("lora", ">", "bitfit", "sst2 acc (sample)")]
    assert command(*words, "--claim", "lora > bitfit")[0] == 2, "it is there already"
    text = (tmp_path / "plan.yaml").read_text()
    for other in (text.replace("lora >", "full >"), text.replace("margin: 2.0", "margin: x"), "a: [", "", "- 1"):
        (tmp_path / "plan.yaml").write_text(other)
        with pytest.raises(DataError):
            plans.read(tmp_path / "plan.yaml")


def test_a_plan_may_have_the_cells_of_several_command_lines(
    command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["plan", "-m", *BASE, "seed=0,1"]
    assert command(*shared, "method=bitfit", "--save")[0] == 0
    assert command(*shared, "method=id3", "budget=500", "--save")[0] == 0
    last = [*shared, "method=lora", "--claim", "id3 > bitfit", "--claim", "lora > bitfit"]
    assert "id3: no row of study p" in command(*last, "--register", "plan.yaml")[2]
    assert command(*last, "--saved")[2].startswith("--claim id3 > bitfit: is for --register")
    assert command(*shared, "method=lora", "--saved")[2].startswith("--saved: is for --register")
    kept = ["plan", "study=p", "--saved", "--register", "kept.yaml", "--claim", "id3 > bitfit"]
    assert command(*kept)[0] == 0
    assert len(plans.read(tmp_path / "kept.yaml").cells) == 4, "those that are kept, and no other"
    elsewhere = ["plan", "study=p", "outputs=real", "--saved-in", "outputs", "--register", "moved.yaml"]
    assert command(*elsewhere[:4], "nowhere", *elsewhere[5:])[2].startswith(
        "--saved-in nowhere: keeps no cell of study p"
    )
    assert command(*elsewhere[:5])[2].startswith("--saved-in outputs: is for --register")
    begun = tmp_path / "real" / plans.read(tmp_path / "kept.yaml").cells[0]
    begun.mkdir(parents=True)
    for name in ("checkpoint.safetensors", "metrics.jsonl", "result.json"):
        (begun / name).touch()
        assert "1 of 4 cells ran or began before" in command(*elsewhere, "--claim", "id3 > bitfit")[2], name
        (begun / name).unlink()
    assert not (tmp_path / "real" / "p" / "plans.jsonl").exists(), "nothing is registered"
    assert command(*elsewhere, "--claim", "id3 > bitfit")[::2] == (0, "")
    assert plans.read(tmp_path / "moved.yaml").cells == plans.read(tmp_path / "kept.yaml").cells
    assert [plan.tests for plan in registered.read(tmp_path / "real" / "p")] == [1]
    code, _, err = command(*last, "--saved", "--register", "plan.yaml")
    assert (code, err) == (0, "")
    made = plans.read(tmp_path / "plan.yaml")
    assert sorted({cell.split("/")[1].split("-")[1] for cell in made.cells}) == ["bitfit", "id3", "lora"]
    assert len(made.cells) == 6
    assert [str(test) for test in made.tests] == [
        "id3 500 > bitfit on sst2 acc (sample)",
        "lora > bitfit on sst2 acc (sample)",
    ]


def test_variants_of_a_method_are_rows_of_their_own_by_their_label(
    command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*BASE, "method=lora", "method.rank=2,4", "label=r${method.rank}", "seed=0,1"]
    code, _, err = command("plan", "-m", *words, "--register", "plan.yaml", "--claim", "lora_r4 = lora_r2")
    assert (code, err) == (0, "")
    made = plans.read(tmp_path / "plan.yaml")
    assert [str(test) for test in made.tests] == ["lora_r4 = lora_r2 on sst2 acc (sample)"]
    assert {cell.split("/")[1].rpartition("-")[0] for cell in made.cells} == {
        "sst2-lora_r2-bert_tiny",
        "sst2-lora_r4-bert_tiny",
    }
    for method, label, line in (
        ("lora", "a/b", "label=a/b: must be null or a letter and at most 31 letters, digits and '_'"),
        ("lora", "4_9", "label=49: must be null or a letter"),  # Hydra reads a number
        ("id3", "lora", "label=lora: id3_lora is a method of its own"),
    ):
        code, _, err = command("run", *BASE, "budget=500", f"method={method}", f"label={label}")
        assert code == 2
        assert err.startswith(line)
    assert {path.name for path in (tmp_path / "outputs").rglob("*")} == {"p", "plans.jsonl"}, "nothing has run"


def test_a_claim_that_the_planned_cells_cannot_test_is_refused(
    command: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["plan", "-m", *BASE, "--register", "plan.yaml", "method=lora,bitfit", "seed=0,1"]
    for more, claims, line in (
        ([], ["id3 > lora"], "--claim id3 > lora: id3: no row of study p"),
        ([], ["lora > lora"], "--claim lora > lora: lora is both sides"),
        ([], ["lora > bitfit"] * 2, "--claim lora > bitfit: lora > bitfit on sst2 acc (sample) is claimed twice"),
        (["budget.entries=50,60"], ["lora > bitfit"], "--claim lora > bitfit: lora: no row of study p; did you mean"),
        (["protocol.lr=1e-3,2e-3"], ["lora > bitfit"], "--claim lora > bitfit: lora stands for 2 kinds of cells on"),
        (["seed=0"], ["lora > bitfit"], "--claim lora > bitfit: lora and bitfit have no task with two seeds in common"),
    ):
        code, out, err = command(*words, *more, *(word for claim in claims for word in ("--claim", claim)))
        assert (code, out) == (2, ""), more
        assert err.startswith(line)
        assert err.count("\n") == 1
    assert not (tmp_path / "plan.yaml").exists()


def test_a_cell_has_the_row_that_its_record_will_have(finished: Path) -> None:
    record = read_record(finished / "result.json")
    cell = compose.cell_from(record.overrides)
    assert (name_of_cell(cell), column_of_cell(cell)) == (name_of(record), column_of(record))
    words = ["method=id3", "budget.like=bitfit", "readout=prompt", "readout.head=rows", "selftrain=list"]
    cell = compose.cell_from([*BASE, *words, "shots.per_class=16", "selftrain.labels=hard"])
    assert name_of_cell(cell, several_models=True) == "id3 like-bitfit prompt-rows list-hard 16/class (bert_tiny)"


def test_a_plan_is_answered_from_its_own_cells_alone(write_run: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    noise = [0.0, 0.003, 0.001, 0.002, 0.004, 0.001]
    cells = [run(write_run, "lora", seed, 0.9 + noise[seed], LATER) for seed in range(5)]
    cells += [run(write_run, "bitfit", seed, 0.8 + noise[seed + 1], LATER) for seed in range(5)]
    early = run(write_run, "bitfit", 7, 0.99, "2000-01-01T00:00:00+00:00")
    added = [run(write_run, "lora", seed, 0.1 * seed, LATER) for seed in (8, 9)]
    absent = "made/mrpc-lora-00000000/seed3"
    plans.write(path, plan([*cells, early, absent], "lora > bitfit", "lora = bitfit", "bitfit > lora"))
    said = plans.answers(made_study(tmp_path), plans.read(path))
    assert said[0].endswith(", 3 claims, 3 tests; not in the study's own list, which has 0 plans")
    assert said[1].startswith("missing: 2 of 12 planned cells, so every answer is provisional: ")
    assert said[2] == f"left out: 1 cell that ran before the plan was registered: {early}"
    assert said[3].startswith("added: 2 cells that are not planned have no part in this: ")
    assert all(cell in said[3] for cell in added)
    assert said[4].startswith("confirmed so far: lora > bitfit on mrpc acc: ahead by 10.0 points")
    assert said[5].startswith("refuted so far: lora = bitfit on mrpc acc: more than 1 point apart: +10.0 points")
    assert said[6].startswith("refuted so far: bitfit > lora on mrpc acc: behind by 10.0 points")
    assert "corrected by Holm for 3 tests of this plan; " in said[7]
    assert len(said) == 8
    with pytest.raises(ConfigError, match="5 of 5 cells ran or began before, and a plan comes first: made/mrpc-lora-"):
        plans.made(tmp_path / "late.yaml", tmp_path / "outputs", "made", cells[:5], {}, ["lora > bitfit"], 1.0)
    with pytest.raises(ConfigError, match="is of study other"):
        plans.answers(made_study(tmp_path), dataclasses.replace(plans.read(path), study="other"))


def changed(folder: Path, **parts: Any) -> None:
    """Put other values into a record: of a dataclass or a mapping in it, those that are given."""
    record = read_record(folder / "result.json")
    new = {
        key: value
        if not isinstance(value, dict)
        else before | value
        if isinstance(before := getattr(record, key), dict)
        else dataclasses.replace(before, **value)
        for key, value in parts.items()
    }
    write_record(dataclasses.replace(record, **new), folder)


@pytest.mark.parametrize(
    "other", [{"cell": {"seed": 9}}, {"cell": {"study": "pilot"}}, {"fingerprint": "of another"}, {}]
)
def test_a_record_of_another_cell_in_a_planned_folder_answers_nothing(
    other: dict[str, Any], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    cells = cells_apart(write_run, "id3", [1.0, 0.9, 1.1, 1.2, 0.8])
    outputs = tmp_path / "outputs"
    whole = {cell.rpartition("/")[0]: read_record(outputs / cell / "result.json").fingerprint for cell in cells}
    made = dataclasses.replace(plan(cells, "id3 > bitfit"), fingerprints=whole)
    assert plans.answers(made_study(tmp_path), made)[1].startswith("confirmed: ")
    if not other:  # of a plan with all digits the last ones count, too
        other = {"fingerprint": whole[cells[0].rpartition("/")[0]][:15] + "x"}
    changed(outputs / cells[0], **other)
    said = plans.answers(made_study(tmp_path), made)
    assert said[1] == f"missing: 1 of 10 planned cells, so every answer is provisional: {cells[0]}"
    assert said[2].startswith(
        "left out: 1 record is of another fingerprint, seed, split or study than the planned cell: "
    )
    assert said[3].startswith("confirmed so far: ")
    assert "of 4 seeds" in said[3]
    if "x" not in str(other):
        earlier = plans.answers(made_study(tmp_path), dataclasses.replace(made, fingerprints={}))
        assert earlier[1:3] == said[1:3], "of a plan of version 0.4 the digits of the folder count"


def test_a_study_knows_every_plan_that_it_registered(write_run: Callable[..., Path], tmp_path: Path) -> None:
    made = plan(cells_apart(write_run, "id3", NEAR), "id3 > bitfit", "id3 = bitfit")
    other = dataclasses.replace(made, margin=2.0)

    def head(of: Plan = made) -> str:
        return plans.answers(made_study(tmp_path), of)[0]

    plans.register(tmp_path / "plan.yaml", tmp_path / "outputs", made)
    assert head(plans.read(tmp_path / "plan.yaml")).endswith("2 tests; the only plan of this study")
    assert head(other).endswith("; not in the study's own list, which has 1 plan")
    plans.register(tmp_path / "other.yaml", tmp_path / "outputs", other)
    every = "; one of 2 plans of this study, 4 tests in all, each plan corrected by itself"
    assert (head()[-len(every) :], head(other)[-len(every) :]) == (every, every)
    registered.add(tmp_path / "outputs" / "made", registered.read(tmp_path / "outputs" / "made"))
    assert head().endswith(every), "those that are there already are not added"
    (tmp_path / "outputs" / "made" / "plans.jsonl").write_text('{"sha256": 1}')
    with pytest.raises(DataError, match="not a list of registered plans"):
        head()


def test_a_plan_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = plan(["made/mrpc-id3-00000000/seed0"], "id3 > bitfit")
    content = dataclasses.asdict(old)
    del content["fingerprints"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump({**content, "sha256": digest(content)}))
    assert plans.read(tmp_path / "plan.yaml") == old
    new = dataclasses.replace(old, fingerprints={"made/mrpc-id3-00000000": "0" * 16})
    plans.write(tmp_path / "new.yaml", new)
    assert plans.read(tmp_path / "new.yaml") == new
    text = (tmp_path / "new.yaml").read_text()
    (tmp_path / "new.yaml").write_text(text.replace("0" * 16, "1" * 16))
    with pytest.raises(DataError, match="was edited after it was registered"):
        plans.read(tmp_path / "new.yaml")


def test_planned_cells_that_were_made_otherwise_than_their_row_are_missing(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    cells = cells_apart(write_run, "id3", [1.0, 0.9, 1.1, 1.2, 0.8, 1.0])
    of_id3 = [cell for cell in cells if "id3" in cell]
    whole = plans.answers(made_study(tmp_path), plan(cells, "id3 > bitfit"))
    assert len(whole) == 3, "nothing is missing, nothing differs"
    for cell in of_id3[4:]:
        changed(tmp_path / "outputs" / cell, hashes={"weights": "ab" * 32}, versions={"torch": "1.0"})
    said = plans.answers(made_study(tmp_path), plan(cells, "id3 > bitfit"))
    assert said[1].startswith("missing: 2 of 12 planned cells, so every answer is provisional: ")
    assert said[2] == f"of these made otherwise than most of their row, or without a score: {', '.join(of_id3[4:])}"
    assert said[3] == "†: other weights"
    assert "not the same in all cells: weights of bert_tiny: none in 10 cells, abababababab in 2 cells" in said
    assert any(line.startswith("not the same in all cells: torch: ") and "1.0 in 2 cells" in line for line in said)
    assert said[-2].startswith("confirmed so far: id3 > bitfit on mrpc acc: ")
    for cell in of_id3:  # a whole side of a claim with weights of its own stands in one row, and is named all the same
        changed(
            tmp_path / "outputs" / cell, hashes={"weights": "ab" * 32, "data": {"train": "0" * 64, "dev": "1" * 64}}
        )
    said = plans.answers(made_study(tmp_path), plan(cells, "id3 > bitfit"))
    assert any(line.startswith("not the same in all cells: dev of mrpc: ") for line in said)
    assert "not the same in all cells: weights of bert_tiny: none in 6 cells, abababababab in 6 cells" in said


NEAR, AROUND = [0.4, 0.35, 0.45, 0.5, 0.3, 0.42, 0.38, 0.4], [0.4, -0.3, 0.7, -0.1, 0.5, 0.2, -0.1, 0.3]


@pytest.mark.parametrize(
    ("points", "claim", "margin", "answer"),
    [
        (NEAR, "id3 = bitfit", 1.0, "confirmed: id3 = bitfit on mrpc acc: tied within 1 point: +0.4 points"),
        (NEAR, "id3 > bitfit", 1.0, "confirmed: id3 > bitfit on mrpc acc: ahead by 0.4 points"),
        (NEAR, "bitfit > id3", 1.0, "refuted: bitfit > id3 on mrpc acc: behind by 0.4 points"),
        (NEAR, "id3 = bitfit", 0.1, "refuted: id3 = bitfit on mrpc acc: more than 0.1 points apart: +0.4 points"),
        (NEAR, "id3 = bitfit", 0.38, "not decided: id3 = bitfit on mrpc acc: +0.4 points"),
        (AROUND, "id3 > bitfit", 1.0, "not confirmed: id3 > bitfit on mrpc acc: tied within 1 point: +0.2 points"),
        (AROUND, "id3 > bitfit", 0.3, "not decided: id3 > bitfit on mrpc acc: not decided: +0.2 points"),
        ([1.2, 0.2, 2.2, 1.7], "id3 = bitfit", 1.0, "not decided: id3 = bitfit on mrpc acc: +1.3 points"),
    ],
)
def test_a_claim_is_answered_by_its_own_hypothesis(
    points: list[float], claim: str, margin: float, answer: str, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    cells = cells_apart(write_run, "id3", points)
    said = plans.answers(made_study(tmp_path), plan(cells, claim, margin=margin))
    assert said[1].startswith(answer)
    too_few = len(points) == 4 and "= bitfit" in claim
    assert ("seeds would show equality within 1 point if the two are equal" in said[1]) == too_few
    assert "one test, so nothing is corrected" in said[2]


def test_the_family_is_the_plans_whatever_has_run(write_run: Callable[..., Path], tmp_path: Path) -> None:
    """Claims on one pair are two tests; tests without runs count, and are named."""
    cells = cells_apart(write_run, "id3", [1.0, 0.2, 0.9, 0.1, 0.7])
    made = plan([*cells, "made/mrpc-full-00000000/seed0"], "id3 > bitfit", "id3 = bitfit", "full > bitfit")
    said = plans.answers(made_study(tmp_path), made)
    p = stats.ttest_1samp(np.array([1.0, 0.2, 0.9, 0.1, 0.7]), 0).pvalue
    assert p < 0.05 < 3 * p
    assert said[2].startswith("not decided so far: id3 > bitfit on mrpc acc: ")
    assert f"p = {3 * p:.3f}" in said[2]
    assert said[3].startswith("not decided so far: id3 = bitfit on mrpc acc: +0.6 points")
    assert said[4] == "not answered: full > bitfit on mrpc acc: cells are missing"
    alone = plans.answers(made_study(tmp_path), plan(cells, "id3 > bitfit"))
    assert alone[1].startswith("confirmed: id3 > bitfit on mrpc acc: ahead by 0.6 points")


def test_a_plan_has_its_own_rows_and_margin(command: Callable[..., Said], tmp_path: Path) -> None:
    for words, word in ((["id3"], "ONE and OTHER"), (["--margin", "2"], "--margin 2"), (["a", "b"], "ONE and OTHER")):
        code, _, err = command("compare", "made", "--plan", "plan.yaml", *words)
        assert (code, err.count("\n")) == (2, 1)
        assert word in err
