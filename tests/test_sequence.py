"""`peftbench sequence`: learners of one task after the other, recorded, found again, resumed, queued and shown."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import Said

from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE
from peftbench.lifecycle.sequence import stages
from peftbench.lifecycle.sequence.classes import stages_of
from peftbench.lifecycle.sequence.learners import Finetune
from peftbench.lifecycle.sequence.mos import Mos
from peftbench.lifecycle.sequence.words import LEARNERS, ask
from peftbench.record import MEASURED, Attention, Record, find_records, read_record
from peftbench.runner.run import read_rows
from peftbench.study.lock import Lock
from peftbench.training.checkpoint import Checkpoints

Command = Callable[..., Said]
TINY = [
    "sequence.tasks=[sst2,rte]",
    "sequence.cap=32",
    "model=bert_tiny",
    "model.weights=random",
    "model.config.vocab_size=2000",
    "data=sample",
    "data.limit=40",
    "protocol.max_length=24",
    "protocol.precision=fp32",
    "study=q",
    "tracker=none",
]
TRAINED = ["learner.epochs=2", "learner.batch_size=16", "learner.lr=0.05"]
ALIGNED = ["learner.align_epochs=2"]
SIZE, LAYERS, CLASSES = 128, 2, 4


def words(learner: str, *more: str) -> list[str]:
    """The words of a small sequence; `more` come in the place of those of their keys."""
    own = [*TINY, f"learner={learner}", *([] if learner == "simplecil" else TRAINED)]
    own += ALIGNED if learner == "mos" else []
    given = {word.partition("=")[0] for word in more}
    return [*(word for word in own if word.partition("=")[0] not in given), *more]


def adapters(width: int) -> int:
    """Entries of one set."""
    return LAYERS * (2 * width * SIZE + width + SIZE)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies in which `made` makes things once."""
    return tmp_path_factory.mktemp("sequences") / "outputs"


@pytest.fixture
def made(outputs: Path, command: Command) -> Callable[..., tuple[Record, Path]]:
    """Run a learner, or find it; gives its record and its folder."""

    def make(learner: str, *more: str) -> tuple[Record, Path]:
        said = command("sequence", *words(learner, f"outputs={outputs}", f"cache={outputs / 'cache'}", *more))
        assert (said.code, said.err) == (0, "")
        path = Path(said.out.splitlines()[-1])
        return read_record(path), path.parent

    return make


