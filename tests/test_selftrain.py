"""LiST: sessions of self-training as phases of one run, and what rows without labels are worth to labelled ones."""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import assemble, logged, tokens_of, values, what_is_left
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from peftbench import papers
from peftbench.backbone.model import load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data.rows import POOL, rows_of
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import DELTA_FILE
from peftbench.record import read_record
from peftbench.report.records import name_of
from peftbench.runner import deltas, readouts
from peftbench.runner.counts import count_cell
from peftbench.runner.delta import HEAD
from peftbench.runner.run import Outcome, read_rows
from peftbench.runner.selftrain import Sessions
from peftbench.study.reproduce import cells_of_table
from peftbench.training.objective import Objective
from peftbench.training.selftraining import MetaWeights, Reads, SelfTraining, alignments, divergence, trained
from peftbench.training.stopping import Stopped
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
FEW = ["shots.total=12", "method=linear_adapter", "method.width=4", "protocol.precision=fp32", "protocol.lr=1e-3"]
FEW += ["protocol.max_steps=2"]
PROMPT = ["readout=prompt", "readout.head=all", "protocol.max_length=32"]
LIST = ["selftrain=list", "selftrain.sessions=2", "selftrain.steps=4", "selftrain.epochs=1", "selftrain.batch_size=6"]
LIST += ["selftrain.meta_after=0.5"]


def two_steps(each: Any, known: Any, parameters: Mapping[str, torch.Tensor], rows: int) -> torch.Tensor:
    """-dL/deps_i after a virtual step of 1 on sum_i eps_i KL_i, differentiated through, at eps = 0."""
    leaves = {name: p.clone().requires_grad_(True) for name, p in parameters.items()}
    eps = torch.zeros(rows, dtype=torch.float64, requires_grad=True)
    steps = torch.autograd.grad((eps * each(leaves)).sum(), list(leaves.values()), create_graph=True)
    moved = {name: p - step for (name, p), step in zip(leaves.items(), steps, strict=True)}
    return -torch.autograd.grad(known(moved), eps)[0]


def test_one_product_is_the_two_step_differentiation(tiny: Callable[..., Cell]) -> None:
    """Of a transformer with adapters and a head, in 64 bits."""
    model, tuner, trainer = assemble(tiny(*FEW, "method.std=0.1"))
    model.module.double().eval()
    assert trainer.train is not None
    batch, others = (trainer.forward.batch(trainer.train, rows) for rows in (np.arange(4), np.arange(4, 10)))
    taught = torch.rand(6, 2, dtype=torch.float64).softmax(dim=1)
    reads = Reads(model)

    def logits(parameters: Any, batch: Any) -> torch.Tensor:
        return functional_call(reads, parameters, (batch.inputs,))

    def each(parameters: Any) -> torch.Tensor:
        return divergence(logits(parameters, others), taught)

    def known(parameters: Any) -> torch.Tensor:
        return cross_entropy(logits(parameters, batch), batch.labels)

    parameters = trained(reads, tuner)
    assert len(parameters) == len(tuner.trainables()) + len(dict(model.head()))
    with sdpa_kernel(SDPBackend.MATH):
        fast, slow = alignments(each, known, parameters), two_steps(each, known, parameters, 6)
    assert float((fast - slow).norm() / slow.norm()) < 1e-10
    weigh = MetaWeights(model, tuner, nullcontext)
    weights = weigh(batch, others, taught)
    assert torch.allclose(weights, slow.clamp(min=0) / slow.clamp(min=0).sum())
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    swapped = trainer.forward.batch(trainer.train, np.arange(4, 10)[order.numpy()])
    assert torch.allclose(weigh(batch, swapped, taught[order]), weights[order], atol=1e-9)
    right = nn.functional.one_hot(batch.labels, 2).double()
    agreeing, contradicting = weigh(batch, batch, right), weigh(batch, batch, 1 - right)
    assert float(agreeing.sum()) == pytest.approx(1.0)
    assert float(contradicting.sum()) in (0.0, pytest.approx(1.0))
    one = trainer.forward.batch(trainer.train, np.arange(1))
    assert float(weigh(one, one, 1 - right[:1])) == 0.0, "a label that contradicts every labelled row is worth nothing"


def test_the_loss_of_a_session(tiny: Callable[..., Cell]) -> None:
    taught = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    labels = torch.tensor([0, 1])
    kl = (torch.tensor(taught) * (torch.tensor(taught).log() - logits.log_softmax(1))).sum(1)
    given: list[torch.Tensor | None] = [None, torch.tensor([0.25, 0.75]), torch.zeros(2)]
    losses = [SelfTraining(3, taught, lambda rows, w=w: w).loss(logits, labels, np.array([3, 4])) for w in given]
    assert torch.allclose(losses[0], kl.sum())
    assert torch.allclose(losses[1], 2 * (kl * torch.tensor([0.25, 0.75])).sum())
    assert not losses[2].requires_grad
    known = SelfTraining(3, taught, lambda rows: None).loss(logits, labels, np.array([0, 2]))
    assert torch.allclose(known, cross_entropy(logits, labels, reduction="sum"))


