"""Artefacts of real processes to which something happens: nothing is lost, and each fault is one line."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from studies import learn_otherwise
from support import TINY, begin, until
from test_artefact_work import results
from warm import Running

from peftbench.config import compose
from peftbench.ground.files import RECORD_FILE
from peftbench.record import find_records, read_record
from peftbench.runner.run import run
from peftbench.study import lock

Command = Callable[..., Said]
MODEL = [word for word in TINY if word.startswith("model")]
CELL = [*TINY, "study=s", "method=lora", "protocol.max_steps=3", "protocol.precision=fp32"]
MERGE = ["merge", "from=s", "method=lora", "merge=average,ties,pcb", "merge.scale=1", "merge.heads=kept"]
SEQUENCE = [*MODEL, "sequence.tasks=[sst2,rte]", "sequence.cap=16", "data=sample", "data.limit=24", "study=q"]
SEQUENCE += ["protocol.max_length=24", "learner.epochs=1", "learner.batch_size=8"]
PARTS = 2 * (3 + 2)  # tasks x (the ways, the backbone, the own run)


def train(outputs: Path, *words: str) -> Path:
    words = (*CELL, f"outputs={outputs}", f"cache={outputs.parent / 'cache'}", *words)
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs with runs on two tasks."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    for task in ("rte", "sst2"):
        train(folder, f"task={task}")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of these outputs, in which commands run."""
    shutil.copytree(trained, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stopped(here: Path, *words: str, after: int = 2) -> Running:
    """The command at work, and held where it has made so many artefacts."""
    running = begin(*words, cwd=here)
    until(lambda: len(made(here)) >= after, running)
    running.send_signal(signal.SIGSTOP)
    return running


def made(here: Path) -> list[Path]:
    """Records of artefacts of all studies, those that were set aside included."""
    every = [path for study in (here / "outputs").iterdir() for path in find_records(study)]
    return [path for path in every if read_record(path).made is not None]


def own(here: Path, task: str) -> Path:
    (folder,) = (here / "outputs" / "s").glob(f"{task}-lora-*/seed0")
    return folder


def ended(running: Running) -> Said:
    running.send_signal(signal.SIGCONT)
    out, err = running.communicate()
    return Said(int(running.returncode or 0), out, err)


COMMANDS = {
    "merge": MERGE,
    "port": ["port", "from=s", *MODEL, "task=rte", "study=p", "port.steps=0,2"],
    "sequence": ["sequence", "learner=aper,oracle,mos", *SEQUENCE],
    "edit": ["edit", "RUN", "edit.behaviour=predicts:entailment", "edit.strength=0.5,1", "study=e", "edit.rows=0.1"],
}


def words_of(word: str, here: Path) -> list[str]:
    return [str(own(here, "rte").relative_to(here)) if one == "RUN" else one for one in COMMANDS[word]]


@pytest.mark.parametrize("word", ["merge", "port", "edit"])
def test_a_run_that_changes_between_two_parts_ends_the_command_in_a_line_and_the_next_is_whole(
    word: str, here: Path, command: Command
) -> None:
    words = words_of(word, here)
    running = stopped(here, *words)
    before = {path.parent: path.read_bytes() for path in made(here)}
    sha256 = learn_otherwise(own(here, "rte"))
    said = ended(running)
    assert (said.code, said.err.count("\n")) == (3, 1), said
    assert f"s/{own(here, 'rte').parent.name}/seed0: was run again while" in said.err
    ended_after = len(made(here))
    assert command(*words)[::2] == (0, "")
    now = [path for path in made(here) if "-" not in path.parent.name]
    assert len(now) > ended_after
    assert word != "merge" or len(now) == PARTS
    for path in now:
        parents = read_record(path).hashes.parents
        assert parents.get(f"s/{own(here, 'rte').parent.name}/seed0", sha256) == sha256
    kept = {path.read_bytes() for path in made(here)}
    assert set(before.values()) <= kept, "what was made of the run as it was is kept beside"


def test_a_run_that_is_deleted_between_two_parts_is_not_missed_and_is_missed_by_the_next_merge(
    here: Path, command: Command
) -> None:
    running = stopped(here, *MERGE)
    shutil.rmtree(own(here, "rte"))
    said = ended(running)
    assert (said.code, said.err) == (0, ""), "its change is in memory, and what is made of it is valid"
    before = {path: path.read_bytes() for path in made(here)}
    assert len(before) == PARTS
    assert f"{PARTS + 1} done" in command("status", "s").out
    code, out, err = command(*MERGE, "study=again")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "a merge is of 2 to" in err
    code, out, err = command(*MERGE, "tasks=[rte,sst2]")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no finished run of lora on rte, seed 0" in err
    assert {path: path.read_bytes() for path in made(here)} == before


@pytest.mark.parametrize("word", ["port", "edit"])
def test_a_run_that_is_deleted_between_two_parts_leaves_what_was_made_and_the_next_is_a_line(
    word: str, here: Path, command: Command
) -> None:
    words = words_of(word, here)
    running = stopped(here, *words)
    shutil.rmtree(own(here, "rte"))
    said = ended(running)
    assert said.code in (0, 3), said
    assert said.err.count("\n") == (said.code == 3), said
    before = {path: path.read_bytes() for path in made(here)}
    assert len(before) >= 2
    code, out, err = command(*words)
    assert code in (2, 3)
    assert (out, err.count("\n")) == ("", 1)
    assert {path: path.read_bytes() for path in made(here)} == before


@pytest.mark.parametrize("word", COMMANDS)
def test_a_command_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(
    word: str, here: Path, trained: Path, command: Command
) -> None:
    words = words_of(word, here)
    running = stopped(here, *words)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = {path: path.read_bytes() for path in made(here)}
    code, out, err = command(*words)
    assert (code, err) == (0, ""), out
    assert out.count("already there: ") >= len(before) >= 2
    assert {path: path.read_bytes() for path in before} == before, "what was made is not made again"
    assert not [*here.rglob(f"{lock.FILE}*")]
    study = read_record(made(here)[0]).cell.study
    found = results(here / "outputs" / study)
    shutil.rmtree(here / "outputs")
    shutil.copytree(trained, here / "outputs")
    assert command(*words).code == 0
    assert results(here / "outputs" / study) == found


@pytest.mark.parametrize("word", ["merge", "port", "edit"])
def test_two_commands_side_by_side_make_each_artefact_once(word: str, here: Path, command: Command) -> None:
    words = words_of(word, here)
    both = [begin(*words, cwd=here) for _ in range(2)]
    said = [one.communicate() for one in both]
    codes = {one.returncode for one in both}
    assert codes <= {0, 75}
    lines = [line for out, _ in said for line in out.splitlines()]
    paths = {path.resolve() for path in made(here)}
    left = [line for _, err in said for line in err.splitlines()]
    left += [line for line in lines if "is running it" in line]
    assert all("another runner" in line or "is running it" in line for line in left), left
    assert {Path(line).resolve() for line in lines if line.endswith(RECORD_FILE) and "/p.port/" not in line} == paths
    assert word != "merge" or len(paths) == PARTS
    assert bool(left) == (75 in codes)
    again = command(*words)
    assert (again.code, again.err) == (0, "")
    assert again.out.count("already there: ") >= len(paths)
    assert not [*here.rglob(f"{lock.FILE}*")]


def test_a_seed_that_one_task_lacks_and_a_run_on_another_backbone_are_a_line_before_anything_is_made(
    here: Path, command: Command
) -> None:
    def refused(code: int, *words: str) -> str:
        said = command(*words)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1), said
        assert not made(here)
        return said.err

    train(here / "outputs", "task=rte", "seed=1")
    assert "s: no finished run of lora on sst2, seed 1" in refused(2, *MERGE)
    deeper = ["model.config.num_hidden_layers=3", "study=t", "protocol.max_steps=1"]
    for task, words in (("rte", []), ("sst2", deeper[:1])):
        train(here / "outputs", f"task={task}", *words, *deeper[1:])
    other = [word.replace("from=s", "from=t") for word in MERGE]
    assert "other backbones; their changes cannot be added" in refused(2, *other)
    port = ["port", "from=s", *MODEL, "task=rte", *deeper[:1], "study=p"]
    assert "model=bert_tiny: other shapes than bert_tiny of the run" in refused(2, *port)
    assert command(*MERGE, "seed=0").code == 0
