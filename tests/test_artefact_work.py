"""Artefacts as work: lines that a study keeps are made by its workers, once the runs that they are of have ended."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from forgery import Said
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from studies import learn_otherwise
from support import TINY, begin, start, until

from peftbench.commands.artefact_work import Artefacts, lines_of
from peftbench.config import compose
from peftbench.ground import escape
from peftbench.ground.files import RECORD_FILE
from peftbench.lifecycle import saved_lines
from peftbench.record import MEASURED, find_records, read_record
from peftbench.runner.run import run
from peftbench.study import lock, work
from peftbench.study.lock import Lock
from peftbench.study.queue import MOST_TRIES
from peftbench.study.work import MOST_REFUSED

Command = Callable[..., Said]
CELLS = [*TINY, "study=s", "method=lora", "protocol.max_steps=3", "protocol.precision=fp32"]
DYING = """import os, pathlib, sys
from peftbench.study.lock import Lock
assert Lock(pathlib.Path(sys.argv[1])).take().held
os.kill(os.getpid(), 9)
"""
MERGE = ["from=s", "method=lora", "merge=average,ties", "merge.scale=1", "merge.refit_rows=16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs with the two runs of the study."""
    folder = tmp_path_factory.mktemp("trained")
    for task in ("rte", "sst2"):
        words = [*CELLS, f"task={task}", f"outputs={folder / 'outputs'}", f"cache={folder / 'cache'}"]
        run(compose.cell_from(words), compose.resolved(compose.load(words)), words)
    return folder / "outputs"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which commands run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def artefacts(study: Path) -> dict[tuple[str, str], Path]:
    """The records of a study's artefacts, by task and name."""
    records = {path: read_record(path) for path in find_records(study)}
    return {(one.cell.task, one.cell.method): path for path, one in records.items() if one.made is not None}


def results(study: Path) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, bytes]]]:
    """Records without what is measured and what says where they lie, and the predictions' bytes."""
    kept = {}
    for name, path in artefacts(study).items():
        raw = asdict(read_record(path))
        for key in (*MEASURED, "overrides", "config"):
            del raw[key]
        del raw["cell"]["study"]
        kept[name] = raw, {one.name: one.read_bytes() for one in (path.parent / "predictions").iterdir()}
    return kept


def test_workers_run_cells_first_and_make_artefacts_of_them_once(here: Path, command: Command) -> None:
    assert command("plan", *CELLS, "task=rte,sst2", "--save").code == 0
    kept = command("merge", *MERGE, "--save")
    assert kept == (0, "s: 2 lines kept; peftbench work s\n", "")
    again = command("merge", *MERGE, "--save")
    assert again.out == "s: 2 lines kept (2 of them before); peftbench work s\n"
    assert "2 lines of artefacts: 0 done, 2 open" in command("status", "s").out
    worked = start("work", "s", "--workers", "2", cwd=here)
    assert worked.returncode == 0, worked.stderr
    assert worked.stdout.splitlines()[-2:] == ["2 cells: 2 done, 0 failed", "2 lines of artefacts: 2 done"]
    assert json.loads(command("status", "s", "--json").out)["artefacts"] == {
        "done": 2,
        "running": 0,
        "failed": 0,
        "open": 0,
    }
    made = results(here / "outputs" / "s")
    assert {name for _, name in made} >= {"ties of lora, kept head", "average of lora, kept head"}
    assert command("merge", *MERGE, "study=alone").code == 0
    assert results(here / "outputs" / "alone") == made


def test_two_workers_make_a_line_once_when_the_last_cell_is_done(here: Path, command: Command) -> None:
    command("plan", *CELLS, "task=rte,sst2", "seed=0,1", "--save")
    command("merge", *MERGE[:2], "merge=ties", *MERGE[3:], "--save")
    workers = [begin("work", "s", cwd=here) for _ in range(2)]
    said = [worker.communicate(timeout=300) for worker in workers]
    assert [err for _, err in said] == ["", ""]
    assert 0 in [worker.returncode for worker in workers]
    lines = [line for out, _ in said for line in out.splitlines()]
    assert not [line for line in lines if "already there" in line]
    made = [str(path.relative_to(here)) for path in find_records(here / "outputs" / "s") if read_record(path).made]
    assert sorted(line for line in lines if line.endswith(RECORD_FILE)) == sorted(made)
    assert len(made) == 24, "of two seeds"
    assert [one.state for one in lines_of(here / "outputs", "s")] == ["done"]


