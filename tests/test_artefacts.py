"""Artefacts: made once of finished runs, found again, stale when a run changes, shown beside the runs."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from forgery import Said
from prompted import masked_checkpoint
from studies import learn_otherwise
from support import TINY

from peftbench.config import compose
from peftbench.ground.files import RECORD_FILE
from peftbench.lifecycle import score
from peftbench.record import find_records, read_record, write_record
from peftbench.runner.run import Outcome, run
from peftbench.study import status
from peftbench.study.lock import Lock

Command = Callable[..., Said]
Run = Callable[..., Outcome]
SAMPLE = Path(score.__file__).parents[1] / "data" / "sample"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on RTE, whose source of rows has them as QNLI, too: a task of the same labels."""
    here = tmp_path_factory.mktemp("trained")
    shutil.copytree(SAMPLE / "RTE", here / "rows" / "RTE")
    (here / "rows" / "QNLI").mkdir()
    text = (SAMPLE / "RTE" / "dev.tsv").read_text().replace("sentence1\tsentence2", "question\tsentence")
    (here / "rows" / "QNLI" / "dev.tsv").write_text(text)
    words = [*TINY, "task=rte", "data=folder", f"data.path={here / 'rows'}", "method=bitfit", "study=s"]
    words += [f"outputs={here / 'outputs'}", f"cache={here / 'cache'}"]
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture
def rte(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run, in a study of its own."""
    return Path(shutil.copytree(trained.parents[2], tmp_path / "outputs") / trained.relative_to(trained.parents[2]))


def artefacts(run: Path) -> list[Path]:
    """The folders of artefacts in the run's study."""
    return [path.parent for path in find_records(run.parents[1]) if read_record(path).made is not None]


def states(run: Path) -> dict[Path, str]:
    outputs = run.parents[2]
    return {outputs / cell.folder: cell.state for cell in status.cells_of(outputs, "s")}


def test_a_run_is_scored_on_another_task_of_its_labels_and_found_again(rte: Path, command: Command) -> None:
    code, out, err = command("score", str(rte), "task=qnli")
    assert (code, err) == (0, "")
    path = Path(out.splitlines()[-1])
    record, parent = read_record(path), read_record(rte / RECORD_FILE)
    assert record.cell.method == "bitfit of rte"
    assert (record.cell.task, record.cell.seed, record.cell.study) == ("qnli", 0, "s")
    assert record.hashes.parents == {f"s/{rte.parent.name}/seed0": parent.hashes.delta}
    # the rows are those of RTE, so that predictions and score are the run's own
    assert record.headline == parent.headline
    assert (path.parent / "predictions" / "dev.tsv").read_text() == (rte / "predictions" / "dev.tsv").read_text()
    before = path.stat().st_mtime_ns
    code, out, err = command("score", str(rte), "task=qnli")
    assert (code, err) == (0, "")
    assert out.startswith("already done: accuracy")
    assert path.stat().st_mtime_ns == before
    code, out, err = command("table", "s", "--outputs", str(rte.parents[2]), "--format", "md")
    assert (code, err) == (0, "")
    assert "| bitfit of rte |" in out
    assert "qnli acc" in out
    assert states(rte) == {rte: "done", path.parent: "done"}


def test_several_runs_are_scored_by_one_command(rte: Path, command: Command) -> None:
    other = Path(shutil.copytree(rte, rte.parent / "seed1"))
    record = read_record(rte / RECORD_FILE)
    write_record(replace(record, cell=replace(record.cell, seed=1)), other)
    code, _, err = command("score", str(rte), str(other), "task=qnli")
    assert (code, err) == (0, "")
    assert sorted(folder.name for folder in artefacts(rte)) == ["seed0", "seed1"]


def test_a_run_that_learned_something_else_makes_it_stale(rte: Path, command: Command) -> None:
    assert command("score", str(rte), "task=qnli")[0] == 0
    (made,) = artefacts(rte)
    old, outputs = (made / RECORD_FILE).read_bytes(), str(rte.parents[2])
    sha256 = learn_otherwise(rte)
    assert states(rte) == {rte: "done", made: "stale"}
    code, out, err = command("status", "s", "--outputs", outputs)
    assert (code, err) == (0, "")
    assert "1 stale" in out
    assert f"peftbench score {rte} task=qnli" in out
    assert (
        "bitfit of rte: made of runs that have been run again since" in command("table", "s", "--outputs", outputs)[1]
    )
    assert command("score", str(rte), "task=qnli")[0] == 0
    assert [*read_record(made / RECORD_FILE).hashes.parents.values()] == [sha256]
    (aside,) = made.parent.glob("seed0-*")
    assert (aside / RECORD_FILE).read_bytes() == old, "the earlier result is kept"
    assert states(rte) == {rte: "done", made: "done"}


def test_an_artefact_outlives_its_run_and_is_not_made_of_one_that_is_gone(rte: Path, command: Command) -> None:
    assert command("score", str(rte), "task=qnli")[0] == 0
    (made,) = artefacts(rte)
    shutil.rmtree(rte)
    assert states(rte) == {made: "done"}
    assert line_of(command("score", str(rte), "task=qnli"), 3).endswith("No such file or directory)\n")


def test_a_run_with_a_prompt_is_scored_with_it_and_not_merged(
    trained: Path, run_tiny: Run, command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*masked_checkpoint("bert_base_uncased", tmp_path / "masked"), "readout=prompt", "protocol.max_length=32"]
    words += ["method=full", "study=p", "protocol.lr=0.01", "protocol.precision=fp32"]
    rows = ["data=folder", f"data.path={trained.parents[3] / 'rows'}"]
    rte = run_tiny(*words, *rows, "task=rte").path.parent
    capfd.readouterr()  # of the library that wrote the backbone
    code, out, err = command("score", str(rte), "task=qnli")
    assert (code, err) == (0, "")
    made = Path(out.splitlines()[-1]).parent
    assert (made / "predictions" / "dev.tsv").read_text() == (rte / "predictions" / "dev.tsv").read_text()
    run_tiny(*words, "task=sst2")
    ask = ["merge", "from=p", f"outputs={rte.parents[2]}", "method=full", "merge=average"]
    assert "with a prompt; classifiers are merged" in line_of(command(*ask), 2)


def line_of(said: Said, code: int) -> str:
    assert (said[0], said[1], said[2].count("\n")) == (code, "", 1), said
    return said[2]


def test_other_labels_words_and_parents_are_one_line(rte: Path, command: Command, tmp_path: Path) -> None:
    def refused(code: int, *words: str) -> str:
        return line_of(command("score", *words), code)

    assert "task=wnli: its labels are not_entailment, entailment" in refused(2, str(rte), "task=wnli")
    assert "task=stsb: its labels are scores of [0" in refused(2, str(rte), "task=stsb")
    assert "protocol.lr: not a word of an artefact" in refused(2, str(rte), "task=qnli", "protocol.lr=1")
    assert "task=qnlu: there is no task" in refused(2, str(rte), "task=qnlu")
    assert "has no qnli" in refused(3, str(rte), "task=qnli", "data=sample")
    assert "not a readable record" in refused(3, str(tmp_path), "task=qnli")
    assert not artefacts(rte)
    assert command("score", str(rte), "task=qnli")[0] == 0
    assert "holds no delta" in refused(3, str(artefacts(rte)[0]), "task=qnli")


def test_a_run_that_changes_in_the_middle_leaves_no_artefact(
    rte: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = score.evaluated

    def changes(*arguments: object) -> object:
        learn_otherwise(rte)
        return plain(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(score, "evaluated", changes)
        assert "was run again while" in line_of(command("score", str(rte), "task=qnli"), 3)
    assert not artefacts(rte)
    assert command("score", str(rte), "task=qnli")[0] == 0


def test_one_runner_makes_an_artefact_and_the_next_takes_over_from_a_dead_one(rte: Path, command: Command) -> None:
    assert command("score", str(rte), "task=qnli")[0] == 0
    (made,) = artefacts(rte)
    (made / RECORD_FILE).unlink()  # as if it had been killed before the record
    with Lock(made) as lock:
        assert lock.held
        code, out, _ = command("score", str(rte), "task=qnli")
        assert (code, f"process {os.getpid()}" in out) == (75, True)
        held = json.loads(lock.path.read_text())
    lock.path.write_text(json.dumps({**held, "started": "0"}))
    assert command("score", str(rte), "task=qnli")[0] == 0
    assert artefacts(rte) == [made]
    assert not lock.path.exists()


def test_an_mnli_run_predicts_ax_whose_labels_are_not_public(run_tiny: Run, command: Command, tmp_path: Path) -> None:
    labels = ("entailment", "neutral", "contradiction")
    rows = "".join(f"{i}\ta b {i}\tc {i}\t{labels[i % 3]}\n" for i in range(12))
    for name in ("MNLI/train", "MNLI/dev_matched", "MNLI/dev_mismatched", "AX/AX"):
        path = tmp_path / "glue" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("index\tsentence1\tsentence2\tgold_label\n" + rows)
    mnli = run_tiny("task=mnli", "data=folder", f"data.path={tmp_path / 'glue'}", "protocol.max_steps=1").path.parent
    code, out, err = command("score", str(mnli), "task=ax")
    assert (code, err) == (0, "")
    path = Path(out.splitlines()[-1])
    assert read_record(path).headline.value is None
    texts = [file.read_text().splitlines()[1:] for file in (path.parent, mnli) for file in file.glob("predictions/*")]
    assert [line.split("\t")[1] for line in texts[0]] == [line.split("\t")[1] for line in texts[1]]
    assert command("score", str(mnli), "task=ax")[1].startswith("already done")


@pytest.mark.parametrize("to", [".", "/dev/null"])
@pytest.mark.parametrize("words", [("report", "s"), ("submission", "s", "--method", "bitfit")])
def test_what_is_no_file_is_not_written_over(rte: Path, command: Command, words: tuple[str, ...], to: str) -> None:
    before = Path(to).stat().st_ino
    line = line_of(command(*words, "--outputs", str(rte.parents[2]), "--to", to), 2)
    assert line.startswith(f"--to {to}: ")
    assert Path(to).stat().st_ino == before
