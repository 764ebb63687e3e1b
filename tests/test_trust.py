"""Records of others: run again and compared, put together from several machines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forgery import Said
from support import start

from peftbench.ground import registered
from peftbench.ground.registered import Registered
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.saved_lines import End, Line
from peftbench.record import Made, Record, find_records, read_record, write_record
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


def test_artefacts_are_left_out_and_counted(finished_study: Path, command: Callable[..., Said]) -> None:
    (path,) = find_records(finished_study)
    port = replace(read_record(path), overrides=["port", "from=s"], made=Made("port", {}, {}))
    for number in (1, 2):
        write_record(port, finished_study / f"port-{number}" / "seed0")
    said = command("verify", "s", "--outputs", str(finished_study.parent), "--sample", "1")
    assert (said.code, said.out.splitlines()[-1]) == (
        0,
        "1 record run again: 1 bit for bit the same; 2 artefacts left out",
    ), said.err
    code, out, _ = command("verify", str(finished_study / "port-1" / "seed0"))
    assert code == 2
    assert "made by peftbench port; only runs are run again" in out


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
    registered.add(a, [Registered("a" * 64, "2026-01-01", 3)])
    registered.add(b, [Registered("a" * 64, "2026-01-01", 3), Registered("b" * 64, "2026-01-02", 1)])
    together = tmp_path / "outputs"
    said = command("collect", str(a), str(b), "--outputs", str(together))
    assert said == (0, "2 cells copied, 1 was there before and agrees\n", "")
    assert {str(path.parent.relative_to(together / "s")) for path in find_records(together / "s")} == {CELL, other}
    assert (together / "s" / CELL / "metrics.jsonl").read_text() == "a"
    assert not (together / "s" / other / "metrics.jsonl").exists(), "links are not followed"
    assert len(index.read(together / "s")) == 2
    assert [plan.tests for plan in registered.read(together / "s")] == [3, 1]
    assert command("collect", str(a), str(b), "--outputs", str(together))[1].startswith("0 cells copied")
    third = CELL.replace("seed0", "seed2")
    forged = replace(record, headline=replace(record.headline, value=0.99))
    c = machine(tmp_path / "c", forged, CELL, third)
    code, _, err = command("collect", str(c), "--outputs", str(together))
    assert code == 3
    assert "disagree: headline.value: " in err
    assert not (together / "s" / third).exists()


def test_cells_of_few_labels_are_put_together_and_results_that_were_moved_aside_are_not(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    few, aside = CELL.replace("seed0", "split3-seed1"), f"{CELL}-0123abcd"
    a = machine(tmp_path / "a", read_record(finished / "result.json"), few, aside)
    together = tmp_path / "outputs"
    assert command("collect", str(a), "--outputs", str(together)).out == "1 cell copied\n"
    assert [str(path.parent.relative_to(together / "s")) for path in find_records(together / "s")] == [few]


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


def test_a_cell_that_failed_in_several_places_has_failed_on_all_their_hosts(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    record = replace(read_record(finished / "result.json"), status="failed", error="x")
    folders = {host: machine(tmp_path / host, replace(record, failed_on=[host]), CELL) for host in ("a", "b", "c")}
    together = tmp_path / "outputs"
    path = together / "s" / CELL / "result.json"
    for first, other, hosts in (("a", "b", ["a", "b"]), ("b", "c", ["a", "b", "c"]), ("a", "b", ["a", "b", "c"])):
        said = command("collect", str(folders[first]), str(folders[other]), "--outputs", str(together))
        assert said.code == 0
        assert read_record(path).failed_on == hosts
    assert said.out == "0 cells copied\n"
    d = machine(tmp_path / "d", read_record(finished / "result.json"), CELL)
    assert command("collect", str(folders["a"]), str(d), "--outputs", str(together)).out == "1 cell copied\n"
    assert (read_record(path).status, read_record(path).failed_on) == ("done", [])


def test_a_delta_that_is_not_its_records_is_refused_before_any_copy(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    record, other = read_record(finished / "result.json"), CELL.replace("seed0", "seed1")
    a = machine(tmp_path / "a", record, CELL, other)
    content = (finished / "delta.safetensors").read_bytes()
    (a / CELL / "delta.safetensors").write_bytes(content)
    (a / other / "delta.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    together = tmp_path / "outputs"
    wrong = f"{a / other}/delta.safetensors: not the delta that its record was made with\n"
    code, out, err = command("collect", str(a), "--outputs", str(together))
    assert (code, out) == (3, "")
    assert err.endswith(wrong[-60:])
    assert not together.exists()
    (a / other / "delta.safetensors").write_bytes(content)
    assert command("collect", str(a), "--outputs", str(together)).out == "2 cells copied\n"
    assert (together / "s" / other / "delta.safetensors").read_bytes() == content


def test_lines_of_artefacts_come_along_with_how_they_ended(
    finished: Path, tmp_path: Path, command: Callable[..., Said]
) -> None:
    done, failed, other = (Line(("merge", "from=s", f"method={method}")) for method in ("lora", "bitfit", "full"))
    ends = {
        "a": {done: End("done"), failed: End("failed", ("a",), "no run")},
        "b": {done: End("failed", ("b",), "no memory"), failed: End("failed", ("b",), "no run"), other: None},
    }
    folders = [machine(tmp_path / name, read_record(finished / "result.json"), CELL) for name in ends]
    for folder, of_one in zip(folders, ends.values(), strict=True):
        saved_lines.keep(folder, of_one)
    together = tmp_path / "outputs" / "s"
    for order in (folders, folders[:1]):
        assert command("collect", *map(str, order), "--outputs", str(together.parent)).code == 0
        assert saved_lines.read(together) == [done, failed, other]
        assert [saved_lines.end_of(together, line) for line in (done, failed, other)] == [
            End("done"),
            End("failed", ("a", "b"), "no run"),
            None,
        ]
    (folders[0] / saved_lines.FILE).write_text("[]")
    code, out, err = command("collect", *map(str, folders), "--outputs", str(tmp_path / "x"))
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert not (tmp_path / "x").exists()
