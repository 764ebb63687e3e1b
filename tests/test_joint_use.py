"""What comes after a run on several tasks together: one task's model, its artefacts, the ceiling of a merge."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forgery import Said
from support import TINY
from transformers import AutoModelForSequenceClassification

from peftbench.config import compose
from peftbench.data.rows import rows_of
from peftbench.data.sources import SAMPLE
from peftbench.ground.files import DELTA_FILE
from peftbench.record import read_record
from peftbench.report.records import made_of
from peftbench.runner.delta import Delta
from peftbench.runner.deltas import reload
from peftbench.runner.run import Outcome, read_rows, run
from peftbench.study.verify import verify

Run = Callable[..., Outcome]
Command = Callable[..., Said]
TASKS = ("rte", "sst2", "stsb")  # pairs and single sentences, classes and scores
JOINT = ["task=joint", "task.tasks=[stsb,rte,sst2]"]
TWO = ["task=joint", "task.tasks=[rte,sst2]"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of LoRA on three tasks together, in fp32."""
    folder = tmp_path_factory.mktemp("learned")
    words = [*TINY, *JOINT, "method=lora", "study=s", "protocol.lr=0.01", "protocol.precision=fp32"]
    words += [f"outputs={folder / 'outputs'}", f"cache={folder / 'cache'}", "protocol.max_steps=9"]
    outcome = run(compose.cell_from(words), compose.resolved(compose.load(words)), words)
    assert outcome.error is None, outcome.error
    return outcome.path.parent


def written(folder: Path, split: str) -> np.ndarray:
    """The logits that a run wrote, with five decimals."""
    lines = (folder / "predictions" / f"{split}.tsv").read_text().splitlines()
    return np.array([[float(cell) for cell in line.split("\t")[3:]] for line in lines[1:]])


def test_each_task_s_model_is_applied_predicts_and_is_scored_as_the_run_was(
    learned: Path, command: Command, tmp_path: Path
) -> None:
    code, out, _ = command("apply", str(learned), "--output", str(tmp_path / "plain"))
    assert (code, out.split()) == (0, [str(tmp_path / "plain" / task) for task in TASKS])
    cell = compose.cell_from([*TINY, *JOINT])
    rows = read_rows(rows_of(cell))
    record = read_record(learned / "result.json")
    for task, head in (("rte", ["entailment", "not_entailment"]), ("sst2", ["negative", "positive"]), ("stsb", None)):
        module = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain" / task)
        assert module.config.num_labels == len(head or [1])
        assert head is None or list(module.config.id2label.values()) == head
        columns = {"rte": ["sentence1", "sentence2"], "sst2": ["sentence"], "stsb": ["sentence1", "sentence2"]}[task]
        file = tmp_path / f"{task}.tsv"
        texts = zip(*rows[f"dev_{task}"].texts, strict=True)
        file.write_text("\n".join(["\t".join(columns), *("\t".join(row) for row in texts)]) + "\n")
        code, out, _ = command("predict", str(learned), str(file), f"task={task}")
        assert code == 0
        said = np.array([[float(cell) for cell in line.split("\t")[2:]] for line in out.splitlines()[1:]])
        np.testing.assert_allclose(said, written(learned, f"dev_{task}"), atol=2e-5)
        code, out, err = command("score", str(learned), f"task={task}", "study=scored", f"outputs={tmp_path / 'o'}")
        assert (code, err) == (0, "")
        made = read_record(Path(out.splitlines()[-1]))
        assert made.cell.method == "lora of joint_rte_sst2_stsb"
        assert (
            made.metrics.chosen.items()
            == {
                name.removeprefix(f"{task}_"): value
                for name, value in record.metrics.chosen.items()
                if name.startswith(task)
            }.items()
        )
    code, out, _ = command("apply", str(learned), "task=rte", "--output", str(tmp_path / "one"))
    assert (code, out.strip()) == (0, str(tmp_path / "one"))
    assert (tmp_path / "one" / "config.json").is_file()
    _, tuner, _ = reload(learned, task="stsb")
    assert tuner.trainables()


def line_of(said: Said, code: int = 2) -> str:
    assert (said[0], said[1], said[2].count("\n")) == (code, "", 1), said
    return said[2]


