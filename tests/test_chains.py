"""Cells that start from cells of their study, one after the other, none of which is there when the list is made."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from support import TINY, updating

from peftbench.record import Record, find_records, read_record
from peftbench.study import index, lock, sweep
from peftbench.study.index import Planned

STUDY = [*TINY, "study=pilot", "protocol.max_steps=3"]
Command = Callable[..., Said]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Callable[..., Path]:
    """List one more cell of the study; gives the folder that names it."""
    monkeypatch.chdir(tmp_path)

    def listed(*words: str) -> Path:
        before = set(index.read(tmp_path / "outputs" / "pilot"))
        said = command("plan", *STUDY, *words, "--save")
        assert (said.code, said.err) == (0, "")
        after = index.read(tmp_path / "outputs" / "pilot")
        (name,) = after.keys() - before
        return tmp_path / "outputs" / after[name].folder

    return listed


def by_seed(outputs: Path) -> dict[int, Record]:
    records = map(read_record, find_records(outputs / "pilot"))
    return {record.cell.seed: record for record in records}


def test_a_chain_of_cells_is_run_from_its_first(tmp_path: Path, plan: Callable[..., Path], command: Command) -> None:
    first = plan("method=bitfit", "seed=0")
    second = plan("method=lora", "seed=1", f"init_from={first}")
    third = plan("method=bitfit", "seed=2", f"init_from={second}")
    fourth = plan("method=bitfit", "seed=3", f"init_from={third}")
    worked = command("work", "pilot")
    assert (worked.code, worked.err) == (0, ""), worked.out
    assert worked.out.splitlines()[-1] == "4 cells: 4 done, 0 failed"
    outputs, records = tmp_path / "outputs", by_seed(tmp_path / "outputs")
    places = {read_record(path).cell.seed: path.parent for path in find_records(outputs / "pilot")}
    starts = [records[seed].config["init_from"] for seed in range(4)]
    assert starts == [None, str(places[0]), str(places[1]), str(places[2])]
    assert not any(path.exists() for path in (second, third, fourth)), "these were names"
    assert not list(outputs.rglob(lock.FILE))
    again = command("plan", *STUDY, "method=bitfit", "seed=2", f"init_from={second}", "--save")
    assert "1 cell: 1 needs no run, 0 to run" in again.out


def test_a_cell_whose_parent_was_listed_again_meanwhile_finds_it(
    tmp_path: Path, plan: Callable[..., Path], command: Command
) -> None:
    first = plan("method=bitfit", "seed=0")
    second = plan("method=lora", "seed=1", f"init_from={first}")
    assert command("work", "pilot").code == 0
    shutil.rmtree(tmp_path / "outputs" / index.read(tmp_path / "outputs" / "pilot")[_key(tmp_path, 1)].folder)
    plan("method=bitfit", "seed=2", f"init_from={second}")
    worked = command("work", "pilot")
    assert worked.out.splitlines()[-1].startswith("3 cells: 3 done"), worked


def _key(tmp_path: Path, seed: int) -> str:
    cells = index.read(tmp_path / "outputs" / "pilot")
    (name,) = (name for name, cell in cells.items() if f"seed={seed}" in cell.overrides)
    return name


def test_an_update_waits_for_both_of_its_runs(tmp_path: Path, plan: Callable[..., Path], command: Command) -> None:
    old, new = plan("method=bitfit", "seed=0"), plan("method=bitfit", "seed=1")
    plan("method=bitfit", "seed=2", *updating(old, new))
    cells = index.read(tmp_path / "outputs" / "pilot")
    (after,) = (cell.after for cell in cells.values() if cell.after)
    assert {key: tmp_path / "outputs" / name for key, name in after.items()} == {
        "init_from": new,
        "objective.old": old,
    }
    worked = command("work", "pilot")
    assert (worked.code, worked.out.splitlines()[-1]) == (0, "3 cells: 3 done, 0 failed"), worked
    assert by_seed(tmp_path / "outputs")[2].config["objective"]["old"] == str(old)


def test_a_list_keeps_what_cells_start_from_as_earlier_versions_have_it(tmp_path: Path) -> None:
    study = tmp_path / "made"
    parent = Planned("made/a/seed0", ["seed=0"])
    child = Planned("made/b/seed0", ["seed=1"], after={"init_from": parent.folder})
    taught = Planned("made/c/seed0", ["seed=2"], after={"init_from": child.folder, "objective.old": parent.folder})
    index.add(study, {"a": parent, "b": child, "c": taught})
    assert '"after": "made/a/seed0"' in (study / index.FILE).read_text()
    assert index.read(study) == {"a": parent, "b": child, "c": taught}
    moved = Planned("made/d/seed0", ["seed=1"], after=child.after)
    index.add(study, {"b": moved})
    kept = index.read(study)["b"]
    assert (kept.folder, kept.named) == ("made/d/seed0", "made/b/seed0")
    assert index.names(index.read(study).values())["made/b/seed0"] == kept
    assert sweep.listed(tmp_path, "made")[tmp_path.resolve() / "made/b/seed0"] == "made/b/seed0"
