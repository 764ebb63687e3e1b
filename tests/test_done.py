"""When a finished cell counts: while its rows, weights and task are those at hand."""

import json
import shutil
from pathlib import Path

from support import TINY, call

from peftbench.data.sources import SAMPLE
from peftbench.record import find_records

WORDS = [*(word for word in TINY if word != "data=sample"), "study=s", "method=head", "data=folder"]


def rows(where: Path, name: str, flip: bool) -> Path:
    shutil.copytree(SAMPLE, where / name)
    if flip:
        path = where / name / "SST-2" / "dev.tsv"
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *lines[::-1]]) + "\n")
    return where / name


def found(where: Path) -> list[Path]:
    return list(find_records(where / "outputs" / "s"))


def test_other_rows_run_anew_and_the_first_are_found_again(tmp_path: Path) -> None:
    rows(tmp_path, "one", False)
    rows(tmp_path, "two", True)
    first = call("run", *WORDS, "data.path=one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    was = json.loads((tmp_path / first.stdout.splitlines()[-1]).read_bytes())
    second = call("run", *WORDS, "data.path=two", cwd=tmp_path)
    assert "already done" not in second.stdout, second.stderr
    now = json.loads((tmp_path / second.stdout.splitlines()[-1]).read_bytes())
    assert now["hashes"]["data"]["dev"] != was["hashes"]["data"]["dev"]
    back = call("run", *WORDS, "data.path=one", cwd=tmp_path)
    assert "already done" in back.stdout, back.stderr
    assert json.loads((tmp_path / back.stdout.splitlines()[-1]).read_bytes()) == was
    assert len(found(tmp_path)) == 2
    table = call("table", "s", cwd=tmp_path)
    assert "other rows of dev" in table.stdout, table.stderr
    (tmp_path / "one" / "SST-2" / "dev.tsv").touch()
    plan = call("plan", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert "2 cells: 2 need no run" in plan.stdout, plan.stderr


def test_a_sweep_over_two_folders_of_rows_ends_with_both_results(tmp_path: Path) -> None:
    rows(tmp_path, "one", False)
    rows(tmp_path, "two", True)
    sweep = call("run", "-m", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stdout.splitlines()[-1] == "2 cells: 2 done, 0 failed"
    assert len(found(tmp_path)) == 2
    assert call("status", "s", cwd=tmp_path).stdout.startswith("s: 1 cells: 1 done")
    again = call("run", "-m", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "2 cells: 2 done (2 of them before), 0 failed"
