"""One runner per cell, also when runners die."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TINY, begin, call, until

from peftbench.config import compose
from peftbench.ground.files import CHECKPOINT_FILE, END_FILE, RECORD_FILE, write_atomically
from peftbench.record import find_records
from peftbench.runner.run import run
from peftbench.study import lock
from peftbench.study.lock import Elsewhere, Lock


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here is late or missed for a moment only, unless a test says so."""
    monkeypatch.setattr(lock, "LATE", 0.0)
    monkeypatch.setattr(lock, "AGAIN", 0.0)


def test_a_second_runner_does_not_get_what_a_living_one_holds(tmp_path: Path) -> None:
    with Lock(tmp_path / "cell") as first:
        assert first.held
        with Lock(tmp_path / "cell") as second:
            assert not second.held
        assert lock.alive(first.path)
        assert str(os.getpid()) in lock.owner(first.path)
    assert not (tmp_path / "cell").exists(), "a folder made for the lock alone goes with it"


HOLD = """
import sys
from pathlib import Path
from peftbench.study.lock import Elsewhere, Lock
held = Lock(Path(sys.argv[1])).__enter__().held
print(int(held), flush=True)
sys.stdin.read()
"""


def holder(folder: Path, *before: str) -> subprocess.Popen[str]:
    """A process that asks for a lock and says whether it has it; it keeps it until its input ends."""
    words = [*before, sys.executable, "-c", HOLD, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def written(folder: Path, **changes: object) -> Path:
    """A lock as this process would write it, with changes, by nobody who beats."""
    with Lock(folder) as mine:
        owner = json.loads(mine.path.read_text())
    folder.mkdir(exist_ok=True)
    mine.path.write_text(json.dumps({**owner, "token": "other", **changes}))
    return mine.path


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert answer(process) == "1"
    assert lock.alive(tmp_path / lock.FILE)
    process.kill()
    process.wait()
    assert not lock.alive(tmp_path / lock.FILE)
    with Lock(tmp_path) as taken:
        assert taken.held
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(lock.DIED)
    assert [owner.pid for owner in lock.deaths(tmp_path)] == [process.pid]
    lock.forget_deaths(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", [CHECKPOINT_FILE, RECORD_FILE])
def test_an_owner_that_got_further_did_not_die_of_the_cell(tmp_path: Path, written: str) -> None:
    process = holder(tmp_path)
    assert answer(process) == "1"
    owner = lock.owner_of(tmp_path / lock.FILE)
    assert owner is not None
    assert owner.since is not None
    (tmp_path / written).touch()
    os.utime(tmp_path / written, (owner.since - 1, owner.since - 1))
    process.kill()
    process.wait()
    with Lock(tmp_path):
        assert lock.deaths(tmp_path) == [owner]
    os.utime(tmp_path / written, (owner.since + 1, owner.since + 1))
    assert lock.deaths(tmp_path) == []


def test_an_owner_that_was_paused_did_not_die(tmp_path: Path) -> None:
    with Lock(tmp_path) as paused:
        owner = json.loads(paused.path.read_text())
        paused.path.write_text(json.dumps({**owner, "host": "elsewhere"}))
        os.utime(paused.path, (1, 1))
        with Lock(tmp_path) as taken:
            assert taken.held
            assert len(lock.deaths(tmp_path)) == 1
            with pytest.raises(Elsewhere):
                paused.check()
            assert lock.deaths(tmp_path) == []


def test_a_number_given_out_again_is_not_the_dead_owner(tmp_path: Path) -> None:
    assert lock.alive(written(tmp_path))
    assert not lock.alive(written(tmp_path, started="1"))


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"boot": "another"}, {"namespace": "pid:[1]"}])
@pytest.mark.parametrize("by", [-lock.DEAD - 1, lock.DEAD + 1], ids=["stopped", "from the future"])
def test_an_owner_elsewhere_lives_by_its_heartbeat(tmp_path: Path, elsewhere: dict[str, str], by: float) -> None:
    path = written(tmp_path, **elsewhere)
    with Lock(tmp_path) as refused:
        assert not refused.held
    moment = time.time() + by
    os.utime(path, (moment, moment))
    with Lock(tmp_path) as taken:
        assert taken.held


def test_the_folders_clock_counts_not_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, host="elsewhere")
    ahead = time.time() + 300  # seconds
    monkeypatch.setattr(time, "time", lambda: ahead)
    with Lock(tmp_path) as refused:
        assert not refused.held
    assert lock.alive(tmp_path / lock.FILE)


def test_a_lock_of_version_0_3_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    owner = json.loads(path.read_text())
    del owner["since"]
    path.write_text(json.dumps(owner))
    assert lock.alive(path)
    assert lock.owner(path) == f"process {os.getpid()} on {owner['host']}"


