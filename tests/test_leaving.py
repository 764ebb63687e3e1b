"""When workers stay and when they leave: others' last cells, a stop, a disk that stays full, a launcher."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forgery import Said, in_process
from support import TINY, call, what_is_left

from peftbench.commands import work as commands
from peftbench.commands.artefact_work import Artefacts
from peftbench.commands.work import STOPPED
from peftbench.ground import environment
from peftbench.ground.environment import LAUNCHED
from peftbench.ground.errors import BadInput
from peftbench.ground.files import CHECKPOINT_FILE
from peftbench.lifecycle import saved_lines
from peftbench.lifecycle.saved_lines import Line
from peftbench.record import find_records, read_record
from peftbench.runner.run import Outcome
from peftbench.study import index, lock, work
from peftbench.study.index import Planned
from peftbench.study.lock import Lock
from peftbench.study.queue import Queue, Unwritable
from peftbench.training import stopping
from peftbench.training.trainer import Trainer

STUDY = [*TINY, "study=pilot", "method=bitfit"]
LONG = 60.0  # seconds in which a thread surely gets a turn
Command = Callable[..., Said]


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Said]]:
    """The command in this process, in an empty folder; it gets its signal handlers back."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    monkeypatch.chdir(tmp_path)
    yield lambda *words: in_process(list(words), capfd, monkeypatch)
    for number, handler in before.items():
        signal.signal(number, handler)


def stop(study: Path) -> None:
    """As `peftbench stop`, a moment later than anything before, however coarse the folder's clock is."""
    work.stop(study)
    later = (study / work.STOP_FILE).stat().st_mtime + 1
    os.utime(study / work.STOP_FILE, (later, later))


