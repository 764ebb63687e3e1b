"""Records of others: run again and compared, put together from several machines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forgery import Said
from support import start

from peftbench.record import Record, find_records, read_record, write_record
from peftbench.study import index
from peftbench.study.agreement import TOLERANCE, agreement
from peftbench.study.index import Planned

CELL = "sst2-lora-bert_tiny-00000000/seed0"


def test_a_record_is_run_again_bit_for_bit_and_a_forged_score_is_found(
    finished: Path, finished_study: Path, command: Callable[..., Said]
) -> None:
    alone = start("verify", str(finished), cwd=finished_study)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout == f"same: {finished}\n1 record run again: 1 bit for bit the same\n"
    (path,) = find_records(finished_study)
    record = read_record(path)
    write_record(replace(record, headline=replace(record.headline, value=0.99)), path.parent)
    code, out, _ = command("verify", "s", "--outputs", str(finished_study.parent))
    assert code == 1
    assert out.splitlines()[0] == f"differs: {path.parent}"
    assert out.splitlines()[1].startswith("  headline.value: 0.99 -> ")
    assert out.splitlines()[-1] == "1 record run again: 1 different"


@pytest.mark.parametrize(
    ("word", "code", "line"),
    [
        ("hydra.searchpath=[file:///tmp]", 2, "made with yaml files of its own; --searchpath DIR says where yours lie"),
        ("++method._target_=os.system", 3, "++method._target_=os.system: a record may not name code"),
        ("hydra/launcher=local", 3, "hydra/launcher=local: a record may not name code"),
        ("method.rank=3", 3, "its words mean another cell here"),
    ],
)
def test_what_a_record_names_is_not_run(
    finished_study: Path, command: Callable[..., Said], word: str, code: int, line: str
) -> None:
    (path,) = find_records(finished_study)
    record = read_record(path)
    write_record(replace(record, overrides=[*record.overrides, word]), path.parent)
    refused, out, _ = command("verify", str(path))
    assert refused == code
    assert line in out


def test_other_machines_may_differ_by_a_few_rows_and_it_is_said_why(finished: Path) -> None:
    one = read_record(finished / "result.json")
    assert one.headline.value is not None

    def made(by: float, **changes: object) -> Record:
        moved = replace(one.headline, value=(one.headline.value or 0.0) - by)
        return replace(one, headline=moved, **changes)  # type: ignore[arg-type]

    other = {**one.versions, "torch": "9.9"}
    close = agreement(one, made(TOLERANCE / 2, versions=other))
    assert close.verdict == "close"
    assert close.causes == [f"versions.torch: {one.versions['torch']} -> 9.9"]
    assert agreement(one, made(TOLERANCE * 2, versions=other)).verdict == "differs"
    assert agreement(one, made(TOLERANCE / 2)).verdict == "differs", "nothing explains it"
    assert agreement(one, replace(one, time=replace(one.time, total_s=1e3))).verdict == "same"


def machine(where: Path, record: Record, *cells: str) -> Path:
    """A folder of the study "s" with this record in these cells, and its list of cells."""
    for cell in cells:
        write_record(record, where / "s" / cell)
        (where / "s" / cell / "metrics.jsonl").write_text(where.name)
    index.add(where / "s", {cell: Planned(f"s/{cell}", [f"seed={cell[-1]}"]) for cell in cells})
    return where / "s"


def test_studies_are_put_together_and_disagreement_is_refused_before_any_copy(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    record, other = read_record(finished / "result.json"), CELL.replace("seed0", "seed1")
    a = machine(tmp_path / "a", record, CELL)
    b = machine(tmp_path / "b", record, CELL, other)
    (b / other / "metrics.jsonl").unlink()
    (b / other / "metrics.jsonl").symlink_to("/etc/hostname")
    together = tmp_path / "outputs"
    said = command("collect", str(a), str(b), "--outputs", str(together))
    assert said == (0, "2 cells copied, 1 was there before and agrees\n", "")
    assert {str(path.parent.relative_to(together / "s")) for path in find_records(together / "s")} == {CELL, other}
    assert (together / "s" / CELL / "metrics.jsonl").read_text() == "a"
    assert not (together / "s" / other / "metrics.jsonl").exists(), "links are not followed"
    assert len(index.read(together / "s")) == 2
    assert command("collect", str(a), str(b), "--outputs", str(together))[1].startswith("0 cells copied")
    third = CELL.replace("seed0", "seed2")
    forged = replace(record, headline=replace(record.headline, value=0.99))
    c = machine(tmp_path / "c", forged, CELL, third)
    code, _, err = command("collect", str(c), "--outputs", str(together))
    assert code == 3
    assert "disagree: headline.value: " in err
    assert not (together / "s" / third).exists()


def test_a_failed_cell_gives_way_to_a_finished_one(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    record = read_record(finished / "result.json")
    a = machine(tmp_path / "a", replace(record, status="failed", error="x"), CELL)
    b = machine(tmp_path / "b", record, CELL)
    for order in ([a, b], [b, a]):
        together = tmp_path / f"from-{order[0].parent.name}"
        assert command("collect", *map(str, order), "--outputs", str(together))[0] == 0
        assert read_record(together / "s" / CELL / "result.json").status == "done"
    assert command("collect", str(a), str(tmp_path), "--outputs", "x")[0] == 2
