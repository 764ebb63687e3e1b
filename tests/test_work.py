"""Workers: they share a study's cells through its folder, the longest first, and leave when they are asked to."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forgery import Said
from support import TINY, begin, call, logged, start, until, what_is_left

from peftbench.commands import tables, watch
from peftbench.commands.work import STOPPED
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import RECORD_FILE
from peftbench.record import Search, Worker, find_records, read_record, write_record
from peftbench.report import cost
from peftbench.runner.run import Outcome
from peftbench.study import index, lock, status
from peftbench.study.cell_state import CellState, CellStates
from peftbench.study.done import reads_of
from peftbench.study.estimates import Estimates
from peftbench.study.index import Planned
from peftbench.study.lock import Lock
from peftbench.study.queue import MOST_TRIES, Queue
from peftbench.study.work import MOST_REFUSED, work

STUDY = [*TINY, "study=pilot"]


def test_workers_share_a_study_and_each_cell_is_the_cell_alone(
    tmp_path: Path, run_tiny: Callable[..., Outcome]
) -> None:
    planned = call("plan", *STUDY, "method=bitfit,head", "seed=0,1", "--save", cwd=tmp_path)
    assert planned.stdout.splitlines()[-1] == "saved; peftbench work pilot"
    assert not list(find_records(tmp_path / "outputs" / "pilot"))
    worked = start("work", "pilot", "--workers", "2", cwd=tmp_path)
    assert worked.returncode == 0, worked.stderr
    lines = worked.stdout.splitlines()
    assert lines.pop() == "4 cells: 4 done, 0 failed"
    paths = list(find_records(tmp_path / "outputs" / "pilot"))
    assert sorted(line.split(": ")[1] for line in lines) == [
        str(path.parent.relative_to(tmp_path / "outputs")) for path in paths
    ], "each cell was run once"
    alone = run_tiny("study=pilot", "method=bitfit", "seed=1", f"outputs={tmp_path / 'alone'}")
    (path,) = (path for path in paths if path.parts[-3:] == alone.path.parts[-3:])
    assert what_is_left(Outcome(read_record(path), path)) == what_is_left(alone)
    swept = call("run", "-m", *STUDY, "method=bitfit,head", "seed=0,1", cwd=tmp_path)
    assert swept.stdout == "4 cells: 4 done (4 of them before), 0 failed\n"


def test_every_cell_of_a_warm_worker_is_the_cell_of_a_process_of_its_own(tmp_path: Path) -> None:
    words = [*STUDY, "method=bitfit,lora,random_masking", "budget.like=bitfit", "seed=0,1"]
    call("plan", *words, "--save", cwd=tmp_path)
    moved = (tmp_path / "outputs").rename(tmp_path / "somebody's outputs")
    worked = call("work", "pilot", "--outputs", moved.name, cwd=tmp_path)
    assert worked.stdout.splitlines()[-1] == "6 cells: 6 done, 0 failed", worked.stderr
    assert not (tmp_path / "outputs").exists()
    for cell in index.read(moved / "pilot").values():
        alone = call("run", *cell.overrides, cwd=tmp_path)
        assert alone.returncode == 0, alone.stderr
        path = tmp_path / "outputs" / cell.folder / RECORD_FILE
        warm, own = (Outcome(read_record(one), one) for one in (moved / cell.folder / RECORD_FILE, path))
        assert what_is_left(warm) == what_is_left(own)
        assert logged(warm) == logged(own)


@pytest.mark.parametrize(
    ("words", "environment"), [(["--until", "0s"], {}), ([], {"SLURM_JOB_END_TIME": "1"})], ids=["until", "slurm"]
)
def test_a_worker_whose_time_is_up_leaves_its_cell_to_others(
    tmp_path: Path, words: list[str], environment: dict[str, str]
) -> None:
    call("plan", *STUDY, "protocol.max_steps=100000", "--save", cwd=tmp_path)
    left = call("work", "pilot", *words, cwd=tmp_path, **environment)
    assert left.returncode == 1, left.stderr
    assert left.stdout == "left: its time is up\n1 cell: 0 done, 0 failed, 1 left\n"
    assert not list(tmp_path.rglob(lock.FILE))


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path) -> None:
    call("plan", *STUDY, "protocol.max_steps=100000", "--save", cwd=tmp_path)
    worker = begin("work", "pilot", cwd=tmp_path)
    until(lambda: any(path.stat().st_size > 200 for path in tmp_path.rglob("metrics.jsonl")), worker)
    stopped = start("stop", "pilot", cwd=tmp_path)
    assert stopped.stdout == "pilot: workers are asked to leave; 1 cell is running\n"
    assert worker.communicate(timeout=300)[0].splitlines()[0] == "left: the study's workers are stopped"
    assert worker.returncode == STOPPED
    (kept,) = tmp_path.rglob("checkpoint.safetensors")
    assert not (kept.parent / lock.FILE).exists()
    assert not (kept.parent / "result.json").exists()
    with Lock(kept.parent):  # those that begin after the stop are not meant
        later = call("work", "pilot", cwd=tmp_path)
    assert (later.returncode, later.stdout) == (0, "1 cell: 0 done, 0 failed, 1 with another runner\n")


def test_a_worker_leaves_after_so_many_cells_and_tries_none_twice(tmp_path: Path) -> None:
    words = [*STUDY, "method=full", "protocol.clip=null", "protocol.schedule=constant", "protocol.lr=1e9,1e-4"]
    call("plan", *words, "--save", cwd=tmp_path)
    one = call("work", "pilot", "--cells", "1", cwd=tmp_path)
    assert one.stdout.count("pilot/sst2-full") == 1
    assert one.returncode in (1, 101)
    rest = call("work", "pilot", cwd=tmp_path)
    assert rest.returncode == 101
    assert rest.stdout.count("diverged: pilot/") == 1
    assert rest.stdout.splitlines()[-1].endswith("1 failed")


def test_cells_that_are_refused_are_named_and_left(tmp_path: Path) -> None:
    call("plan", *STUDY, "data=folder", "data.path=nowhere", "seed=0,1", "--save", cwd=tmp_path)
    refused = call("work", "pilot", cwd=tmp_path)
    assert refused.returncode == 3
    assert refused.stdout == "2 cells: 0 done, 0 failed, 2 left\n"
    assert "nowhere" in refused.stderr


class Refusing:
    """A source of work that cannot be done here."""

    asked = 0

    def let_go(self) -> None:
        """Nothing was claimed."""

    def waits(self) -> bool:
        return False

    def take(self) -> Callable[[], int]:
        self.asked += 1
        return self.refuse

    def refuse(self) -> int:
        raise ConfigError("model.weights=/missing: there is no such folder")


def test_a_worker_on_a_machine_that_can_run_nothing_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    source = Refusing()
    with pytest.raises(ConfigError, match="cannot be run here; this worker leaves"):
        work([source], None)
    assert source.asked == MOST_REFUSED
    assert "model.weights=/missing" in capsys.readouterr().err


def listed(outputs: Path, *cells: Planned) -> Queue:
    """The queue of a study of these cells."""
    index.add(outputs / "made", {cell.folder: cell for cell in cells})
    return Queue(outputs, "made")


def taken(queue: Queue) -> list[str]:
    """Folders of the cells that are taken one after the other, all of them held."""
    folders = []
    while (one := queue.take()) is not None:
        folders.append(one[0].folder)
    return folders


def test_the_longest_cells_come_first(
    tmp_path: Path, write_run: Callable[..., Path], tiny: Callable[..., Cell]
) -> None:
    outputs, cells, reads = tmp_path / "outputs", [], reads_of(tiny())
    for method, seconds in (("bitfit", 1.0), ("full", 9.0), ("lora", 5.0)):
        folder = write_run(method, "mrpc", 0, 0.8)
        record = read_record(folder / "result.json")
        write_record(replace(record, time=replace(record.time, total_s=seconds)), folder)
        cells += [Planned(f"made/{folder.parent.name}/seed{seed}", [], reads) for seed in (0, 1)]
    order = [folder.split("-")[1] for folder in taken(listed(outputs, *cells)) if folder.endswith("seed1")]
    assert order == ["full", "lora", "bitfit"]


def test_equal_cells_come_in_another_order_for_every_worker(tmp_path: Path) -> None:
    cells = [Planned(f"made/mrpc-lora-x-{number:08x}/seed0", []) for number in range(30)]
    index.add(tmp_path / "made", {cell.folder: cell for cell in cells})
    orders = []
    for _ in range(2):
        random.seed(0)  # as the run before seeded the numbers that all share
        queue, held = Queue(tmp_path, "made"), []
        while (one := queue.take()) is not None:
            held.append(one)
        for _, claimed in held:
            claimed.release()
        orders.append([planned.folder for planned, _ in held])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_cells_that_nobody_ran_yet_are_expected_to_take_what_the_closest_took() -> None:
    took = {"s/rte-lora-m-1/seed0": 5.0, "s/rte-lora-m-1/seed1": 7.0, "s/rte-full-m-2/seed0": 30.0}
    estimates = Estimates([*took.items(), ("s/mnli-full-m-3/seed0", 1000.0)])
    assert estimates.seconds("s/rte-lora-m-1/seed2") == 6.0
    assert estimates.seconds("s/rte-lora-m-9/seed0") == 6.0, "of its task and method"
    assert estimates.seconds("s/rte-bitfit-m-9/seed0") == 7.0, "of its task"
    assert estimates.seconds("s/cola-bitfit-m-9/seed0") == 18.5, "of all"
    assert estimates.total(["s/rte-lora-m-9/seed0", "s/rte-bitfit-m-9/seed0"]) == 13.0
    assert Estimates([]).seconds("s/rte-lora-m-1/seed0") is None


def test_a_worker_takes_the_longest_of_unknown_cells_by_their_task_and_method_first(
    tmp_path: Path, write_run: Callable[..., Path], tiny: Callable[..., Cell]
) -> None:
    outputs, cells, reads = tmp_path / "outputs", [], reads_of(tiny())
    for method, seconds in (("bitfit", 1.0), ("full", 9.0)):
        folder = write_run(method, "mrpc", 0, 0.8)
        record = read_record(folder / "result.json")
        write_record(replace(record, time=replace(record.time, total_s=seconds)), folder)
        cells.append(Planned(f"made/{folder.parent.name}/seed0", [], reads))
        cells += [Planned(f"made/mrpc-{method}-x-{number:08x}/seed0", []) for number in range(5)]
    order = [folder.split("-")[1] for folder in taken(listed(outputs, *cells))]
    assert order == ["full"] * 5 + ["bitfit"] * 5


def test_a_worker_leaves_a_cell_alone_that_failed_on_two_hosts(
    tmp_path: Path, write_run: Callable[..., Path], tiny: Callable[..., Cell]
) -> None:
    folder = write_run("lora", "mrpc", 0, 0.8)
    cell = Planned(str(folder.relative_to(tmp_path / "outputs")), [], reads_of(tiny()))
    record = read_record(folder / RECORD_FILE)
    for hosts, is_taken in ((["one"], True), (["one", "other"], False)):
        write_record(replace(record, status="failed", error="x", failed_on=hosts), folder)
        assert bool(taken(listed(tmp_path / "outputs", cell))) == is_taken
        (folder / lock.FILE).unlink(missing_ok=True)


def test_seeds_wait_for_the_search_that_another_makes_while_there_is_other_work(tmp_path: Path) -> None:
    seeds = [Planned(f"made/mrpc-lora-x-00000000/seed{seed}", [], None, searches=True) for seed in range(3)]
    others = [Planned(f"made/mrpc-head-x-{number:08x}/seed0", []) for number in range(3)]
    order = [folder.split("-")[1] for folder in taken(listed(tmp_path, *seeds, *others))]
    assert order[-2:] == ["lora", "lora"], "the first makes the search"


@pytest.mark.parametrize("cells", [40, 400])
def test_a_claim_looks_at_one_cell_however_many_are_open_and_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    queue = listed(tmp_path, *(Planned(f"made/mrpc-lora-x-{number:08x}/seed0", []) for number in range(cells)))
    looks, plain = [], CellStates.state

    def counted(self: CellStates, cell: Planned) -> CellState:
        looks.append(cell.folder)
        return plain(self, cell)

    monkeypatch.setattr(CellStates, "state", counted)
    held = [queue.take() for _ in range(30)]
    assert None not in held
    assert len(looks) == 2 * len(held), "before and after its lock is taken"


DIES = """
import os, signal, sys
from pathlib import Path
from peftbench.study.lock import Lock
assert Lock(Path(sys.argv[1])).take().held
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_cell_with_which_three_runners_died_is_left_alone_by_workers(tmp_path: Path) -> None:
    outputs, words = tmp_path / "outputs", [*STUDY, "method=bitfit"]
    call("plan", *words, "--save", cwd=tmp_path)
    (planned,) = index.read(outputs / "pilot").values()
    for state in ("missing", "missing", "failed"):
        queue = Queue(outputs, "pilot")
        died = subprocess.run([sys.executable, "-c", DIES, str(outputs / planned.folder)])
        assert died.returncode == -signal.SIGKILL
        taken = queue.take()
        assert (taken is None) == (state == "failed")
        if taken is not None:
            taken[1].release()
        (cell,) = status.cells_of(outputs, "pilot")
        assert cell.state == state
    assert re.fullmatch(r"its runners died: (process \d+ on \S+(, )?){3} \(workers leave it alone\)", cell.reason or "")
    left = "0 done, 1 failed, 1 of these with three deaths of who ran them (peftbench run -m tries them again)"
    done = call("work", "pilot", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (101, f"1 cell: {left}\n"), done.stderr
    again = call("run", "-m", *words, cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "1 cell: 1 done, 0 failed", again.stderr
    assert not lock.deaths(outputs / planned.folder)


def test_a_cell_waits_for_the_one_that_it_starts_from(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    call("plan", *STUDY, "method=bitfit", "seed=0,1", "--save", cwd=tmp_path)
    parents = list(index.read(outputs / "pilot").values())
    words = [*STUDY, "method=bitfit", f"init_from='{outputs}/{parents[0].folder[:-1]}${{seed}}'", "seed=0,1"]
    early = call("run", "-m", *words, cwd=tmp_path)
    assert (early.returncode, "no delta.safetensors there" in early.stderr) == (2, True)
    planned = call("plan", *words, "--save", cwd=tmp_path)
    assert planned.returncode == 0, planned.stderr
    queue = Queue(outputs, "pilot")
    held = [queue.take(), queue.take()]
    assert sorted(one[0].folder for one in held if one) == [parent.folder for parent in parents]
    assert queue.take() is None
    for one in held:
        assert one is not None
        one[1].release()
    worked = call("work", "pilot", cwd=tmp_path)
    assert worked.stdout.splitlines()[-1] == "4 cells: 4 done, 0 failed", worked.stderr
    records = [read_record(path) for path in find_records(outputs / "pilot")]
    starts = [record.config["init_from"] for record in records]
    for record, parent in zip(records, starts, strict=True):
        assert parent is None or parent == f"{outputs}/{parents[record.cell.seed].folder}"
    assert len(set(starts)) == 3
    again = call("run", "-m", *words, cwd=tmp_path)
    assert again.stdout == "2 cells: 2 done (2 of them before), 0 failed\n"


def test_a_cell_that_ends_in_nothing_is_given_up(tmp_path: Path) -> None:
    queue = listed(tmp_path, Planned("made/mrpc-lora-x-00000000/seed0", []))
    for _ in range(MOST_TRIES):
        one = queue.take()
        assert one is not None
        assert queue.take() is None, "it is held"
        one[1].release()
    assert queue.take() is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["work", "nope"], "study nope: no list of cells under outputs; peftbench plan ... --save makes it"),
        (["work", "pilot", "--until", "soon"], "'soon' is no duration such as 3h50m, 90m or 45s"),
        (["work", "pilot", "--workers", "0"], "'0' is no whole number from 1 to 1,000"),
        (["stop", "nope"], "study nope: there is none under outputs"),
    ],
)
def test_what_is_refused(tmp_path: Path, words: list[str], line: str) -> None:
    refused = call(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert line in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_status_shows_workers_their_cells_and_their_age(finished_study: Path, command: Callable[..., Said]) -> None:
    outputs, busy = finished_study.parent, finished_study / "mrpc-lora-x-00000000" / "seed0"
    index.add(finished_study, {"busy": Planned(str(busy.relative_to(outputs)), ["method=lora"])})
    words = ["status", "s", "--outputs", str(outputs)]
    with Lock(busy) as held:
        owner = lock.owner(held.path)
        said = json.loads(command(*words, "--json")[1])
        (running,) = (cell for cell in said["cells"] if cell["state"] == "running")
        assert (running["worker"], running["folder"]) == (owner, "s/mrpc-lora-x-00000000/seed0")
        assert 0 <= running["age_s"] < lock.DEAD
        assert f"running: {running['folder']}: {owner}, for " in command(*words)[1]
        with tables.console.capture() as seen:
            tables.console.print(watch.view("s", status.cells_of(outputs, "s"), 0, 60.0))
    assert "s: 2 cells: 1 done  1 running" in seen.get()
    assert "1.0 cells a minute" in seen.get()
    assert owner in seen.get()
    (done,) = find_records(finished_study)
    os.utime(done, (1, 1))
    assert command(*words, "--watch")[1] == command(*words)[1], "nothing runs any more"


def test_a_table_says_what_the_study_cost(finished_study: Path, command: Callable[..., Said]) -> None:
    (path,) = find_records(finished_study)
    one = read_record(path)
    one = replace(one, time=replace(one.time, total_s=1800.0), hardware=replace(one.hardware, threads=4))
    write_record(one, path.parent)
    said = command("table", "s", "--outputs", str(finished_study.parent))
    assert said[1].splitlines()[-1] == "cost: 2.00 core hours"
    search = Search(1e-3, "held_out", {"0.001": 0.5}, ["s.search/a/seed0"], 1800.0)
    seeds = [replace(one, search=search, worker=Worker("a", number)) for number in (1, 2)]
    assert cost.line(seeds) == "cost: 6.00 core hours on 2 workers of 1 host", "a search counts once"
    fast = replace(one, hardware=replace(one.hardware, device="A GPU", processes=2))
    assert cost.line([one, fast]) == "cost: 2.00 core hours and 1.00 GPU hours"
