"""Updates: which runs may be the parents of one, and how they stand in a study."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forgery import Said
from studies import learn_otherwise
from support import TINY, tokens_of, updating

from peftbench.config.parents import check_unchanged, parents_of_update
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.record import Record, read_record, write_record
from peftbench.report import records, table
from peftbench.runner import objectives
from peftbench.runner.delta import Delta, LearnedOn
from peftbench.runner.run import Outcome, objective_of, run
from peftbench.training.evaluation import Evaluator

Run = Callable[..., Outcome]
Command = Callable[..., Said]


def test_seeds_whose_parents_are_seeds_stand_in_one_row(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, "method=head", "protocol.max_steps=2", "seed=0,1"]
    for study, lr in (("old", "1e-3"), ("new", "2e-3")):
        code, _, err = command("run", "-m", *words, f"study={study}", f"protocol.lr={lr}")
        assert code == 0, err
    (old,), (new,) = (list(Path(f"outputs/{study}").glob("*-*")) for study in ("old", "new"))
    made = [f"objective.old={old}/seed${{seed}}", f"init_from={new}/seed${{seed}}", "objective=muscle"]
    sweep = ["run", "-m", *words, *made, "study=update", "objective.teacher=student_wrong,none"]
    code, out, err = command(*sweep)
    assert (code, out.splitlines()[-1]) == (0, "4 cells: 4 done, 0 failed"), err
    rows = table.build(records.read_study(Path("outputs"), "update")).lines
    assert sorted((line.name, line.entries["sst2 acc (sample)"].seeds) for line in rows) == [
        ("head muscle", 2),
        ("head muscle-none", 2),
    ]
    parents = [sorted(record.hashes.parents) for record in records.read_study(Path("outputs"), "update").records]
    assert sorted(f"{one}/seed1".removeprefix("outputs/") for one in (old, new)) in parents
    code, out, err = command("flips", "old", "update", "--new-row", "head muscle")
    assert (code, out.count("seed to seed of")) == (0, 2), err
    assert "4 cells: 4 done (4 of them before), 0 failed" in command(*sweep)[1]
    assert command("status", "update")[1].startswith("update: 4 cells: 4 done")
    command("run", "-m", *words, "study=old", "protocol.lr=1e-3", "rerun=all")
    assert command("status", "update")[1].startswith("update: 4 cells: 4 done"), "the same bits were learned"
    path = old / "seed1" / RECORD_FILE
    write_record(
        dataclasses.replace(read_record(path), hashes=dataclasses.replace(read_record(path).hashes, delta="0")),
        path.parent,
    )
    notes = table.build(records.read_study(Path("outputs"), "update")).notes
    assert "head muscle: made of runs that have been run again since" in notes


def rewritten(run: Path, **changes: Any) -> None:
    record = read_record(run / RECORD_FILE)
    parts = {key: value(record) if callable(value) else value for key, value in changes.items()}
    write_record(dataclasses.replace(record, **parts), run)


def config(part: str, **changes: Any) -> Callable[[Record], dict[str, Any]]:
    return lambda record: {**record.config, part: {**record.config[part], **changes}}


def hashes(**changes: Any) -> Callable[[Record], Any]:
    return lambda record: dataclasses.replace(record.hashes, **changes)


def cell_name(**changes: Any) -> Callable[[Record], Any]:
    return lambda record: dataclasses.replace(record.cell, **changes)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["init_from=null"], "objective=muscle: updates a newer run; give init_from=<folder of that run>"),
        (["objective.old=null"], "objective.old: must be given, as objective.old=<folder of the older run>"),
        (["objective.old=/nowhere"], "objective.old=/nowhere: no delta.safetensors there"),
        (["objective.kind=task"], " is for kind=muscle"),
        (["objective.temperature=0"], "objective.temperature=0: must be greater than 0"),
        (["objective.mix=1.5"], "objective.mix=1.5: must be at most 1"),
        (["objective.teacher=older"], "objective.teacher=older: did you mean old"),
        (["selftrain=list", "shots.total=9"], "selftrain=list: has a teacher of its own"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_an_update_is_one_line(
    words: list[str], line: str, tiny: Callable[..., Cell], finished: Path, older: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny("method=lora", *updating(older, finished), *words)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert line in caught.value.problems[0]


def test_a_regression_has_no_right_answers(run_tiny: Run, tiny: Callable[..., Cell], tmp_path: Path) -> None:
    words = ["task=stsb", "method=head", "protocol.max_steps=1"]
    run = run_tiny(*words, f"outputs={tmp_path / 'scores'}").path.parent
    with pytest.raises(ConfigError, match="task=stsb is a regression, whose answers are not right or wrong") as caught:
        tiny(*words, *updating(run, run))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("key", ["objective.old", "init_from"])
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"status": "diverged"}, "that run diverged; an update is made of finished runs"),
        ({"hashes": hashes(delta="0" * 64)}, "its delta is not the one that its record was made with"),
        ({"cell": cell_name(task="cola")}, "of task=cola, and this cell is of task=sst2"),
        ({"config": config("task", labels=["bad", "good"])}, "of other labels, and this cell is of task=sst2"),
        ({"config": config("readout", kind="prompt")}, "its readout is a prompt, this cell's a classifier"),
        ({"hashes": hashes(tokenizer="0" * 64)}, "objective.old: its run has another tokenizer"),
        (None, "not a readable record (No such file or directory)"),
        ("damaged", "its sha256 does not match"),
    ],
    ids=["status", "delta", "task", "labels", "readout", "tokenizer", "unfinished", "damaged"],
)
def test_a_run_that_cannot_be_a_parent_is_one_line_before_any_cost(
    key: str, changes: Any, line: str, command: Command, finished: Path, older: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    runs = {"objective.old": older, "init_from": finished}
    wrong = shutil.copytree(runs[key], tmp_path / "wrong")
    if changes is None:
        (wrong / RECORD_FILE).unlink()
    elif changes == "damaged":
        (wrong / RECORD_FILE).write_text((wrong / RECORD_FILE).read_text().replace('"done"', '"gone"'))
    else:
        rewritten(wrong, **changes)
    words = [f"{name}={folder}" for name, folder in ({**runs, key: Path("wrong")}).items()]
    code, out, err = command("run", *TINY, "method=lora", "objective=muscle", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert line in err
    assert key in err or "tokenizer" in line
    assert not (tmp_path / "outputs").exists()


def test_an_update_goes_on_with_the_newer_runs_backbone(tiny: Callable[..., Cell], finished: Path, older: Path) -> None:
    with pytest.raises(
        ConfigError, match="of model=bert_tiny, and an update goes on with that backbone, not bert_mini"
    ):
        tiny("model=bert_mini", "method=lora", *updating(older, finished))


def test_a_parent_that_learns_something_else_meanwhile_is_refused(
    tiny: Callable[..., Cell], finished: Path, older: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(older, tmp_path / "other")
    cell = tiny("method=lora", *updating(other, finished))
    rewritten(other, hashes=hashes(delta="0" * 64))
    with pytest.raises(DataError, match=r"objective.old=.*other: was run again since"):
        check_unchanged(parents_of_update(cell))
    rewritten(
        other,
        hashes=read_record(older / RECORD_FILE).hashes,
        config=config("model", config={"max_position_embeddings": 16, "num_hidden_layers": 4}),
    )
    with pytest.raises(ConfigError, match=r"protocol.max_length=24: the backbone of objective.old has 16 positions"):
        objectives.check(parents_of_update(cell), cell.protocol.max_length)


def test_a_teacher_that_is_run_again_before_it_answers_is_not_recorded_as_the_one_before(
    tiny: Callable[..., Cell], finished: Path, older: Path, tmp_path: Path
) -> None:
    newer = shutil.copytree(finished, tmp_path / "s" / "cell" / "seed0")
    cell, again = tiny("method=lora", *updating(older, newer)), []

    def between_batches() -> None:
        if not again:  # the older run answers; the newer one is read after that
            again.append(learn_otherwise(newer))

    with pytest.raises(DataError, match=r"init_from=.*seed0: was run again since; the same command goes on"):
        objective_of(cell, tokens_of(cell)["train"], between_batches)
    assert again


def test_a_start_that_is_run_again_before_it_is_read_is_refused(
    tiny: Callable[..., Cell], finished: Path, tmp_path: Path
) -> None:
    start = shutil.copytree(finished, tmp_path / "s" / "cell" / "seed0")
    words = ["method=lora", f"init_from={start}"]
    cell = tiny(*words)
    learn_otherwise(start)
    with pytest.raises(DataError, match=r"init_from=.*seed0: was run again since"):
        run(cell, {}, words)


def test_a_newer_run_on_other_weights_is_refused_before_a_teacher_answers(
    run_tiny: Run, finished: Path, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = shutil.copytree(finished, tmp_path / "s" / "cell" / "seed0")
    delta = Delta.load(elsewhere / DELTA_FILE)
    facts = dataclasses.replace(delta.facts, model=LearnedOn(delta.facts.model.name, "0" * 64))
    sha256 = Delta(delta.tensors, facts).save(elsewhere / DELTA_FILE)
    rewritten(elsewhere, hashes=hashes(delta=sha256, weights="0" * 64))
    monkeypatch.setattr(Evaluator, "predict", lambda *_: pytest.fail("a teacher answered"))
    with pytest.raises(DataError, match=r"learned on bert_tiny \(other weights\)"):
        run_tiny("method=lora", *updating(older, elsewhere))
