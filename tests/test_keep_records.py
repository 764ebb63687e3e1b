"""scripts/keep_records.py: a copy without paths, on which the tables work."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from forgery import Said
from support import TINY

from peftbench.config import compose
from peftbench.record import read_record
from peftbench.runner.run import run

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "keep_records.py"


def made(outputs: Path, *words: str) -> Path:
    """A finished run's folder."""
    own = (*TINY, "study=s", f"outputs={outputs}", f"cache={outputs.parent / 'cache'}", *words)
    return run(compose.cell_from(own), compose.resolved(compose.load(own)), own).path.parent


def test_what_is_kept_names_no_folder_of_the_machine(tmp_path: Path, command: Callable[..., Said]) -> None:
    outputs = tmp_path / "here" / "outputs"
    first = made(outputs, "task=rte", "method=bitfit")
    made(outputs, "task=rte", "method=bitfit", f"init_from={first}")
    made(outputs, "task=joint", "task.tasks=[rte,sst2]", "method=bitfit")
    subprocess.run([sys.executable, SCRIPT, outputs, "s", tmp_path / "kept"], check=True, timeout=120)
    kept = sorted((tmp_path / "kept").rglob("result.json"))
    assert len(kept) == 3
    assert not [path for path in (tmp_path / "kept").rglob("*.*") if str(tmp_path) in path.read_text(encoding="utf-8")]
    whose = {read_record(path).config["init_from"] for path in kept}
    assert whose == {None, str(Path("outputs") / first.relative_to(outputs))}
    assert {path.name for path in (tmp_path / "kept").rglob("dev*.tsv")} == {"dev.tsv", "dev_rte.tsv", "dev_sst2.tsv"}
    shown = [
        command("table", "s", "--outputs", str(place), "--format", "md")[1] for place in (outputs, tmp_path / "kept")
    ]
    assert shown[0] == shown[1] != ""