def test_a_step_of_no_weight_changes_nothing(tiny: Callable[..., Cell]) -> None:
    class Nothing(Objective):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
            return torch.zeros(()) if rows[0] == 0 else logits.sum()

    cell = tiny(*FEW)
    model, tuner, plain = assemble(cell)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, plain.train, {}, "accuracy", 0, objective=Nothing())
    trainer.begin(total=4)
    trainer.step(0, np.arange(1, 5))
    before, moments = values(model), {id(p): s["exp_avg"].clone() for p, s in trainer.optimizer.state.items()}
    trainer.step(1, np.arange(4))
    assert trainer.fit.steps == 2
    assert all(torch.equal(p, before[name]) for name, p in values(model).items())
    assert all(torch.equal(s["exp_avg"], moments[id(p)]) for p, s in trainer.optimizer.state.items())


def test_no_session_is_the_teacher(run_tiny: Run) -> None:
    teacher, alone = run_tiny(*FEW), run_tiny(*FEW, "selftrain=list", "selftrain.sessions=0")
    assert alone.error is None, alone.error
    one, other = (load_file(outcome.path.parent / DELTA_FILE) for outcome in (teacher, alone))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("words", [[], ["selftrain.fresh=false", "readout=prompt", "protocol.max_length=32"]])
def test_sessions_are_phases_of_one_run_that_goes_on_where_it_was_stopped(
    words: list[str], run_tiny: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [*FEW, *LIST, *words, "checkpoint_every=0"]
    whole = run_tiny(*words, "study=whole")
    assert whole.error is None, whole.error
    record = read_record(whole.path)
    phases = record.budget["phases"]
    assert [phase["step"] for phase in phases] == [2, 6, 6]
    assert [one.step for one in record.metrics.evaluations] == [2, 8, 14]
    assert record.metrics.selected == record.metrics.evaluations[-1]
    assert POOL in record.hashes.data

    plain, calls = Trainer.step, [0]

    def step(self: Trainer, number: int, *rest: Any) -> None:
        calls[0] += 1
        if calls[0] == 12:  # in the second session, where rows are weighed
            os.kill(os.getpid(), signal.SIGTERM)
        plain(self, number, *rest)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Stopped):
        run_tiny(*words, "study=stopped")
    stopped = run_tiny(*words, "study=stopped")
    assert calls[0] == 14
    (first, first_files), (second, second_files) = what_is_left(whole), what_is_left(stopped)
    for left in (first, second):
        del left["cell"]["study"]
    assert first == second
    assert first_files["predictions/dev.tsv"] == second_files["predictions/dev.tsv"]
    assert logged(whole) == logged(stopped)


def test_a_session_without_rows_without_labels_is_training_on_the_labelled_ones(run_tiny: Run) -> None:
    """By the session's own rate, from the backbone's weights, whatever the teacher was."""
    words = [*FEW, *PROMPT]
    alone = run_tiny(*words, "protocol.lr=2e-3", "protocol.max_steps=null", "protocol.epochs=3", "protocol.warmup=0")
    session = ["selftrain=list", "selftrain.sessions=1", "selftrain.steps=0", "selftrain.epochs=3", "selftrain.lr=2e-3"]
    taught = run_tiny(*words, *session)
    one, other = (load_file(outcome.path.parent / DELTA_FILE) for outcome in (alone, taught))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert taught.record.metrics.chosen == alone.record.metrics.chosen


ABLATIONS = {
    "linear_adapter prompt-all list 12 rows": [],
    "linear_adapter prompt-all list-uniform 12 rows": ["selftrain.weights=uniform"],
    "linear_adapter prompt-all list-hard 12 rows": ["selftrain.labels=hard"],
    "linear_adapter prompt-all list-kept 12 rows": ["selftrain.fresh=false"],
    "linear_adapter list 12 rows": ["readout=classifier", "readout.head=trains"],
    "linear_adapter prompt-all 12 rows": ["selftrain=none"],
}