def test_a_worker_leaves_a_line_to_the_one_who_has_its_last_cell(here: Path, trained: Path, command: Command) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    command("plan", *CELLS, "task=rte,sst2", "--save")
    command("merge", *MERGE, "--save")
    (last,) = study.glob("rte-lora-*/seed0")
    (last / RECORD_FILE).unlink()
    with Lock(last):
        left = command("work", "s")
    assert (left.code, left.out.splitlines()[-1]) == (0, "2 lines of artefacts: 0 done, 2 open")
    assert command("work", "s").out.splitlines()[-1] == "2 lines of artefacts: 2 done"


def test_a_score_waits_for_its_own_run_alone(here: Path, trained: Path, command: Command) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    command("merge", *MERGE[:2], "merge=ties", *MERGE[3:], "--save")
    command("score", str(study / "sst2-of-later" / "seed0"), "data=sample", "task=sst2", "--save")
    worked = command("work", "s")
    assert (worked.code, worked.err) == (1, "")
    assert worked.out.splitlines()[-1] == "2 lines of artefacts: 1 done, 1 open"
    (sst2,) = study.glob("sst2-lora-*/seed0")
    shutil.copytree(sst2, study / "sst2-of-later" / "seed0")
    command("plan", *CELLS, "task=rte", "seed=5", "--save")
    source = Artefacts(here / "outputs", "s")
    job = source.take()
    assert job is not None, "other cells of its study are open"
    assert job() == 0
    assert [one.state for one in lines_of(here / "outputs", "s")] == ["done", "done"]
    assert source.take() is None, "the merge may be of them, too"


def test_an_artefact_that_somebody_else_makes_is_left_and_its_line_stays_open(
    here: Path, trained: Path, command: Command
) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    command("merge", *MERGE, "--save")
    command("merge", *MERGE)
    made = artefacts(study)["rte", "ties of lora, kept head"]
    made.unlink()
    with Lock(made.parent):
        left = command("work", "s")
    assert (left.code, left.err) == (1, "")
    assert left.out.splitlines()[-1] == "2 lines of artefacts: 1 done, 1 open"
    assert left.out.count("is running it") == 1, "there is nothing to wait for without --wait"
    subprocess.run([sys.executable, "-c", DYING, str(made.parent)], check=False)
    assert command("work", "s").code == 0
    assert made.exists()
    assert not list(study.rglob(f"{lock.FILE}*")), "nothing is left of who died with it"