def test_data_that_are_absent_and_a_start_from_other_tasks_are_one_line(
    learned: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", *TINY, "method=lora", "study=x"]
    absent = line_of(command(*words, "task=joint", "task.tasks=[cola,rte]"), code=3)
    assert "data=sample: has no cola" in absent
    for start, tasks, said in (
        (finished, "[rte,sst2]", "learned sst2, not rte, sst2"),
        (learned, "[rte,sst2]", "learned rte, sst2, stsb, not rte, sst2"),
    ):
        line = line_of(command(*words, "task=joint", f"task.tasks={tasks}", f"init_from={start}"))
        assert said in line
    assert "a task without training rows" in line_of(command(*words, "task=ax", f"init_from={learned}"))
    assert "learned rte, sst2, stsb together; task= says which" in line_of(command("predict", str(learned), "x.tsv"))
    assert "task=cola: not what" in line_of(command("predict", str(learned), "x.tsv", "task=cola"))
    assert "lr=1: not a word of this command" in line_of(command("predict", str(learned), "x.tsv", "lr=1"))
    assert "task=cola: not what" in line_of(command("score", str(learned), "task=cola", "data=sample"))
    assert "task= says which" in line_of(command("score", str(learned)))
    assert "learned 3 tasks together, and PEFT's format has one head" in line_of(
        command("export", str(learned), "--to", "adapter")
    )
    assert "flips are of one task" in line_of(command("flips", str(learned), str(learned)))
    assert not list(tmp_path.rglob("result.json"))


def test_a_run_goes_on_from_one_of_the_same_tasks_and_one_task_from_all(
    learned: Path, run_tiny: Run, tmp_path: Path
) -> None:
    again = run_tiny(*JOINT, "method=lora", f"init_from={learned}", "protocol.max_steps=2")
    assert again.error is None, again.error
    alone = run_tiny("task=rte", "method=lora", f"init_from={learned}", "protocol.max_steps=2")
    assert alone.error is None, alone.error
    first = {name: t for name, t in Delta.load(learned / DELTA_FILE).tensors.items() if not name.startswith("head.")}
    for outcome in (again, alone):
        tensors = Delta.load(outcome.path.parent / DELTA_FILE).tensors
        assert all((tensors[name] - first[name]).abs().max() < 0.01 for name in first), "further, not anew"


def test_test_rows_are_predicted_later_and_a_record_is_verified(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SAMPLE, tmp_path / "glue")
    for name in ("RTE", "SST-2"):
        shutil.copy(tmp_path / "glue" / name / "dev.tsv", tmp_path / "glue" / name / "test.tsv")
    words = ["run", *TINY, *TWO, "method=lora", "study=s", "data=folder", "data.path=glue"]
    code, out, err = command(*words)
    assert (code, err) == (0, "")
    path = Path(out.splitlines()[-1])
    assert "already done" in command(*words)[1]
    agreement, _ = verify(path, tmp_path / "scratch")
    assert agreement.verdict == "same", agreement
    before = made_of(read_record(path))
    code, out, err = command(*words, "predict_test=true")
    assert (code, err) == (0, "")
    assert "the test rows were predicted" in out
    assert made_of(read_record(path)) == before, "test rows are no part of what a score was made of"
    names = {file.name for file in (path.parent / "predictions").iterdir()}
    assert names == {f"{split}_{task}.tsv" for task in ("rte", "sst2") for split in ("dev", "test")}


def words_of(outputs: Path, *words: str) -> list[str]:
    return [
        *TINY,
        "protocol.max_steps=3",
        "protocol.lr=0.01",
        f"outputs={outputs}",
        f"cache={outputs.parent / 'c'}",
        *words,
    ]


def test_a_merge_shows_joint_training_or_says_what_makes_it_and_a_table_keeps_it_apart(
    command: Command, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    for task in ("rte", "sst2"):
        words = words_of(outputs, "method=lora", f"task={task}", "study=s")
        run(compose.cell_from(words), compose.resolved(compose.load(words)), words)
    merge = ("merge", "from=s", f"outputs={outputs}", "method=lora", "merge=average", "merge.refit_rows=16")
    code, out, err = command(*merge, "study=before", "merge.heads=kept")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("joint training")]
    made_by = shlex.split(line.partition("peftbench run ")[2])
    other = [*made_by, "method.rank=2"]  # is not theirs
    for line_of_words in (other, made_by):
        code, out, err = command("run", *line_of_words)
        assert (code, err) == (0, "")
    joint = read_record(Path(out.splitlines()[-1]))
    code, out, err = command(*merge, "study=after", "merge.heads=kept")
    assert (code, err) == (0, "")
    assert "peftbench run" not in out
    for task in ("rte", "sst2"):
        (folder,) = (outputs / "after").glob(f"{task}-joint-training-of-lora-*/seed0")
        record = read_record(folder / "result.json")
        assert record.headline.value == joint.metrics.chosen[f"{task}_accuracy"]
        assert list(record.hashes.parents.values()) == [joint.hashes.delta]
    code, table, _ = command("table", "after", "--outputs", str(outputs), "--format", "md")
    assert (code, "| joint training of lora |" in table) == (0, True)
    code, table, _ = command("table", "s", "--outputs", str(outputs), "--format", "md")
    assert code == 0
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in table.splitlines()
        if line.startswith("|")
    }
    assert {"lora", "lora joint"} <= rows.keys()
    assert "joint_rte_sst2 mean (sample)" in rows["method"]
    assert "mean of 2" in rows["method"], "of the tasks, not of the mean, too"
    average = rows["method"].index("mean of 2")
    assert rows["lora"][average] != "–"
    assert rows["lora joint"][average] == "–"
