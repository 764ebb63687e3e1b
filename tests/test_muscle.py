"""MUSCLE: the loss row by row, the runs that teach it, and what a training leaves."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import Said
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import tokens_of, updating
from torch.nn.functional import cross_entropy

from peftbench.config.parents import row_of
from peftbench.config.spec import Cell
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.record import read_record
from peftbench.report import flips
from peftbench.runner import deltas
from peftbench.runner.run import Outcome, objective_of
from peftbench.study import verify
from peftbench.training.evaluation import Evaluator
from peftbench.training.muscle import Muscle

Run = Callable[..., Outcome]
Command = Callable[..., Said]
TEACHERS = ("student_wrong", "old_right", "old", "none")
NOTHING = ["protocol.lr=1e-12"]  # a training after which everything is as before


def by_hand(z: Any, y: Any, old: Any, new: Any, teacher: str, temperature: float, mix: float) -> float:
    """The paper's loss, a row at a time, in 64 bits."""

    def softmax(row: Any) -> list[float]:
        top = max(row)
        powers = [math.exp(value - top) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for row, label, first, second in zip(z.tolist(), y.tolist(), old.tolist(), new.tolist(), strict=True):
        wrong, right = row.index(max(row)) != label, first.index(max(first)) == label
        by_old = {"student_wrong": wrong, "old_right": right, "old": True, "none": False}[teacher]
        taught, ours = (softmax([value / temperature for value in a]) for a in (first if by_old else second, row))
        distilled = sum(p * math.log(p / q) for p, q in zip(taught, ours, strict=True))
        weight = 0.0 if teacher == "none" else mix
        total += weight * distilled - (1 - weight) * math.log(softmax(row)[label])
    return total


def logits(random: np.random.Generator, rows: int, classes: int) -> torch.Tensor:
    return torch.from_numpy(3 * random.standard_normal((rows, classes)))


def summed(objective: Muscle, z: torch.Tensor, y: torch.Tensor, rows: np.ndarray) -> tuple[float, torch.Tensor]:
    """The loss, and its gradient."""
    z = z.clone().requires_grad_(True)
    loss = objective.loss(z, y, rows)
    loss.backward()
    assert z.grad is not None
    return float(loss.detach()), z.grad


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 9),
    classes=st.integers(2, 4),
    teacher=st.sampled_from(TEACHERS),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    mix=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_the_loss_is_the_papers_row_by_row(
    seed: int, size: int, classes: int, teacher: Any, temperature: float, mix: float
) -> None:
    random = np.random.default_rng(seed)
    old, new = logits(random, size + 3, classes), logits(random, size + 3, classes)
    rows = random.permutation(size + 3)[:size]  # of train's rows those of a batch
    z, y = logits(random, size, classes), torch.from_numpy(random.integers(0, classes, size))
    objective = Muscle(teacher, temperature, mix, old, new)
    loss, gradient = summed(objective, z, y, rows)
    assert loss == pytest.approx(by_hand(z, y, old[rows], new[rows], teacher, temperature, mix), rel=1e-9, abs=1e-9)
    parts = objective.parts(z, y, rows)
    if teacher == "none":
        assert loss == float(cross_entropy(z, y, reduction="sum"))
        assert parts == {}
        return
    assert loss == pytest.approx(
        mix * float(parts["kl_old"] + parts["kl_new"]) + (1 - mix) * float(parts["cross_entropy"]), abs=1e-9
    )
    assert min(float(parts["kl_old"]), float(parts["kl_new"])) >= -1e-9
    if teacher == "student_wrong":
        assert int(parts["masked"]) == int((z.argmax(1) != y).sum()), "of the student alone, never of the teachers"
    # no gradient goes through the choice of the teacher: with every row's own fixed it is the same
    fixed = torch.where(taught_by_old(teacher, z, y, old[rows])[:, None], old[rows], new[rows])
    assert torch.allclose(gradient, summed(Muscle("old", temperature, mix, fixed, fixed), z, y, np.arange(size))[1])
    order = random.permutation(size)
    assert summed(objective, z[order], y[order], rows[order])[0] == pytest.approx(loss, abs=1e-9)


