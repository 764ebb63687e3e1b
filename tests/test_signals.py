"""Signals: whenever one comes and however many, the command ends once, cleanly, and goes on from there."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import warm
from support import PYTHON, TINY, begin, until

from peftbench.cli import main
from peftbench.ground.files import CHECKPOINT_FILE, DELTA_FILE, RECORD_FILE
from peftbench.record import read_record
from peftbench.study import lock
from peftbench.training import checkpoint, stopping
from peftbench.training.trainer import Trainer

INTERRUPTED = """
import os, runpy, signal, sys
event, name = sys.argv.pop(1), sys.argv.pop(1)
came = []
def interrupt(what, arguments):
    if what == event and name in ("", *map(str, arguments[:1])) and not came:
        came.append(what)
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(interrupt)
runpy.run_module("peftbench", run_name="__main__", alter_sys=True)
"""
MANY = ["-m", *TINY, "seed=0,1", "protocol.lr=1e-3,1e-4,1e-5,2e-5", "task=sst2,rte"]


def said(number: int) -> list[str]:
    return [f"{stopping.Stopped(number)}; the same command goes on from here"]


@pytest.mark.parametrize(
    ("event", "name", "words", "lines"),
    [
        ("import", "peftbench.commands.dispatch", ["run", *TINY], 0),
        ("import", "hydra", ["run", *TINY], 1),
        ("import", "numpy", ["run", *TINY], 1),  # by torch, which takes any exception for "there is no numpy"
        ("os.fork", "", ["run", *MANY], 1),  # of the processes that compose cells
    ],
)
def test_an_interrupt_before_anything_runs(tmp_path: Path, event: str, name: str, words: list[str], lines: int) -> None:
    command = [sys.executable, "-c", INTERRUPTED, event, name, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines() == said(signal.SIGINT) * lines
    assert not done.stdout
    assert not list(tmp_path.iterdir())


IN_A_FINALISER = """
import os, signal
from peftbench.training import stopping
class Left:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
stopping.leave_on_signals()
try:
    Left()
    while True:
        signal.pause()
except stopping.Stopped as stopped:
    print(stopped)
"""


def test_a_signal_is_not_lost_where_python_can_raise_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FINALISER], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("stopped by SIGTERM\n", "")


Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command in this process, which gets its signal handlers back."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    monkeypatch.chdir(tmp_path)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup would have it ignored, which a run respects

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["peftbench", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


RUN = ["run", *TINY, "method=lora", "checkpoint_every=0"]


def results(where: Path) -> list[object]:
    """What a finished run leaves and what is not measured; nothing else may lie there."""
    (path,) = where.rglob(RECORD_FILE)
    names = {"delta.safetensors", "metrics.jsonl", "predictions", ".hydra", RECORD_FILE}
    assert {found.name for found in path.parent.iterdir()} == names
    record = read_record(path)
    return [record.headline, record.metrics, record.hashes, (path.parent / DELTA_FILE).read_bytes()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """What the run leaves when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEFTBENCH_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["peftbench", *RUN])
        with pytest.raises(SystemExit):
            main()
    return results(folder)


def send(numbers: Sequence[int]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def in_a_step(monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int]) -> None:
    plain = Trainer.step

    def step(self: Trainer, number: int, *rest: Any) -> None:
        if number == 3:
            send(numbers)
        plain(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)


def in_a_checkpoint(monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int]) -> None:
    plain = checkpoint.save

    def save(*rest: Any, **more: Any) -> bytes:
        send(numbers)
        content: bytes = plain(*rest, **more)
        return content

    monkeypatch.setattr(checkpoint, "save", save)