def test_a_worker_that_waits_comes_back_to_a_line_of_which_another_makes_a_part(
    here: Path, trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    command("merge", *MERGE)
    command("merge", *MERGE, "--save")
    made = artefacts(study)["rte", "ties of lora, kept head"]
    made.unlink()
    other, waited = Lock(made.parent).take(), list[float]()

    def sleep(seconds: float) -> None:
        if seconds == work.FOR_OTHERS:  # libraries wait, too
            waited.append(seconds)
            if len(waited) == MOST_TRIES + 1:
                other.release()

    with monkeypatch.context() as patch:
        patch.setattr(work.time, "sleep", sleep)
        said = command("work", "s", "--wait")
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == "2 lines of artefacts: 2 done"
    assert len(waited) == said.out.count("is running it") == MOST_TRIES + 1, "one look for every wait"
    assert made.exists()


def test_a_run_that_learned_something_else_opens_its_artefacts_anew(
    here: Path, trained: Path, command: Command
) -> None:
    shutil.copytree(trained, here / "outputs")
    assert command("merge", *MERGE, "merge=ties", "--save")[0] == 2, "a word twice"
    assert command("merge", *MERGE[:2], "merge=ties", *MERGE[3:], "--save").code == 0
    worked = command("work", "s")
    assert (worked.code, worked.err) == (0, "")
    study = here / "outputs" / "s"
    before = {path: path.stat().st_mtime_ns for path in artefacts(study).values()}
    assert command("work", "s").out.count("already there: ") == len(before)
    assert {path: path.stat().st_mtime_ns for path in artefacts(study).values()} == before
    (rte,) = study.glob("rte-lora-*/seed0")
    sha256 = learn_otherwise(rte)
    assert command("work", "s").code == 0
    assert all(sha256 in read_record(path).hashes.parents.values() for path in before if "rte" in path.parts[-3])


def test_a_line_waits_for_runs_that_are_open_and_another_workers_is_left(
    here: Path, trained: Path, command: Command
) -> None:
    command("plan", *CELLS, "task=rte,sst2", "--save")
    command("merge", *MERGE, "--save")
    outputs = here / "outputs"
    source = Artefacts(outputs, "s")
    assert source.take() is None, "no run is there yet"
    shutil.copytree(trained, outputs, dirs_exist_ok=True)
    one, other = saved_lines.read(outputs / "s")
    with Lock(saved_lines.folder_of(outputs / "s", one)):
        job = source.take()
        assert job is not None
        assert job() == 0
        assert source.take() is None, "somebody else has the other one"
        assert [one.state for one in lines_of(outputs, "s")] == ["running", "done"]
        code, out, err = command("work", "s")
        assert (code, err) == (0, ""), "nothing is left for this worker"
        assert out.endswith("2 lines of artefacts: 1 done, 1 running\n")
    assert saved_lines.end_of(outputs / "s", other) == saved_lines.End("done")
    assert source.take() is not None


def test_a_line_that_fails_is_named_and_does_not_stop_the_others(here: Path, trained: Path, command: Command) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    failing = MOST_REFUSED + 2  # so many cells in a row that cannot be run would end a worker
    command("merge", *MERGE, f"seed=range(7,{7 + failing // 2})", "--save")
    command("merge", *MERGE, "seed=0", "--save")
    code, out, err = command("work", "s")
    assert code == 100 + failing
    assert out.splitlines()[-1] == f"{failing + 2} lines of artefacts: 2 done, {failing} failed"
    assert err.count("failed: merge from=s method=lora") == err.count("s: no finished run of lora on rte") == failing
    shown = command("status", "s").out
    assert shown.count("failed: merge from=s method=lora") == shown.count("  s: no finished run of lora") == failing
    assert len(results(study)) == 16, "of two merges and what they are compared with"


def test_a_line_that_failed_on_two_hosts_is_left_alone_until_it_is_saved_again(
    here: Path, trained: Path, command: Command
) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    wrong = ["merge", "from=s", "method=lora", "merge=ties", "seed=7", "--save"]
    command(*wrong)
    assert command("work", "s").err.count("no finished run") == 1
    assert command("work", "s").err.count("no finished run") == 1, "on one host it may have been the host"
    (line,) = saved_lines.read(study)
    with Lock(saved_lines.folder_of(study, line)) as held:
        saved_lines.write_end(study, line, saved_lines.End("failed", ("one", "other"), "no memory"), held.check)
    worked = command("work", "s")
    assert (worked.code, worked.err) == (101, "")
    assert "  no memory (failed on one, other; left alone until the line is saved again)" in command("status", "s").out
    assert command(*wrong).out == "s: 1 line kept (1 of them before); peftbench work s\n"
    assert command("work", "s").err.count("no finished run") == 1


def test_a_line_that_kills_its_workers_is_left_alone_until_it_is_saved_again(
    here: Path, trained: Path, command: Command
) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    save = ["merge", *MERGE[:2], "merge=ties", *MERGE[3:], "--save"]
    command(*save)
    (line,) = saved_lines.read(study)
    for _ in range(3):
        subprocess.run([sys.executable, "-c", DYING, str(saved_lines.folder_of(study, line))], check=False)
    worked = command("work", "s")
    assert (worked.code, worked.out, worked.err) == (101, "1 line of artefacts: 0 done, 1 failed\n", "")
    assert "  its workers died: process " in command("status", "s").out
    command(*save)
    assert command("work", "s").code == 0


def test_a_worker_that_dies_in_an_artefact_leaves_it_to_the_next(here: Path, trained: Path, command: Command) -> None:
    study = shutil.copytree(trained, here / "outputs") / "s"
    command("merge", *MERGE[:2], "merge=ties", *MERGE[3:], "--save")
    running = begin("work", "s", cwd=here)
    until(lambda: len(list(find_records(study))) > 2, running)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {path: path.read_bytes() for path in find_records(study)}
    assert [one.state for one in lines_of(here / "outputs", "s")] == ["open"]
    rest = command("work", "s")
    assert (rest.code, rest.err) == (0, "")
    assert rest.out.splitlines()[-1] == "1 line of artefacts: 1 done"
    assert {path: path.read_bytes() for path in before} == before, "what was made is not made again"
    assert not list(study.rglob(f"{lock.FILE}*"))
    command("merge", *MERGE[:2], "merge=ties", *MERGE[3:], "study=alone")
    assert results(study) == results(here / "outputs" / "alone")


def test_outputs_may_lie_elsewhere_and_a_worker_leaves_after_so_many(
    here: Path, trained: Path, command: Command
) -> None:
    shutil.copytree(trained, here / "outputs")
    (rte,) = (here / "outputs" / "s").glob("rte-lora-*/seed0")
    kept = command("score", str(rte), "data=sample", "data.limit=12,24", "--save")
    assert kept == (0, "s: 2 lines kept; peftbench work s\n", "")
    (here / "outputs").rename(here / "some'body's outputs")
    worked = command("work", "s", "--outputs", "some'body's outputs", "--cells", "1")
    assert (worked.code, worked.err) == (1, "")
    assert worked.out.splitlines()[-1] == "2 lines of artefacts: 1 done, 1 open"
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["merge", "from=s", "method=lora", "merge=tiess"], "merge=tiess"),
        (["merge", "from=s", "method=lora", "merge=ties", "sed=1"], "sed: not a word of merge"),
        (["merge", "method=lora", "merge=ties"], "from: must be given"),
        (["merge", "from=../s", "method=lora", "merge=ties"], "from=../s: no name of a study"),
        (["merge", "from=s", "method=lora", "merge=ties", "seed=x"], "seed=x"),
        (["merge", "from=s", "method=lora", "merge=ties", "--searchpath", "own"], "--searchpath"),
        (["port", "from=s"], "model: must be given"),
        (["port", "from=s", "model=minilm_l6", "port.steps=-1"], "port.steps=-1"),
        (["score", "outputs/s/cell/seed0", "method=lora"], "method: not a word of an artefact"),
        (["score", "cell", "task=ax", "outputs=elsewhere"], "outputs=elsewhere: cell does not lie there"),
        (["score", "a/b/c", "task=ax"], "a run's folder, STUDY/CELL/SEED"),
        (["score", "/", "task=ax"], "/ does not lie there"),
        (["edit", "outputs/s/cell/seed0"], "edit.behaviour: must be given"),
        (["edit", "a/b/c", "edit.behaviour=overlap"], "a run's folder, STUDY/CELL/SEED"),
    ],
)
def test_a_line_that_cannot_be_is_refused_before_it_is_kept(
    here: Path, command: Command, words: list[str], named: str
) -> None:
    code, out, err = command(*words, "--save")
    assert (code, out) == (2, "")
    assert named in err
    assert not list(here.rglob(saved_lines.FILE))


