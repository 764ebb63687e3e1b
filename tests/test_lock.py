"""One runner per cell, also when runners die."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from conftest import TINY
from test_cli import PYTHON, call

from peftbench.record import find_records
from peftbench.study import lock
from peftbench.study.lock import Lock


def test_a_second_runner_does_not_get_what_a_living_one_holds(tmp_path: Path) -> None:
    with Lock(tmp_path / "cell") as first:
        assert first.held
        with Lock(tmp_path / "cell") as second:
            assert not second.held
        assert lock.alive(first.path)
        assert str(os.getpid()) in lock.owner(first.path)
    assert not (tmp_path / "cell").exists(), "a folder made for the lock alone goes with it"


def test_a_dead_owners_lock_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from peftbench.study.lock import Lock\n"
        f"Lock(Path({str(tmp_path)!r})).__enter__(); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / lock.FILE).exists()
    assert not lock.alive(tmp_path / lock.FILE)
    with Lock(tmp_path) as taken:
        assert taken.held
    assert list(tmp_path.iterdir()) == []


def test_a_number_given_out_again_is_not_the_dead_owner(tmp_path: Path) -> None:
    with Lock(tmp_path) as held:
        mine = json.loads(held.path.read_text())
    (tmp_path / lock.FILE).write_text(json.dumps({**mine, "started": "1"}))
    assert not lock.alive(tmp_path / lock.FILE)


def test_an_owner_on_another_host_lives_by_its_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / lock.FILE
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "token": "x", "started": "1"}))
    with Lock(tmp_path) as refused:
        assert not refused.held
    old = time.time() - lock.DEAD - 1
    os.utime(path, (old, old))
    with Lock(tmp_path) as taken:
        assert taken.held


def test_many_runners_at_a_dead_lock_and_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / lock.FILE).write_text(
        json.dumps({"pid": 2**22 + 1, "host": lock.socket.gethostname(), "token": "dead"})
    )
    code = (
        "import sys; from pathlib import Path; from peftbench.study.lock import Lock\n"
        f"held = Lock(Path({str(tmp_path)!r})).__enter__().held\n"
        "print(int(held), flush=True); sys.stdin.read()\n"
    )
    runners = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = []
    for runner in runners:
        assert runner.stdout is not None
        answers.append(runner.stdout.readline().strip())
    for runner in runners:
        runner.communicate("")
    assert sorted(answers) == ["0"] * 5 + ["1"]


def test_two_runners_on_one_study_share_the_work(tmp_path: Path) -> None:
    words = [*PYTHON, "run", "-m", *TINY, "study=shared", "method=bitfit,lora", "seed=0,1"]
    runners = [subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    screens = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    paths = list(find_records(tmp_path / "outputs" / "shared"))
    assert len(paths) == 4
    runs = sum(screen.count("backbone entries") for screen in screens)
    assert runs == 4, "no cell was run twice"
    again = call("run", "-m", *TINY, "study=shared", "method=bitfit,lora", "seed=0,1", cwd=tmp_path)
    assert again.stdout.strip() == "4 cells: 4 done (4 of them before), 0 failed"