@pytest.mark.parametrize(
    ("moment", "numbers"),
    [
        (in_a_step, [signal.SIGHUP]),
        (in_a_step, [signal.SIGUSR2]),
        (in_a_step, [signal.SIGINT, *[signal.SIGTERM] * 20]),
        (in_a_checkpoint, [signal.SIGUSR1]),
        (in_a_checkpoint, [signal.SIGTERM] * 20),
    ],
)
def test_a_run_that_is_stopped_ends_once_and_goes_on_as_if_undisturbed(
    moment: Callable[[pytest.MonkeyPatch, Sequence[int]], None],
    numbers: list[int],
    command: Command,
    undisturbed: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        moment(patch, numbers)
        assert command(*RUN) == 128 + numbers[0]
    assert capsys.readouterr().err.splitlines() == said(numbers[0])
    (kept,) = tmp_path.rglob(CHECKPOINT_FILE)
    assert {found.name for found in kept.parent.iterdir()} == {CHECKPOINT_FILE, "metrics.jsonl", ".hydra"}
    assert command(*RUN) == 0
    assert results(tmp_path) == undisturbed


def test_a_sweep_that_is_stopped_starts_no_other_cell(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_a_step(monkeypatch, [signal.SIGUSR1])
    assert command("run", "-m", *RUN[1:], "seed=0,1") == 138
    assert capsys.readouterr().err.splitlines() == said(signal.SIGUSR1)
    assert len(list(tmp_path.glob("outputs/default/*/*"))) == 1


def begun(running: subprocess.Popen[str] | warm.Running, where: Path, cells: int) -> None:
    """Wait until so many cells of a command train."""
    until(lambda: len([log for log in where.rglob("metrics.jsonl") if log.stat().st_size > 200]) == cells, running)


def test_signals_that_come_until_it_has_ended(tmp_path: Path) -> None:
    words = [*RUN, "protocol.max_steps=4000"]
    running = begin(*words, cwd=tmp_path)
    begun(running, tmp_path, cells=1)
    while running.poll() is None:
        running.send_signal(signal.SIGTERM)
        os.sched_yield()
    assert running.communicate()[1].splitlines() == said(signal.SIGTERM)
    assert running.returncode == 143
    assert len(list(tmp_path.rglob(CHECKPOINT_FILE))) == 1
    assert not list(tmp_path.rglob(lock.FILE)) + list(tmp_path.rglob(RECORD_FILE))


def test_a_launchers_processes_end_with_it_and_keep_what_they_have(tmp_path: Path) -> None:
    words = ["run", "-m", *TINY, "protocol.max_steps=4000", "seed=0,1,2,3", "hydra/launcher=local"]
    running = subprocess.Popen([*PYTHON, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    begun(running, tmp_path, cells=2)
    running.send_signal(signal.SIGTERM)
    assert running.communicate(timeout=300)[1].splitlines() == said(signal.SIGTERM), "what others hold open has ended"
    assert running.returncode == 143
    assert len(list(tmp_path.rglob(CHECKPOINT_FILE))) == len(list(tmp_path.glob("outputs/default/*/*"))) == 2
    assert not list(tmp_path.rglob(lock.FILE)) + list(tmp_path.rglob(RECORD_FILE))


def processes_with(cache: Path) -> list[int]:
    """What runs with this cache in its environment, this process apart."""
    alive = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PEFTBENCH_CACHE={cache}\0".encode() in (place / "environ").read_bytes():
                alive.append(int(place.name))
    return [number for number in alive if number != os.getpid()]


def test_a_terminal_that_is_gone_leaves_no_process_of_wandb(tmp_path: Path) -> None:
    words = ["run", *TINY, "tracker=wandb", "protocol.max_steps=4000"]
    running = subprocess.Popen(
        [*PYTHON, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    begun(running, tmp_path, cells=1)
    assert len(processes_with(tmp_path / "cache")) > 1, "the run, and the service that W&B starts"
    os.killpg(running.pid, signal.SIGHUP)
    assert running.communicate(timeout=300)[1].splitlines()[-1:] == said(signal.SIGHUP), "its pipe is closed by all"
    assert running.returncode == 129
    assert processes_with(tmp_path / "cache") == []
    assert len(list(tmp_path.rglob(CHECKPOINT_FILE))) == 1


def no_inodes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tempfile.mkstemp

    def make(*rest: Any, prefix: str = "", **more: Any) -> tuple[int, str]:
        if RECORD_FILE in prefix:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(*rest, prefix=prefix, **more)

    monkeypatch.setattr(tempfile, "mkstemp", make)


def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == RECORD_FILE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize(("fault", "number"), [(no_inodes, errno.ENOSPC), (no_rename, errno.EIO)])
def test_a_record_that_cannot_be_written_is_one_line_and_the_cell_runs_again(
    fault: Callable[[pytest.MonkeyPatch], None],
    number: int,
    command: Command,
    undisturbed: list[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        assert command(*RUN) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{RECORD_FILE}: {os.strerror(number)}; what was computed is lost, or kept as a checkpoint" in line
    assert not [found for found in tmp_path.rglob("*") if RECORD_FILE in found.name or found.name == lock.FILE]
    assert command(*RUN) == 0
    assert results(tmp_path) == undisturbed
