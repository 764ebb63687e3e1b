"""`task=joint`: one delta for several tasks with a head for each, in batches of one task."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import Said
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TINY, Signal, assemble, logged, tokens_of

from peftbench.backbone.heads import TASK, Heads, leave_one
from peftbench.backbone.model import build
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.config.tasks import JointTask
from peftbench.data.batches import epoch_order
from peftbench.data.joint import joined, order_of
from peftbench.data.tokens import Mix, Tokens
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import CHECKPOINT_FILE, DELTA_FILE
from peftbench.record import MEASURED, read_record
from peftbench.runner import run as runner
from peftbench.runner.counts import count_cell
from peftbench.runner.delta import Delta
from peftbench.runner.run import Outcome, learner_of, run
from peftbench.training.stopping import Stopped
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
Command = Callable[..., Said]
TASKS = ("rte", "sst2", "stsb")  # pairs and single sentences, classes and scores
JOINT = ["task=joint", "task.tasks=[stsb,rte,sst2]"]
TWO = ["task=joint", "task.tasks=[rte,sst2]"]
METRICS = {"rte_accuracy", "sst2_accuracy", "stsb_pearson", "stsb_spearman", "mean"}
METHODS = {
    "full": ["method=full", "protocol.epochs=1", "protocol.max_steps=null"],
    "bitfit": ["method=bitfit", "task.temperature=5"],
    "lora": ["method=lora", "protocol.selection=best_dev", "protocol.evaluate_every=2"],
    "id3": ["method=id3", "budget=300", "protocol.weight_decay=0.1"],
    "d3": ["method=d3", "budget=300", "method.batches=3"],
    "houlsby": ["method=houlsby", "method.width=4", "protocol.accumulation=2"],
}


def left(outcome: Outcome) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record without what is measured and where it lies, and every other file that others read."""
    raw = asdict(read_record(outcome.path))
    for key in (*MEASURED, "overrides", "config"):
        del raw[key]
    paths = [outcome.path.parent / DELTA_FILE, *sorted((outcome.path.parent / "predictions").iterdir())]
    return raw, {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_several_tasks_and_a_stopped_run_ends_as_an_undisturbed_one(
    name: str, run_tiny: Run, tiny: Callable[..., Cell], signal_at: Signal, tmp_path: Path
) -> None:
    words = [*JOINT, "protocol.max_steps=10", "protocol.lr=0.01", *METHODS[name]]
    whole = run_tiny(*words, f"outputs={tmp_path / 'whole'}")
    assert whole.error is None, whole.error
    record = whole.record
    assert record.cell.task == "joint_rte_sst2_stsb"
    assert record.metrics.chosen.keys() == METRICS
    mean = np.mean([record.metrics.chosen[f"{task}"] for task in ("rte_accuracy", "sst2_accuracy", "stsb_pearson")])
    assert record.headline.value == record.metrics.chosen["mean"] == pytest.approx(float(mean))
    assert record.headline.standard_error is not None
    assert 0 < record.headline.standard_error < 0.2
    assert {path.name for path in (whole.path.parent / "predictions").iterdir()} == {f"dev_{t}.tsv" for t in TASKS}
    counts = count_cell(tiny(*words))
    assert record.counts is not None
    assert (record.counts.backbone, record.counts.head) == (counts.backbone, counts.head)
    stored = Delta.load(whole.path.parent / DELTA_FILE).named("head.")
    assert stored.keys() == {f"classifier.task_{task}.{part}" for task in TASKS for part in ("weight", "bias")}
    signal_at(3)
    with pytest.raises(Stopped):
        run_tiny(*words, f"outputs={tmp_path / 'broken'}")
    assert len(list((tmp_path / "broken").rglob(CHECKPOINT_FILE))) == 1
    signal_at(0)
    resumed = run_tiny(*words, f"outputs={tmp_path / 'broken'}")
    assert left(resumed) == left(whole)
    assert logged(resumed) == logged(whole)


def made_up(sizes: list[int], temperature: float, seed: int) -> Tokens:
    """Rows of several tasks, as long as chance has it."""
    lengths = np.random.default_rng(seed).integers(3, 20, sum(sizes))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    ids = np.zeros(starts[-1], dtype=np.int32)
    return Tokens("train", ids, starts, lengths.astype(np.int32), None, 0, "", Mix(tasks, temperature))


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 120), min_size=2, max_size=5),
    batch_size=st.integers(1, 16),
    bucketing=st.booleans(),
    temperature=st.sampled_from([1.0, 2.0, 5.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_batches_are_of_one_task_and_each_task_s_are_those_of_its_own_run(
    sizes: list[int], batch_size: int, bucketing: bool, temperature: float, seed: int
) -> None:
    tokens = made_up(sizes, temperature, seed)
    assert tokens.mix is not None
    own = [-(-size // batch_size) for size in sizes]
    epochs = [order_of(tokens, batch_size, bucketing, seed, epoch) for epoch in range(3)]
    per_epoch = np.zeros((3, len(sizes)), dtype=int)
    seen: list[list[tuple[int, ...]]] = [[] for _ in sizes]
    for epoch, batches in enumerate(epochs):
        assert len(batches) == sum(own), "a run takes as many steps as its tasks by themselves"
        for batch in batches:
            (task,) = set(tokens.mix.tasks[batch])
            per_epoch[epoch, task] += 1
            seen[task].append(tuple(batch))
    assert (per_epoch == per_epoch[0]).all()
    assert (per_epoch >= 1).all()
    for task, rows in enumerate(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])):
        wanted = [
            tuple(rows[batch])
            for epoch in range(1 + len(seen[task]) // own[task])
            for batch in epoch_order(tokens.lengths[rows], batch_size, bucketing, seed, epoch)
        ]
        assert sorted(seen[task]) == sorted(wanted[: len(seen[task])]), "one own epoch after the other"
    if temperature == 1:
        assert per_epoch[0].tolist() == own, "every row once"
    else:
        order = np.argsort(own, kind="stable")
        shares = per_epoch[0][order] / np.array(own)[order]
        smallest, largest = shares[0], shares[-1]
        assert smallest >= largest - 1e-9 or own[order[0]] == own[order[-1]], "small tasks come more often"
        assert (np.diff(per_epoch[0][order]) >= -1).all(), "and large ones are still at least as many"


def test_the_batches_of_an_epoch_are_mixed_and_follow_from_the_seed(tiny: Callable[..., Cell]) -> None:
    tokens = made_up([80, 80], 1.0, 0)
    assert tokens.mix is not None
    orders = [[int(tokens.mix.tasks[b[0]]) for b in order_of(tokens, 8, True, seed, 0)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert np.count_nonzero(np.diff(orders[0])) >= 3, "not one task after the other"


def test_a_step_moves_the_backbone_and_its_task_s_head_alone(tiny: Callable[..., Cell]) -> None:
    cell = tiny(*JOINT, "method=bitfit", "protocol.lr=0.05", "protocol.weight_decay=0.1", "protocol.warmup=0")
    trainer = joint_trainer(cell)[1]
    trainer.begin(total=20)
    assert trainer.train is not None
    assert trainer.train.mix is not None
    moved = set()
    for step, rows in enumerate([*trainer.order(0), *trainer.order(1)][:12]):
        task = TASKS[trainer.train.mix.tasks[rows[0]]]
        before = {name: p.detach().clone() for name, p in trainer.parameters.items()}
        trainer.step(step, rows)
        changed = {name for name, p in trainer.parameters.items() if not torch.equal(p, before[name])}
        heads = {name for name in changed if name.startswith("classifier.")}
        assert heads == {f"classifier.task_{task}.weight", f"classifier.task_{task}.bias"}
        assert changed > heads, "the backbone learns from every task"
        moved.add(task)
    assert moved == set(TASKS)


def joint_trainer(cell: Cell) -> tuple[Any, Trainer]:
    """Model and trainer of a cell of several tasks, as a run makes them."""
    tokens = joined(tokens_of(cell), cell.task)
    model, tuner = learner_of(cell, None, None).fresh()
    return model, Trainer(model, tuner, cell.protocol, cell.task, tokens["train"], {}, "mean", cell.seed)


def test_the_loss_of_a_batch_is_that_of_its_task_by_itself(tiny: Callable[..., Cell]) -> None:
    cell = tiny(*JOINT, "method=head", "protocol.precision=fp32")
    model, trainer = joint_trainer(cell)
    assert isinstance(cell.task, JointTask)
    for task in cell.task.tasks:
        one = tiny(f"task={task.name}", "method=head", "protocol.precision=fp32")
        plain, _, alone = assemble(one)
        with torch.no_grad():
            for name, p in plain.head():
                p.copy_(dict(model.head())[name.replace("classifier.", f"classifier.task_{task.name}.")])
        assert trainer.train is not None
        assert trainer.train.mix is not None
        first = int(np.flatnonzero(trainer.train.mix.tasks == TASKS.index(task.name))[0])
        rows = np.array([0, 5, 7])
        for module in (model.module, plain.module):
            module.eval()
        torch.testing.assert_close(trainer.loss(first + rows), alone.loss(rows))
    with pytest.raises((RuntimeError, ValueError)):
        trainer.loss(np.array([0, len(trainer.order(0)) * 8 - 40]))


SMALL = {"hidden_size": 16, "dim": 16, "embedding_size": 16, "pooler_hidden_size": 16, "hidden_dim": 24}
SMALL |= {"intermediate_size": 24, "num_hidden_layers": 1, "n_layers": 1, "num_attention_heads": 2, "n_heads": 2}
MODELS = [
    "bert_tiny",
    "roberta_base",
    "deberta_v3_base",
    "electra_small",
    "distilbert",
    "modernbert_base",
    "mpnet_base",
]


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_has_a_whole_head_for_each_task(name: str) -> None:
    config = compose.cell_from([f"model={name}"]).model.config
    small = [f"model.config.{key}={value}" for key, value in SMALL.items() if key in config]
    words = [f"model={name}", "model.weights=random", "method=head", "data=sample", *small]
    cell = compose.cell_from([*words, *JOINT])
    alone = [count_cell(compose.cell_from([*words, f"task={task}"])).head for task in TASKS]
    assert count_cell(cell).head == sum(alone)
    readout = Heads(
        outputs=tuple((task.name, task.num_labels) for task in cell.task.parts), places=cell.model.layout.head
    )
    model = build(cell.model, 5, readout=readout)
    with torch.no_grad():
        for _, p in model.head():
            p.normal_()
    model.module.eval()
    inputs = {"input_ids": torch.randint(5, 50, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    every = [model.forward({**inputs, TASK: torch.tensor([number])}) for number in range(3)]
    assert [tuple(logits.shape) for logits in every] == [(3, 2), (3, 2), (3, 1)]
    assert not torch.equal(every[0], every[1])
    leave_one(model.module, "sst2", 2)
    torch.testing.assert_close(model.forward(inputs), every[1], atol=0, rtol=0)
    plain = build(cell.model, 2)
    assert {name: p.shape for name, p in model.head()} == {name: p.shape for name, p in plain.head()}
    plain.module.load_state_dict(model.module.state_dict())
    torch.testing.assert_close(plain.module.eval()(**inputs).logits, every[1])


IMPOSSIBLE = [
    (["task=joint"], "task.tasks: must be given"),
    (["task=joint", "task.tasks=[rte]"], 'task.tasks=["rte"]: must be a list of two or more different tasks'),
    (["task=joint", "task.tasks=[rte,rte]"], "must be a list of two or more different tasks"),
    (["task=joint", "task.tasks=rte"], "task.tasks=rte: must be a list of two or more different tasks"),
    (["task=joint", "task.tasks=[rte,sst]"], "task.tasks=sst: no such task; did you mean sst2"),
    (["task=joint", "task.tasks=[rte,ax]"], "tasks names ax, which has no training rows"),
    (["task=joint", "task.tasks=[rte,joint]"], "task.tasks=joint: is itself several tasks"),
    ([*TWO, "task.temperature=0.5"], "task.temperature=0.5: must be at least 1"),
    ([*TWO, "task.metrics=[f1]"], "task.metrics: there is no such key"),
    ([*TWO, "readout=prompt", "method=lora"], "readout=prompt: task=joint has a classifier for each task"),
    ([*TWO, "selftrain=list", "shots.total=8"], "selftrain=list: task=joint has no rows without labels"),
    ([*JOINT, "shots.per_class=4"], "shots: task=stsb is a regression"),
    ([*TWO, "method=full", "budget=1000"], "budget.entries=1000: Full takes no budget"),
]


@pytest.mark.parametrize(("words", "line"), IMPOSSIBLE, ids=[line for _, line in IMPOSSIBLE])
def test_what_is_not_possible_is_one_line_before_anything_is_written(
    words: list[str], line: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("run", *TINY, *words)
    assert (said[0], said[1], said[2].count("\n")) == (2, "", 1), said
    assert line in said[2]
    assert not list(tmp_path.iterdir())


def test_the_order_of_tasks_does_not_matter_and_all_else_does(tiny: Callable[..., Cell]) -> None:
    cell = tiny(*JOINT)
    assert tiny("task=joint", "task.tasks=[sst2,stsb,rte]").fingerprint == cell.fingerprint
    others = [tiny(*TWO), tiny(*JOINT, "task.temperature=2"), tiny("task=rte"), tiny(*JOINT, "protocol.lr=0.1")]
    assert len({cell.fingerprint, *(one.fingerprint for one in others)}) == 5
    assert tiny("task=joint", "task.tasks=[rte,sst2,stsb]").folder == cell.folder
    assert isinstance(cell.task, JointTask)
    changed = replace(cell.task.tasks[0], prompt=None)
    assert replace(cell, task=replace(cell.task, tasks=(changed, *cell.task.tasks[1:]))).fingerprint == cell.fingerprint


def test_several_processes_are_refused(run_tiny: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr(runner, "process_state", Two)
    with pytest.raises(ConfigError, match="task=joint: one process trains"):
        run_tiny(*JOINT)
    assert not (tmp_path / "outputs").exists()


def test_held_out_rows_of_every_task_choose_and_few_labels_are_drawn_for_each(run_tiny: Run) -> None:
    held_out = run_tiny(*JOINT, "method=bitfit", "protocol.selection=held_out", "protocol.held_out=0.25")
    selected = held_out.record.metrics.selected
    assert selected is not None
    names = ["rte_accuracy_held_out", "sst2_accuracy_held_out", "stsb_pearson_held_out"]
    assert selected.chosen_by == pytest.approx(np.mean([selected.metrics[name] for name in names]))
    assert selected.loss is not None
    few = run_tiny(*TWO, "method=bitfit", "shots.per_class=4")
    assert few.error is None, few.error
    lengths = {
        name: len((few.path.parent / "predictions" / f"dev_{name}.tsv").read_text().splitlines())
        for name in ("rte", "sst2")
    }
    assert min(lengths.values()) > 8, "dev stays whole"


def test_real_glue_is_learned_together(glue: Path, tmp_path: Path) -> None:
    words = [*TINY, "method=bitfit", "task=joint", "task.tasks=[cola,mrpc,rte]", "data=folder"]
    words += [f"data.path={glue}", "data.limit=64", f"outputs={tmp_path}"]
    outcome = run(compose.cell_from(words), compose.resolved(compose.load(words)), words)
    assert outcome.error is None, outcome.error
    chosen: Mapping[str, float | None] = outcome.record.metrics.chosen
    assert {"cola_matthews_correlation", "mrpc_f1", "rte_accuracy", "mean"} <= chosen.keys()
    raw = json.loads(outcome.path.read_text())
    assert [task["name"] for task in raw["config"]["task"]["tasks"]] == ["cola", "mrpc", "rte"]