@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True).returncode != 0,
    reason="no other process namespace can be made here",
)
def test_a_runner_in_another_process_namespace_is_seen_by_its_heartbeat(tmp_path: Path) -> None:
    inside = holder(tmp_path, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    assert answer(inside) == "1"
    with Lock(tmp_path) as refused:
        assert not refused.held
    inside.communicate("")


DAMAGED = {
    "empty": b"",
    "a word": b'{"pid": "word", "host": "h", "token": "t", "started": "1", "boot": "b", "namespace": "n"}',
    "null": b'{"pid": null}',
    "huge": b'{"pid": ' + b"9" * 3000 + b"}",
    "deep": b"[" * 4000,
    "long": b" " * 10_000_000,
    "no text": b"\xff\xfe\x00",
    "a list": b"[1]",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_lock_holds_for_a_minute_and_is_taken_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / lock.FILE
    path.write_bytes(content)
    with Lock(tmp_path) as refused:  # it may be one that is being written
        assert not refused.held
    assert lock.owner(path) == "another runner"
    old = time.time() - lock.DEAD - 1
    os.utime(path, (old, old))
    with Lock(tmp_path) as taken:
        assert taken.held
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fifo", "folder", "full folder", "device", "loop"])
def test_what_is_no_file_is_moved_out_of_the_way(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / lock.FILE
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
        if kind == "full folder":
            (path / "mine").touch()
    assert not lock.alive(path)
    with Lock(tmp_path) as taken:
        assert taken.held
    assert [path.name for path in tmp_path.iterdir()] == [f"{lock.FILE}.bad1"]
    assert capsys.readouterr().err == f"{path}: no lock; kept as {lock.FILE}.bad1\n"


def test_a_file_system_without_hard_links_has_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Lock(tmp_path) as first:
        assert first.held
        first.check()
        with Lock(tmp_path) as second:
            assert not second.held
    path = written(tmp_path, host="elsewhere")
    os.utime(path, (1, 1))
    with Lock(tmp_path) as taken:
        assert taken.held
    lock.forget_deaths(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_runner_that_lost_its_lock_is_told_and_leaves_the_others_alone(tmp_path: Path) -> None:
    with Lock(tmp_path) as paused:
        paused.check()
        path = written(tmp_path / "other")
        path.rename(paused.path)
        with pytest.raises(Elsewhere, match="lost the cell"):
            paused.check()
    assert "other" in (tmp_path / lock.FILE).read_text()


@pytest.mark.parametrize("name", [RECORD_FILE, END_FILE, "predictions/dev.tsv"])
def test_what_is_written_while_the_lock_is_lost_is_not_put_in_place(tmp_path: Path, name: str) -> None:
    record = tmp_path / name
    with Lock(tmp_path) as paused:

        def check() -> None:
            paused.check()
            written(tmp_path / "other", host="elsewhere").rename(paused.path)  # right after the last look
            os.utime(paused.path, (1, 1))
            with Lock(tmp_path) as taken:
                assert taken.held
                record.write_bytes(b"the other's")

        with pytest.raises(Elsewhere, match="lost the cell"):
            write_atomically(record, b"late", check)
    assert record.read_bytes() == b"the other's"
    lock.forget_deaths(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [record]


def test_a_runner_that_lost_its_cell_while_it_loaded_leaves_the_others_files(tmp_path: Path) -> None:
    words = [*TINY, f"outputs={tmp_path}", "method=head"]
    config = compose.resolved(compose.load(words))
    folder = run(compose.cell_from(words), config, words).path.parent
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def lost() -> None:
        raise Elsewhere("lost the cell")

    with pytest.raises(Elsewhere):
        run(compose.cell_from(words), config, ["other=words"], check=lost)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == left


def test_many_runners_at_a_dead_lock_and_one_gets_it(tmp_path: Path) -> None:
    written(tmp_path, pid=2**22 + 1)
    runners = [holder(tmp_path) for _ in range(6)]
    answers = [answer(runner) for runner in runners]
    for runner in runners:
        runner.communicate("")
    assert sorted(answers) == ["0"] * 5 + ["1"]


def test_two_runners_on_one_study_share_the_work(tmp_path: Path) -> None:
    words = ["run", "-m", *TINY, "study=shared", "method=bitfit,lora", "seed=0,1"]
    runners = [begin(*words, cwd=tmp_path) for _ in range(2)]
    screens = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    paths = list(find_records(tmp_path / "outputs" / "shared"))
    assert len(paths) == 4
    runs = sum(screen.count("backbone entries") for screen in screens)
    assert runs == 4, "no cell was run twice"
    for path in paths:  # as if a runner had been killed between record and removal
        (path.parent / CHECKPOINT_FILE).touch()
    alone = call("run", *TINY, "study=shared", "method=lora", "seed=1", cwd=tmp_path)
    assert "already done" in alone.stdout
    assert len(list(tmp_path.rglob(CHECKPOINT_FILE))) == 3
    again = call("run", "-m", *TINY, "study=shared", "method=bitfit,lora", "seed=0,1", cwd=tmp_path)
    assert again.stdout.strip() == "4 cells: 4 done (4 of them before), 0 failed"
    assert not list(tmp_path.rglob(CHECKPOINT_FILE))


def test_a_paused_runner_that_lost_its_cell_writes_nothing(tmp_path: Path) -> None:
    paused = begin("run", *TINY, cwd=tmp_path)
    until(lambda: any(tmp_path.rglob(lock.FILE)), paused)
    paused.send_signal(signal.SIGSTOP)
    made = list(tmp_path.rglob(lock.FILE))
    owner = {**json.loads(made[0].read_text()), "host": "elsewhere", "token": "other"}
    write_atomically(made[0], json.dumps(owner).encode())
    paused.send_signal(signal.SIGCONT)
    errors = paused.communicate(timeout=300)[1]
    assert paused.returncode == Elsewhere.exit_code, errors
    assert errors.splitlines()[-1].endswith("this runner was paused and lost the cell; it writes nothing more")
    assert not list(tmp_path.rglob("result.json")) + list(tmp_path.rglob("delta.safetensors"))
    assert json.loads(made[0].read_text()) == owner