def taught_by_old(teacher: str, z: torch.Tensor, y: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return {"student_wrong": z.argmax(1) != y, "old_right": old.argmax(1) == y, "old": y == y}[teacher]


@given(seed=st.integers(0, 10**6), teacher=st.sampled_from(TEACHERS[:3]))
def test_of_equal_teachers_it_is_plain_distillation_whoever_is_asked(seed: int, teacher: Any) -> None:
    random = np.random.default_rng(seed)
    taught, z, y = logits(random, 6, 3), logits(random, 6, 3), torch.from_numpy(random.integers(0, 3, 6))
    plain = summed(Muscle("old", 2.0, 1.0, taught, taught), z, y, np.arange(6))
    one = summed(Muscle(teacher, 2.0, 1.0, taught, taught), z, y, np.arange(6))
    assert one[0] == pytest.approx(plain[0])
    assert torch.allclose(one[1], plain[1])


def test_a_student_that_is_the_newer_run_and_right_everywhere_learns_nothing() -> None:
    random = np.random.default_rng(0)
    new, old = logits(random, 8, 3), logits(random, 8, 3)
    y = new.argmax(1)
    loss, gradient = summed(Muscle("student_wrong", 2.0, 1.0, old, new), new, y, np.arange(8))
    assert loss == 0.0
    assert float(gradient.abs().max()) < 1e-15
    y[3] = (y[3] + 1) % 3
    gradient = summed(Muscle("student_wrong", 2.0, 1.0, old, new), new, y, np.arange(8))[1]
    assert [row for row in range(8) if float(gradient[row].abs().max()) > 1e-6] == [3]


@pytest.fixture
def update(run_tiny: Run, finished: Path, older: Path) -> Run:
    """Run an update of the finished run; overrides come on top."""
    return lambda *words: run_tiny("method=lora", *updating(older, finished), *words)


def answers_of(outcome: Outcome | Path) -> list[list[float]]:
    folder = outcome if isinstance(outcome, Path) else outcome.path.parent
    lines = (folder / "predictions" / "dev.tsv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split("\t")[3:]] for line in lines]


def log_of(outcome: Outcome) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (outcome.path.parent / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_training_begins_as_the_newer_run_ended_head_and_all(method: str, update: Run, finished: Path) -> None:
    """Also where another method goes on: the newer run is then merged first."""
    same = update(*NOTHING, f"method={method}")
    assert same.error is None, same.error
    np.testing.assert_allclose(answers_of(same), answers_of(finished), atol=0.03)  # bf16
    first = log_of(same)[0]
    assert 0 < first["masked"] < 1
    assert first["kl_new"] < first["kl_old"] / 10


def test_a_record_names_its_parents_by_what_they_learned(
    update: Run, finished: Path, older: Path, tmp_path: Path, tiny: Callable[..., Cell]
) -> None:
    outcome = update("objective.mix=0.5")
    record = read_record(outcome.path)
    learned = [read_record(run / RECORD_FILE).hashes.delta for run in (finished, older)]
    assert sorted(record.hashes.parents.values()) == sorted(learned)
    for line in log_of(outcome):
        assert line["loss"] == pytest.approx(
            (line["kl_old"] + line["kl_new"] + line["cross_entropy"]) / 2, rel=1e-5, abs=1e-6
        )
        assert 0 <= line["masked"] <= 1
    elsewhere = shutil.copytree(older, tmp_path / "elsewhere")
    there, here = (tiny("method=lora", *updating(old, finished), "objective.mix=0.5") for old in (elsewhere, older))
    assert there.fingerprint == here.fingerprint == record.fingerprint
    assert row_of(here) == record.row != record.fingerprint
    assert verify.verify(outcome.path, tmp_path / "again")[0].verdict == "same"


def test_what_is_not_asked_is_not_in_the_fingerprint(tiny: Callable[..., Cell], finished: Path, older: Path) -> None:
    def made(*words: str) -> str:
        return tiny("method=lora", *updating(older, finished), *words).fingerprint

    assert tiny("objective.temperature=3", "objective.mix=0.1").fingerprint == tiny().fingerprint
    same = [made("objective.teacher=none", *words) for words in ([], ["objective.old=null"], ["objective.mix=0"])]
    assert len(set(same)) == 1
    others = [[f"objective.teacher={word}"] for word in TEACHERS]
    others += [["objective.temperature=1"], ["objective.mix=0.5"], [f"objective.old={finished}"]]
    assert len({made(*words) for words in others}) == 7
    assert made() == made("objective.temperature=2.0", "seed=3")


def test_more_steps_of_the_tasks_loss_are_what_no_distillation_leaves(update: Run) -> None:
    """The control: as many steps from the same start, of the task's loss alone."""
    words = ["protocol.precision=fp32"]
    alone, unmixed = (update(*words, word) for word in ("objective.teacher=none", "objective.mix=0"))
    one, other = (load_file(outcome.path.parent / DELTA_FILE) for outcome in (alone, unmixed))
    assert all(torch.allclose(one[name], other[name], atol=1e-7) for name in one)
    assert list(log_of(alone)[0])[:3] == ["step", "loss", "lr"], "a control has no parts"
    assert len(read_record(alone.path).hashes.parents) == 1


def test_teachers_answer_every_row_once_without_dropout(
    tiny: Callable[..., Cell], finished: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    plain = Evaluator.predict
    monkeypatch.setattr(Evaluator, "predict", lambda self, tokens: (asked.append(len(tokens)), plain(self, tokens))[1])
    cell = tiny("method=lora", *updating(older, finished), "protocol.precision=fp32")
    train = tokens_of(cell)["train"]
    random = torch.get_rng_state()
    first, second = (objective_of(cell, train) for _ in range(2))
    assert asked == [len(train)] * 4
    assert torch.equal(random, torch.get_rng_state())
    assert isinstance(first, Muscle)
    assert isinstance(second, Muscle)
    assert torch.equal(first.old, second.old)
    assert torch.equal(first.new, second.new)
    model = deltas.reload(older)[0]
    model.module.eval()
    ids = torch.tensor([train.ids[train.starts[5] : train.starts[6]].tolist()])
    with torch.no_grad():
        expected = model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.testing.assert_close(first.old[5:6], expected, atol=1e-4, rtol=0)
    assert not torch.allclose(first.old, first.new, atol=0.01)


def words_of_two_kinds(folder: Path) -> list[str]:
    """Rows of five words, most of the label's kind, which two seeds learn differently; the overrides that read them."""
    random = np.random.default_rng(0)
    for name in ("train", "dev"):
        lines = ["sentence\tlabel"]
        for label in random.integers(0, 2, 64):
            kinds = np.where(random.random(5) < 0.7, label, 1 - label)
            lines.append(" ".join(f"{('bad', 'good')[kind]}{random.integers(3)}" for kind in kinds) + f"\t{label}")
        path = folder / "SST-2" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return ["data=folder", f"data.path={folder}", "data.limit=null"]


def test_rows_that_the_newer_run_breaks_flip_back(run_tiny: Run, tmp_path: Path) -> None:
    """Two seeds of one cell: the second, taught by the first, breaks fewer of its right answers than before."""
    words = [*words_of_two_kinds(tmp_path / "rows"), "method=full", "protocol.lr=1e-3", "protocol.max_steps=32"]
    old, new = (run_tiny(*words, f"seed={seed}", f"outputs={tmp_path / str(seed)}") for seed in (0, 1))
    taught = run_tiny(*words, *updating(old.path.parent, new.path.parent), "seed=1", "objective.teacher=old")

    def negative(outcome: Outcome) -> float:
        before, after = (flips.answers(one.path.parent, read_record(one.path)) for one in (old, outcome))
        return float(flips.measures(flips.per_row(before, after).mean(axis=1, dtype=np.float64))["NFR"])

    assert negative(taught) < negative(new)
    log = log_of(taught)
    assert log[-1]["kl_old"] < log[0]["kl_old"] / 2
    assert {line["masked"] for line in log} == {1.0}
    assert {line["kl_new"] for line in log} == {0.0}


def test_a_selection_scores_entries_by_the_same_loss(update: Run) -> None:
    outcome = update("method=fish", "budget=50", "method.batches=2")
    assert outcome.error is None, outcome.error
    assert outcome.record.counts is not None
    assert outcome.record.counts.backbone == 50