def test_the_method_and_its_ablations_are_rows_of_their_own_and_leave_the_encoder_alone(
    run_tiny: Run, tiny: Callable[..., Cell]
) -> None:
    """What is stored is the light-weight part and the head; the encoder's own weights are the same, bit for bit."""
    left: dict[str, dict[str, torch.Tensor]] = {}
    for name, words in ABLATIONS.items():
        outcome = run_tiny(*FEW, *PROMPT, *LIST, *words)
        assert outcome.record.status == "done", outcome.error
        assert name_of(outcome.record) == name
        left[name] = load_file(outcome.path.parent / DELTA_FILE)
        model = deltas.reload(outcome.path.parent)[0]
        head = {f"{HEAD}{key}" for key, _ in model.head()}
        assert head < left[name].keys()
        assert {key.rpartition(".")[2] for key in left[name].keys() - head} == {"adapter_down", "adapter_up"}
        cell = tiny(*FEW, *PROMPT, *LIST, *words)
        readout = readouts.made(cell.readout, cell.task, cell.model, None)
        before = values(load_model(cell.model, cell.task.num_labels, cell.seed, readout)[0])
        after = values(model)
        assert all(torch.equal(before[key], after[key]) for key, _ in model.backbone() if key in before)
    every = [{key: p.numpy().tobytes() for key, p in tensors.items()} for tensors in left.values()]
    assert all(one != other for i, one in enumerate(every) for other in every[:i])


def test_the_pool_is_seen_again_and_again_and_may_be_smaller_than_a_batch(tiny: Callable[..., Cell]) -> None:
    for size, expected in ((6, 6), (100, 36)):
        cell = tiny(*FEW, "selftrain=list", "selftrain.steps=9", f"selftrain.batch_size={size}")
        tokens = tokens_of(cell)
        sessions = Sessions(cell.selftrain, cell.protocol, tokens["train"], tokens[POOL], 2, 0)
        assert (len(tokens["train"]), len(tokens[POOL])) == (12, 36)
        steps = sessions.drawn(1).reshape(9, expected)
        passes = steps.reshape(-1, 36) if size == 100 else steps[:6].reshape(1, 36)
        assert all(sorted(rows) == list(range(36)) for rows in passes.tolist())
        assert not np.array_equal(steps, sessions.drawn(2).reshape(9, expected)), "another order in every session"
        assert np.array_equal(steps, sessions.drawn(1).reshape(9, expected))


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_a_teacher_hands_on_its_probabilities_or_its_most_probable_class(
    labels: str, tiny: Callable[..., Cell]
) -> None:
    cell = tiny(*FEW, "selftrain=list", f"selftrain.labels={labels}")
    _, _, teacher = assemble(cell)
    tokens = tokens_of(cell)
    sessions = Sessions(cell.selftrain, cell.protocol, tokens["train"], tokens[POOL], 2, 0)
    rows = np.array([7, 3, 7])
    taught = sessions.taught(teacher, rows)
    logits = torch.from_numpy(teacher.evaluator.predict(tokens[POOL]))[rows]
    expected = logits.softmax(1) if labels == "soft" else nn.functional.one_hot(logits.argmax(1), 2).float()
    np.testing.assert_allclose(taught, expected.numpy(), atol=1e-6)


def test_any_method_is_the_light_weight_part(run_tiny: Run) -> None:
    """One that has a forward mode with meta weights, the others with uniform ones."""
    for words in (["method=lora"], ["method=id3", "budget=50", "selftrain.weights=uniform"]):
        assert run_tiny("shots.total=12", *LIST, "protocol.max_steps=2", *words).record.status == "done"


@pytest.mark.skipif(not find_spec("peft"), reason="peft is not installed")
def test_a_method_without_a_forward_mode_is_refused_before_anything_is_trained(run_tiny: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights=meta: method=c3a .* cannot be differentiated forwards; give"):
        run_tiny("shots.total=12", *LIST, "method=c3a")
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["selftrain=list"], "selftrain=list: no row of train is without a label; give shots.total"),
        (["selftrain=list", "task=stsb", "task.headline=pearson", "shots.total=9"], "task=stsb is a regression"),
        (["selftrain=list", "shots.total=9", "protocol.accumulation=2"], "protocol.accumulation=2: selftrain=list"),
        (
            ["selftrain=list", "shots.total=9", "selftrain.steps=0", "selftrain.epochs=0"],
            "a session would train nothing",
        ),
        (["selftrain=list", "shots.total=9", "method=id3", "budget=50"], "selftrain.weights=meta: method=id3 trains"),
        (["selftrain=list", "shots.total=48"], "selftrain=list: all 48 rows of train have labels, none is left"),
    ],
)
def test_what_is_not_possible_is_one_line(words: list[str], line: str, tiny: Callable[..., Cell]) -> None:
    def planned() -> None:
        cell = tiny(*words)
        count_cell(cell)
        read_rows(rows_of(cell))

    with pytest.raises(ConfigError, match=line) as caught:
        planned()
    assert len(caught.value.problems) == 1, caught.value.problems


def test_the_papers_protocol_composes() -> None:
    cell = compose.cell_from(["protocol=list", "shots=list", "selftrain=list", "readout=prompt", "readout.head=all"])
    assert cell.protocol.steps(30) == 400
    table = cells_of_table(papers.load("list"), [], None, ["study=list"])
    assert len(table.first) == 4 * 3 * 5
    assert "scores are not public" in table.missing[0]
    assert compose.cell_from(table.first[-1]).shots.total == 30