def left(record: Record, folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record without what is measured and where it lies, and every file of predictions."""
    raw = asdict(record)
    for key in (*MEASURED, "overrides", "config"):
        del raw[key]
    return raw, {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_is_scored_after_every_stage_and_found_again(
    learner: str, made: Callable[..., tuple[Record, Path]]
) -> None:
    record, folder = made(learner)
    stored = {
        "simplecil": CLASSES * SIZE,
        "aper": adapters(64) + CLASSES * 2 * SIZE,
        "oracle": 2 * adapters(16) + CLASSES * (SIZE + 1),
        "mos": 2 * adapters(16) + CLASSES * (SIZE + 1) + CLASSES * SIZE + CLASSES * (SIZE + SIZE**2),
    }
    assert record.attention == Attention(modules=2, ours=2)
    assert record.counts is not None
    assert record.made is not None
    facts, chosen = record.made.facts, record.metrics.chosen
    if learner in stored:
        seen = CLASSES if learner in ("oracle", "mos") else 0  # a byte says of each class whether it was seen
        assert record.counts.stored_bytes == 4 * stored[learner] + seen
    assert facts["evaluation_changed_tensors"] is False
    assert facts["rows"] == {"sst2": 40, "rte": 40}
    assert record.headline.value == pytest.approx((chosen["sst2_accuracy"] + chosen["rte_accuracy"]) / 2)
    assert record.headline.standard_error is not None
    assert 0 < record.headline.standard_error < 0.2
    if learner == "joint":
        assert len(record.metrics.evaluations) == 1
        assert "forgetting" not in chosen
    else:
        assert len(record.metrics.evaluations) == 2
        assert facts["accuracy"]["rte"][0] is None
        assert chosen["mean"] == pytest.approx((facts["accuracy"]["sst2"][0] + chosen["last"]) / 2)
        assert chosen["forgetting"] == pytest.approx(
            max(0, facts["accuracy"]["sst2"][0] - facts["accuracy"]["sst2"][1])
        )
    if learner == "oracle":
        assert (chosen["task_identification"], chosen["forgetting"]) == (1, 0)
        assert chosen["accuracy_given_task"] == chosen["last"]
    assert ("retrieval" in chosen) == (learner == "mos")
    lines = (folder / "predictions" / "dev_rte.tsv").read_text().splitlines()
    assert lines[0].split("\t")[3:] == [
        "rte:entailment", "rte:not_entailment", "sst2:negative", "sst2:positive"
    ]  # fmt: skip
    right = [line.split("\t")[1] == line.split("\t")[2] for line in lines[1:]]
    assert np.mean(right) == pytest.approx(chosen["rte_accuracy"])
    before = (folder / RECORD_FILE).stat().st_mtime_ns
    assert made(learner)[1] == folder
    assert (folder / RECORD_FILE).stat().st_mtime_ns == before


def test_prototypes_of_an_untouched_backbone_know_no_order(made: Callable[..., tuple[Record, Path]]) -> None:
    (one, here), (other, there) = made("simplecil"), made("simplecil", "sequence.tasks=[rte,sst2]")
    assert here != there
    assert one.headline == other.headline
    assert left(one, here)[1] == left(other, there)[1]


def test_joint_training_knows_no_order_and_is_made_once(
    made: Callable[..., tuple[Record, Path]], command: Command, outputs: Path
) -> None:
    jobs = ask(words("joint", "order=0,1,2", f"outputs={outputs}"))
    assert len({(job.folder, job.row) for job in jobs}) == 1
    assert len({job.folder for job in ask(words("finetune", "order=0,1,2"))}) == 3
    _, folder = made("joint")
    assert folder == jobs[0].folder
    said = command("sequence", *words("joint", f"outputs={outputs}", f"cache={outputs / 'cache'}", "order=2"))
    assert (said.code, said.out.count("already there: ")) == (0, 1)


class Gone(BaseException):
    """The runner is gone."""


@pytest.mark.parametrize("learner", ["mos", "finetune", "aper"])
def test_a_sequence_that_was_ended_between_its_stages_goes_on_to_the_same_end(
    learner: str, made: Callable[..., tuple[Record, Path]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = made(learner)
    here = [f"outputs={tmp_path / 'outputs'}"]
    plain = Checkpoints.write

    def write(self: Checkpoints, state: Any) -> None:
        plain(self, state)
        raise Gone

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", write)
        with pytest.raises(Gone):
            made(learner, *here)
    (kept,) = (tmp_path / "outputs").rglob(CHECKPOINT_FILE)
    assert not list(find_records(tmp_path / "outputs" / "q"))
    learned: list[int] = []
    of = stages.learner_of

    def counted(*arguments: Any) -> Any:
        one = of(*arguments)
        learn = one.learn
        monkeypatch.setattr(one, "learn", lambda stage: (learned.append(stage.number), learn(stage)))
        return one

    monkeypatch.setattr(stages, "learner_of", counted)
    again = made(learner, *here)
    assert learned == [1], "only the second stage is learned"
    assert left(*again) == left(*whole)
    assert not kept.exists()


def test_a_table_shows_sequences_and_a_view_their_metrics(
    made: Callable[..., tuple[Record, Path]], outputs: Path, command: Command
) -> None:
    for learner in ("simplecil", "joint"):
        made(learner)
    table = command("table", "q", "--outputs", str(outputs), "--format", "md")
    assert (table.code, table.err) == (0, "")
    assert "| simplecil, order 0 |" in table.out
    assert "joint_rte_sst2 last (sample)" in table.out
    shown = command("table", "q", "--outputs", str(outputs), "--show", "sequences", "--format", "md")
    assert (shown.code, shown.err) == (0, "")
    head = next(line for line in shown.out.splitlines() if line.startswith("| task"))
    for name in ("last", "mean", "forgetting", "task identified", "task given", "after 1", "after 2", "stored bytes"):
        assert f" {name} |" in head
    (line,) = [line for line in shown.out.splitlines() if "| joint, order 0 |" in line]
    assert "–" in line, "it has one stage, so no mean over stages"
    for view in ("consistency", "subsets", "calibration", "cost"):
        assert command("table", "q", "--outputs", str(outputs), "--show", view).code in (0, 2)


def test_a_worker_makes_what_a_study_keeps(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = command("sequence", *words("simplecil", "seed=0,1"), "order=0", "--save")
    assert kept == (0, "q: 2 lines kept; peftbench work q\n", "")
    assert "2 lines of artefacts: 0 done, 2 open" in command("status", "q").out
    worked = command("work", "q")
    assert (worked.code, worked.err) == (0, "")
    assert worked.out.splitlines()[-1] == "2 lines of artefacts: 2 done"
    assert len(list(find_records(tmp_path / "outputs" / "q"))) == 2
    assert "2 cells: 2 done" in command("status", "q").out


def test_another_runner_s_sequence_is_left_to_it_and_other_rows_make_it_anew(
    made: Callable[..., tuple[Record, Path]], outputs: Path, command: Command, tmp_path: Path
) -> None:
    rows = tmp_path / "rows"
    shutil.copytree(Path(stages.__file__).parents[2] / "data" / "sample", rows)
    asked = ("simplecil", "data=folder", f"data.path={rows}", "study=moved")
    record, folder = made(*asked)
    with Lock(folder):
        (folder / RECORD_FILE).rename(tmp_path / "kept")
        said = command("sequence", *words(*asked, f"outputs={outputs}"))
        (tmp_path / "kept").rename(folder / RECORD_FILE)
    assert said.code == 75
    assert "is running it" in said.out
    train = (rows / "RTE" / "train.tsv").read_text().splitlines()
    (rows / "RTE" / "train.tsv").write_text("\n".join([train[0], *train[3:]]) + "\n")
    again, same = made(*asked)
    assert same == folder
    assert again.hashes.data["train_rte"] != record.hashes.data["train_rte"]
    assert again.hashes.data["train_sst2"] == record.hashes.data["train_sst2"]
    (aside,) = folder.parent.glob("seed0-*")
    assert read_record(aside / RECORD_FILE) == record


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_task_of_one_row_and_one_of_one_class_are_learned_and_no_class_without_rows_is_answered(
    learner: str, made: Callable[..., tuple[Record, Path]], tmp_path: Path
) -> None:
    rows = Path(shutil.copytree(Path(stages.__file__).parents[2] / "data" / "sample", tmp_path / "rows"))
    head, first, *_ = (rows / "RTE" / "train.tsv").read_text().splitlines()
    (rows / "RTE" / "train.tsv").write_text(f"{head}\n{first}\n")
    head, *every = (rows / "SST-2" / "train.tsv").read_text().splitlines()
    positive = [row for row in every if row.endswith("\t1")]
    (rows / "SST-2" / "train.tsv").write_text("\n".join([head, *positive[:20]]) + "\n")
    more = ["learner.epochs=1"] if learner != "simplecil" else []
    asked = ("sequence.tasks=[rte,sst2]", "data=folder", f"data.path={rows}", f"study={learner}_edges", *more)
    record, folder = made(learner, *asked)
    learned = {"rte": f"rte:{first.rpartition(chr(9))[2]}", "sst2": "sst2:positive"}
    given = {}
    for task in learned:
        lines = (folder / "predictions" / f"dev_{task}.tsv").read_text().splitlines()[1:]
        columns = [line.split("\t") for line in lines]
        assert {answer for _, answer, *_ in columns} <= set(learned.values()), "the others never win"
        given[task] = np.mean([label == learned[task] for _, _, label, *_ in columns])
    assert record.made is not None
    for task, share in given.items():
        assert record.made.facts["given_task"][task][-1] == pytest.approx(share), "all that can be known of the task"
    if learner == "oracle":
        assert record.headline.value == pytest.approx(np.mean([*given.values()]))
    assert record.made.facts["evaluation_changed_tensors"] is False


def loaded(*asked: str) -> stages.Stages:
    (job,) = ask([*asked, f"cache={os.environ['PEFTBENCH_CACHE']}"])
    return stages.Stages(job, read_rows(job.rows))


@pytest.mark.parametrize(
    ("learner", "more", "passes"),
    [
        # tasks that are scored, with all that scores them, and what their training rows are read with for prototypes
        ("simplecil", [], 2 + 2),
        ("aper", [], 2 * (2 + 2)),
        ("oracle", [], 2),
        ("mos", [], 4 + 3),
        ("finetune", [], 3),
        ("finetune", ["learner.trains=adapters"], 3),
    ],
)
def test_features_of_what_has_not_changed_are_computed_once(
    learner: str, more: list[str], passes: int, tmp_path: Path
) -> None:
    run = loaded(*words(learner, *more))
    _, answers = run.run(Checkpoints(tmp_path, {}, None), lambda *_: None)
    assert run.encoder.passes == passes
    for place, task in enumerate(["rte", "sst2"]):
        anew = run.learner.answer(replace(run.dev(task)), place)  # the same rows, of which nothing is known
        np.testing.assert_array_equal(anew.scores, answers[task].scores)
    assert run.encoder.passes > passes


def test_adamw_is_a_choice(tmp_path: Path) -> None:
    one_step = ["learner.trains=adapters", "learner.epochs=1", "learner.batch_size=16", "sequence.cap=16"]
    run = loaded(
        *words("finetune", *one_step, "learner.optimizer=adamw", "learner.lr=1e-3", "learner.weight_decay=0.0")
    )
    after: list[torch.Tensor] = []
    run.run(
        Checkpoints(tmp_path, {}, None),
        lambda *_: after.append(run.learner.state_dict()["weights"]["0.up.bias"].clone()),
    )
    # from zero, the first step of AdamW has the length of the rate in every entry, whatever the gradient
    torch.testing.assert_close(after[0].abs(), torch.full((SIZE,), 1e-3), rtol=1e-2, atol=0)


def test_a_stage_moves_no_row_of_the_head_but_its_own_and_the_first_is_not_aligned(tmp_path: Path) -> None:
    run = loaded(*words("finetune", "learner.trains=adapters", "learner.weight_decay=0.1"))
    assert isinstance(run.learner, Finetune)
    heads: list[torch.Tensor] = []

    def told(*_: Any) -> None:
        heads.append(run.learner.state_dict()["head"]["weight"].clone())

    run.run(Checkpoints(tmp_path, {}, None), told)
    sst2, rte = run.classes.of([1]), run.classes.of([0])
    assert torch.equal(heads[0][sst2], heads[1][sst2])
    assert not torch.equal(heads[0][rte], heads[1][rte])
    one, other = (loaded(*words("mos", f"learner.align_epochs={epochs}")) for epochs in (0, 2))
    states: list[list[torch.Tensor]] = [[], []]
    for place, mos in enumerate((one, other)):
        mos.run(
            Checkpoints(tmp_path, {}, None),
            lambda *_, mos=mos, place=place: states[place].append(mos.learner.state_dict()["head"]["weight"].clone()),
        )
    assert torch.equal(states[0][0], states[1][0])
    assert not torch.equal(states[0][1], states[1][1])


def test_mos_is_put_together_as_its_equations_say(tmp_path: Path) -> None:
    run = loaded(*words("mos"))
    run.run(Checkpoints(tmp_path, {}, None), lambda *_: None)
    state, classes = run.learner.state_dict(), run.classes
    assert state["tasks"] == [1, 0], "SST-2 comes first"
    head = state["head"]
    for name, stage in (("sst2", 0), ("rte", 1)):
        tokens = run.tokens[f"train_{name}"]
        first, own = (run.encoder.features(tokens, state["adapters"][place]).double() for place in (0, stage))
        for label, number in enumerate(classes.of([["rte", "sst2"].index(name)])):
            rows = torch.from_numpy(tokens.labels == label)
            mean, covariance = state["gaussians"][int(number)]
            torch.testing.assert_close(state["prototypes"][number].double(), first[rows].mean(0), atol=1e-5, rtol=0)
            torch.testing.assert_close(mean.double(), own[rows].mean(0), atol=1e-5, rtol=0)
            expected = torch.cov(own[rows].T) + 1e-4 * torch.eye(SIZE)
            torch.testing.assert_close(covariance.double(), expected, atol=1e-5, rtol=1e-3)
    dev = run.dev("rte")
    features = [run.encoder.features(dev, one) for one in state["adapters"]]
    given = run.learner.answer(dev, 0)
    for row in range(len(dev)):
        o = torch.cosine_similarity(features[0][row], state["prototypes"])
        logits = [head["weight"] @ one[row] + head["bias"] for one in features]
        k = 0 if int(o.argmax()) in (2, 3) else 1
        for _ in range(4):
            k = 0 if int(logits[k].argmax()) in (2, 3) else 1
        expected = logits[k].softmax(0) + (2 * o).softmax(0)
        np.testing.assert_allclose(given.scores[row], expected, atol=1e-5)
        assert given.retrieved is not None
        assert given.retrieved[row] == [1, 0][k]


@pytest.mark.parametrize("pull", [0, 1])
def test_adapters_go_on_from_the_task_before_and_a_whole_pull_leaves_the_mean_of_all(pull: int) -> None:
    run = loaded(*words("mos", f"learner.pull={pull}", "learner.lr=1e-6", "learner.epochs=1", "learner.align_epochs=0"))
    state, tokens = run.learner.state_dict(), [run.tokens[f"train_{name}"] for name in ("rte", "sst2")]
    fresh = run.encoder.adapters.fresh(16)  # type: ignore[union-attr]
    sets = [{name: torch.full_like(tensor, value) for name, tensor in fresh.items()} for value in (0.5, 1.0)]
    run.learner.load_state_dict({**state, "adapters": sets, "tasks": [5, 6]})  # of tasks that are none of these
    (stage,) = stages_of([0], tokens, run.classes)
    run.learner.learn(replace(stage, number=2))
    third = run.learner.state_dict()["adapters"][2]
    for tensor in third.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, [1.0, 0.75][pull]), atol=1e-4, rtol=0)


def test_what_the_released_code_does_in_forward_passes_is_an_option_that_says_so(
    made: Callable[..., tuple[Record, Path]],
) -> None:
    record, _ = made("mos", "learner.merge_per_forward=true")
    assert record.made is not None
    assert record.made.facts["evaluation_changed_tensors"] is True


def stored_after(forwards: int, per_forward: bool) -> list[float]:
    """What an adapter of ones is after each of so many evaluation batches, the earlier task's being zeros."""
    sizes = ["model.config.num_hidden_layers=12", "model.config.hidden_size=16", "model.config.intermediate_size=24"]
    run = loaded(*words("mos", *sizes, f"learner.merge_per_forward={str(per_forward).lower()}", "data.limit=8"))
    state = run.learner.state_dict()
    assert isinstance(run.learner, Mos)
    fresh = run.encoder.adapters.fresh(16)  # type: ignore[union-attr]
    sets = [{name: torch.full_like(tensor, value) for name, tensor in fresh.items()} for value in (0.0, 1.0)]
    prototypes = torch.ones_like(state["prototypes"])
    run.learner.load_state_dict({**state, "adapters": sets, "tasks": [0, 1], "prototypes": prototypes})
    values = []
    for _ in range(forwards):
        run.learner.answer(run.dev("rte"), 0)
        after = run.learner.state_dict()["adapters"]
        assert all(float(tensor.abs().max()) == 0 for tensor in after[0].values())
        values += {round(float(entry), 3) for tensor in after[1].values() for entry in tensor.unique()}
    return values


def test_the_option_pulls_once_for_each_layer_as_in_a_twelve_layer_model_of_the_authors() -> None:
    assert stored_after(4, per_forward=True) == [0.282, 0.08, 0.023, 0.006]
    assert stored_after(2, per_forward=False) == [1.0, 1.0]


BAD = [
    (["learner=moss"], "learner=moss: did you mean mos"),
    ([], "learner="),
    (["learner=simplecil", "learner.lr=1"], "learner.lr: there is no such key"),
    (["learner=mos", "learner.pull=2"], "learner.pull=2"),
    (["learner=mos", "learner.retrieval=best"], "learner.retrieval=best"),
    (["learner=aper", "learner.feature=max"], "learner.feature=max"),
    (["learner=mos", "sequence=glue6"], "sequence=glue6: did you mean glue"),
    (["learner=mos", "sequence.tasks=[rte]"], 'sequence.tasks=["rte"]: must have at least 2'),
    (["learner=mos", "sequence.tasks=[rte,rte]"], "must not name one thing twice"),
    (["learner=mos", "sequence.tasks=[rte,nope]"], "sequence.tasks=nope: no such task"),
    (["learner=mos", "sequence.tasks=[rte,stsb]"], "sequence.tasks=stsb: has scores"),
    (["learner=mos", "sequence.tasks=[rte,ax]"], "ax, which has no training rows"),
    (["learner=mos", "sequence.cap=0"], "sequence.cap=0"),
    (["learner=mos", "order=x"], "sequence.order=x"),
    (["learner=mos", "order=-1"], "sequence.order=-1"),
    (["learner=mos", "method=lora"], "method: not a word of sequence"),
    (["learner=mos", "task=rte"], "task: not a word of sequence"),
    (["learner=mos", "protocol.epochs=3"], "protocol.epochs: not a word of sequence"),
    (["learner=mos", "protocol.max_length=9999"], "protocol.max_length=9999"),
    (["learner=mos", "seed=x"], "seed=x"),
    (["learner=mos", "--searchpath", "own"], "--searchpath"),
]


@pytest.mark.parametrize(("asked", "named"), BAD, ids=lambda item: " ".join(item) if isinstance(item, list) else "")
def test_what_no_sequence_can_be_is_one_line(asked: list[str], named: str, command: Command, tmp_path: Path) -> None:
    rest = [word for word in TINY if not any(word.split("=")[0] == one.split("=")[0] for one in asked)]
    code, out, err = command("sequence", *rest, *asked, f"outputs={tmp_path / 'outputs'}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err
    assert not (tmp_path / "outputs").exists()


def test_rows_that_are_not_there_are_one_line_before_weights_are_looked_for(command: Command, tmp_path: Path) -> None:
    rest = [word for word in TINY if not word.startswith("sequence.tasks")]
    code, _, err = command("sequence", *rest, "learner=simplecil", f"outputs={tmp_path / 'outputs'}")
    assert (code, err.count("\n")) == (3, 1)
    assert not list((tmp_path / "outputs").rglob(RECORD_FILE))


def test_training_that_diverges_is_one_line(command: Command, tmp_path: Path) -> None:
    asked = words("finetune", "learner.lr=1e8", f"outputs={tmp_path / 'outputs'}")
    code, _, err = command("sequence", *asked)
    assert (code, err.count("\n")) == (2, 1)
    assert "learner.lr=1e+08: training diverged in stage 1" in err