FORGED = {
    "no json": "{",
    "a list": "[]",
    "another schema": '{"schema": 9, "lines": []}',
    "another command": '{"lines": [["run", "task=rte"]]}',
    "an option": '{"lines": [["merge", "from=s", "--searchpath=own"]]}',
    "another place": '{"lines": [["score", "../../home/run", "task=ax"]]}',
    "another study": '{"lines": [["merge", "from=../s", "merge=ties"]]}',
    "control signs": '{"lines": [["merge", "from=s", "merge=\\u001b[2J"]]}',
    "a number": '{"lines": [["merge", 5]]}',
    "too many words": json.dumps({"lines": [["merge", "from=s", *["a=b"] * 200]]}),
    "too many lines": json.dumps({"lines": [["merge", "from=s"]] * 10_001}),
    "deep": '{"lines": ' + "[" * 200 + "]" * 200 + "}",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_a_forged_list_of_lines_is_one_line(here: Path, command: Command, content: str) -> None:
    folder = here / "outputs" / "s"
    folder.mkdir(parents=True)
    (folder / saved_lines.FILE).write_text(content)
    for words in (("work", "s"), ("merge", *MERGE, "--save")):
        code, out, err = command(*words)
        assert (code, out) == (3, "")
        assert len(err.splitlines()) == 1
        assert saved_lines.FILE in err
    assert (folder / saved_lines.FILE).read_text() == content


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(lambda text: text.strip() == text))
def test_a_quoted_value_is_the_text_whatever_its_signs(text: str) -> None:
    parsed = OverridesParser.create().parse_override(f"key={escape.value(text)}")
    assert parsed.value() == text