def test_a_stop_while_a_worker_starts_is_meant_for_it(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("plan", *STUDY, "protocol.max_steps=100000", "--save")
    plain = commands.open_queue

    def read_the_list(*options: Any) -> Queue:
        stop(tmp_path / "outputs" / "pilot")
        return plain(*options)

    monkeypatch.setattr(commands, "open_queue", read_the_list)
    left = here("work", "pilot")
    assert left == (STOPPED, "left: the study's workers are stopped\n1 cell: 0 done, 0 failed, 1 left\n", "")


def test_a_stop_while_a_worker_imports_is_meant_for_it(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "outputs" / "pilot"
    here("plan", *STUDY, "protocol.max_steps=100000", "--save")
    work.stop(study)
    moment = lock.clock_of(study) - 5
    os.utime(study / work.STOP_FILE, (moment, moment))
    monkeypatch.setattr(environment, "age_s", lambda: 10.0)
    assert here("work", "pilot").code == STOPPED


def test_every_process_of_a_worker_knows_when_the_command_began(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("plan", *STUDY, "--save")
    monkeypatch.setattr(lock, "clock_of", lambda folder: 10.5)
    monkeypatch.setattr(environment, "age_s", lambda: 10.0)
    given: list[float] = []

    def share(_: object, began: float) -> list[int]:
        given.append(began)
        return [STOPPED, 0]

    monkeypatch.setattr(commands, "share", share)
    assert here("work", "pilot", "--workers", "2").code == STOPPED
    assert given == [0.5]


def stopped_in_step_3(monkeypatch: pytest.MonkeyPatch, study: Path) -> None:
    """All workers are stopped while a run is in its third step, which ends when the run knows."""
    plain, kill, known = Trainer.step, os.kill, threading.Event()

    def tell(pid: int, number: int) -> None:
        kill(pid, number)
        known.set()

    def step(self: Trainer, number: int, *rest: Any) -> None:
        if number == 3:
            work.stop(study)
            assert known.wait(LONG)
        plain(self, number, *rest)

    monkeypatch.setattr(work, "LOOKS", 0.01)
    monkeypatch.setattr(os, "kill", tell)
    monkeypatch.setattr(Trainer, "step", step)


def test_a_study_that_was_stopped_ends_as_one_that_was_not(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for outputs in ("disturbed", "undisturbed"):
        here("plan", *STUDY, "method=lora", f"outputs={outputs}", "--save")
        if outputs == "disturbed":
            with monkeypatch.context() as patch:
                stopped_in_step_3(patch, tmp_path / outputs / "pilot")
                assert here("work", "pilot", "--outputs", outputs).code == STOPPED
            assert list(tmp_path.rglob(CHECKPOINT_FILE))
        assert here("work", "pilot", "--outputs", outputs).code == 0
        (path,) = find_records(tmp_path / outputs / "pilot")
        ends.append(what_is_left(Outcome(read_record(path), path)))
    assert ends[0] == ends[1]


def test_a_worker_waits_for_the_last_cell_of_another_that_may_die(
    here: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("plan", *STUDY, "--save")
    (cell,) = index.read(tmp_path / "outputs" / "pilot").values()
    other = Lock(tmp_path / "outputs" / cell.folder).take()
    assert here("work", "pilot") == (0, "1 cell: 0 done, 0 failed, 1 with another runner\n", "")
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        if seconds == work.FOR_OTHERS:  # libraries wait, too
            waited.append(seconds)
            if len(waited) == 3:
                other.release()

    with monkeypatch.context() as patch:
        patch.setattr(work.time, "sleep", sleep)
        done = here("work", "pilot", "--wait")
    assert done.out.splitlines()[-1] == "1 cell: 1 done, 0 failed"
    assert len(waited) == 3


def test_a_cell_is_waited_for_whose_parent_another_has_and_not_one_whose_parent_failed(tmp_path: Path) -> None:
    parent = Planned("made/mrpc-lora-x-00000000/seed0", [])
    child = Planned("made/mrpc-lora-x-00000001/seed0", [], after={"init_from": parent.folder})
    index.add(tmp_path / "made", {cell.folder: cell for cell in (parent, child)})
    queue = Queue(tmp_path, "made")
    with Lock(tmp_path / parent.folder):
        assert queue.take() is None
        assert queue.waits()
    queue.tries[parent.folder] = 3  # this worker has given it up, and nobody else has it
    assert queue.take() is None
    assert not queue.waits()
    with Lock(tmp_path / parent.folder):
        assert queue.waits(), "on another host it may end well"


def test_a_line_is_waited_for_while_another_has_it_or_a_cell_of_its_runs(tmp_path: Path) -> None:
    cell, line = Planned("made/mrpc-lora-x-00000000/seed0", []), Line(("merge", "from=made", "method=lora"))
    saved_lines.add(tmp_path / "made", [line])
    source = Artefacts(tmp_path, "made")
    assert source.take() is None, "no cell is listed yet"
    assert not source.waits()
    index.add(tmp_path / "made", {cell.folder: cell})
    with Lock(tmp_path / cell.folder):
        assert source.take() is None
        assert source.waits()
    assert source.take() is None
    assert not source.waits()
    with Lock(saved_lines.folder_of(tmp_path / "made", line)):
        assert source.take() is None
        assert source.waits()


class Full:
    """A source of work on a disk without room."""

    def take(self) -> Callable[[], int]:
        raise Unwritable("/shared: cannot be written (No space left on device)")

    def let_go(self) -> None:
        """Nothing was claimed."""

    def waits(self) -> bool:
        return False


def test_a_worker_that_can_write_nothing_leaves_after_three_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(BadInput, match="nothing could be written for three minutes, this worker leaves") as ended:
        work.work([Full()], None)
    assert (sum(waited), ended.value.exit_code) == (182.0, 1)
    assert len(capsys.readouterr().err.splitlines()) == len(waited)


def test_a_command_that_can_write_nothing_ends_in_one_line(here: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    here("plan", *STUDY, "--save")
    monkeypatch.setattr(Queue, "take", Full.take)
    monkeypatch.setattr(work, "MOST_TROUBLES", 1)
    said = here("work", "pilot")
    assert (said.code, said.out, len(said.err.splitlines())) == (1, "", 1)
    assert said.err.startswith("/shared: cannot be written")


@pytest.mark.parametrize(
    "words",
    [
        ["work", "pilot"],
        ["merge", "from=s", "method=lora", "merge=ties", "--save"],
        ["port", "from=s", "model=minilm_l6"],
        ["score", "outputs/s/cell/seed0", "task=sst2"],
        ["edit", "outputs/s/cell/seed0", "edit.behaviour=overlap"],
        ["sequence", "learner=simplecil"],
        ["forgetting", "s"],
        ["backbone", "make=lowrank", "model=bert_tiny", "--to", "low"],
        ["backbone", "make=mlm", "make.text=notes.txt", "model=bert_tiny", "--to", "low"],
        ["backbone", "make=merged", "make.run=outputs/s/cell/seed0", "--to", "low"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_is_one_process_is_not_launched_as_two(tmp_path: Path, words: list[str]) -> None:
    launched = dict.fromkeys(LAUNCHED, "1") | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    refused = call(*words, cwd=tmp_path, **launched)
    line = f"{words[0]}: is one process, not 2; start it without torchrun or accelerate launch\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", line)
    assert list(tmp_path.iterdir()) == []
