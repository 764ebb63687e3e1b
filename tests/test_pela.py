"""PELA: low-rank maps by truncated SVD, distilled on text without labels, as a folder that model.weights takes."""

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from safetensors.torch import load_file
from support import start, tokens_of
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForSequenceClassification

from peftbench.backbone.low_rank import LowRankLinear, factored, put_in, rank_for
from peftbench.backbone.model import Model, build, load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.config.recipes import split_words
from peftbench.config.spec import Cell
from peftbench.data.rows import rows_of
from peftbench.runner.apply import write_model
from peftbench.runner.backbone import make_low_rank, plan
from peftbench.runner.counts import count_cell
from peftbench.runner.deltas import reload
from peftbench.runner.run import Outcome
from peftbench.training import on_text
from peftbench.training.distil import Distillation
from peftbench.training.evaluation import Evaluator
from peftbench.training.forward import Forward

Run = Callable[..., Outcome]
Command = Callable[..., Said]
SMALL = ["task=sst2", "data=sample", "data.limit=48", "tracker=none", "protocol.batch_size=8", "protocol.max_length=24"]
SMALL += ["protocol.precision=fp32"]
DISTIL = ["make=lowrank", "make.ratio=0.5", "make.steps=30", "make.lr=3e-3"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a small BERT in a real folder."""
    folder = tmp_path_factory.mktemp("source")
    return [*checkpoint("bert_base_uncased", folder), *SMALL, f"cache={folder / 'cache'}"]


def made(source: list[str], folder: Path, *words: str) -> list[str]:
    """Make a low-rank backbone; the words of a cell that uses it."""
    recipe, rest = split_words([*source, *words])
    cell = compose.cell_from(rest)
    make_low_rank(cell, recipe, plan(cell.model, cell.scope, recipe), folder)
    return [*(word for word in source if not word.startswith("model.weights=")), f"model.weights={folder}"]


@pytest.fixture(scope="module")
def svd(source: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of its low-rank form, not distilled."""
    return made(source, tmp_path_factory.mktemp("low") / "svd", "make=lowrank", "make.ratio=0.5", "make.variant=svd")


def folder_of(words: list[str]) -> Path:
    return Path(next(word for word in words if word.startswith("model.weights=")).partition("=")[2])


def loaded(words: list[str]) -> tuple[Cell, Model]:
    cell = compose.cell_from(words)
    return cell, load_model(cell.model, cell.task.num_labels, 0)[0]


def logits_of(cell: Cell, model: Model) -> np.ndarray:
    """Of the dev rows, (rows, labels)."""
    tokens = tokens_of(cell, weights=weights_folder(cell.model))["dev"]
    return Evaluator(Forward(model, "fp32", CPU), cell.task, 16).predict(tokens)


def test_factors_are_the_best_approximation_of_their_rank_shared_out_evenly() -> None:
    torch.manual_seed(0)
    whole = nn.Linear(24, 16)
    u, s, v = np.linalg.svd(whole.weight.detach().double().numpy(), full_matrices=False)
    low = factored(whole, 5)
    assert np.abs(low.product().detach().numpy() - (u[:, :5] * s[:5]) @ v[:5]).max() < 1e-6
    first, second = low.down.weight.detach(), low.up.weight.detach()
    for square in (first @ first.T, second.T @ second):
        assert torch.allclose(square, torch.diag(torch.tensor(s[:5], dtype=torch.float32)), atol=1e-5)
    assert torch.equal(low.up.bias, whole.bias)
    x = torch.randn(3, 24)
    assert torch.allclose(factored(whole, 16)(x), whole(x), atol=1e-5)
    with torch.no_grad():
        whole.weight.copy_(low.product())
    assert torch.allclose(factored(whole, 5)(x), whole(x), atol=1e-5), "a map of that rank is kept as it is"


@pytest.mark.parametrize(
    ("sides", "ranks"),
    [
        ((768, 768), (256, 192, 128)),
        ((768, 3072), (409, 307, 204)),
        ((1024, 1024), (341, 256, 170)),
        ((4096, 1024), (546, 409, 273)),
    ],
)
def test_ranks_are_those_of_the_released_code(sides: tuple[int, int], ranks: tuple[int, ...]) -> None:
    assert tuple(rank_for(*sides, 1 / c) for c in (1.5, 2, 3)) == ranks
    assert rank_for(768, 768, 0.3333333333) == 128


@pytest.mark.parametrize(("ratio", "entries"), [(1 / 2, 66_998_018), (1 / 3, 52_786_946)])
def test_entries_of_bert_base(ratio: float, entries: int) -> None:
    recipe, words = split_words(["make=lowrank", f"make.ratio={ratio}", "model=bert_base_uncased"])
    cell = compose.cell_from([*words, "model.config.vocab_size=30522"])
    ranks, model = plan(cell.model, cell.scope, recipe), build(cell.model, 2, "meta")
    whole = sum(p.numel() for p in model.module.parameters())
    put_in(model.module, ranks)
    assert whole == 109_483_778
    assert sum(p.numel() for p in model.module.parameters()) == entries


def test_entries_of_minilms_maps() -> None:
    recipe, words = split_words(["make=lowrank", f"make.ratio={1 / 3}", "model=minilm_l6"])
    cell = compose.cell_from(words)
    ranks, model = plan(cell.model, cell.scope, recipe), build(cell.model, 2, "meta")
    put_in(model.module, ranks)
    maps = [m for m in model.module.modules() if isinstance(m, LowRankLinear)]
    assert sum(m.down.weight.numel() + m.up.weight.numel() for m in maps) == 3_529_728
    assert sum(m.up.bias.numel() for m in maps) == 20_736


def test_full_rank_computes_what_the_whole_backbone_does(source: list[str]) -> None:
    cell, model = loaded(source)
    before = logits_of(cell, model)
    for name, whole in model.linears(cell.scope):
        if model.place(name).layer is not None:
            model.module.set_submodule(name, factored(whole, min(whole.weight.shape)))
    assert len([m for m in model.module.modules() if isinstance(m, LowRankLinear)]) == 12
    assert np.abs(logits_of(cell, model) - before).max() < 1e-5
    assert np.ptp(before, axis=0).min() > 0.01


SPAFIT = "spafit method.strata.frozen.last=-1 method.strata.biases.last=0"
ON_IT = [
    "full",
    "bitfit",
    "lora",
    "adalora",
    "hut",
    "linear_adapter",
    "random_masking budget=50",
    "id3 budget=50",
    SPAFIT,
]
ON_IT += ["houlsby", "gradual_unfreeze", "fish budget=50 method.batches=2"]
ON_IT += ["vera method.config.r=4", "ia3", "lst method.init=random method.reduction=2"]


@pytest.mark.parametrize("method", ON_IT)
def test_methods_run_on_it_and_their_deltas_give_the_same_logits(svd: list[str], method: str, run_tiny: Run) -> None:
    if method.startswith(("vera", "ia3")):
        pytest.importorskip("peft", reason="peft is an extra that is not installed")
    words = [*svd, *f"method={method}".split(), "protocol.lr=1e-2"]
    outcome = run_tiny(*words)
    assert outcome.error is None
    model, _, _ = reload(outcome.path.parent)
    rows = (outcome.path.parent / "predictions" / "dev.tsv").read_text().splitlines()[1:]
    stored = np.array([[float(value) for value in row.split("\t")[-2:]] for row in rows])
    assert np.abs(logits_of(compose.cell_from(words), model) - stored).max() < 2e-5  # of which 5 digits are written
    counts, planned = outcome.record.counts, count_cell(compose.cell_from(words))
    assert (counts.backbone, counts.model) == (planned.backbone, planned.model)
    assert counts.model < count_cell(compose.cell_from([*words, "model.weights=random"])).model


def test_a_table_tells_backbones_of_two_sizes_apart(
    source: list[str], svd: list[str], run_tiny: Run, command: Command, tmp_path: Path
) -> None:
    whole, low = (run_tiny(*words, "method=bitfit", "protocol.max_steps=1").record.counts for words in (source, svd))
    assert whole is not None
    assert low is not None
    _, out, _ = command("table", "default", "--outputs", str(tmp_path / "outputs"), "--format", "md")
    head, _, *lines = [line.split(" | ") for line in out.splitlines() if line.startswith("|")]
    column = head.index("model")
    assert {line[column] for line in lines} == {f"{counts.model - counts.head:,}" for counts in (whole, low)}
    assert low.model < whole.model
    _, out, _ = command("table", "default", "--outputs", str(tmp_path / "outputs"), "--format", "csv")
    read = list(csv.DictReader(io.StringIO(out)))
    assert {int(row["model_bytes"]) for row in read} == {4 * (c.model - c.head) for c in (whole, low)}
    for counts, words in ((whole, source), (low, svd)):  # of the file the heads are no part, and names take few bytes
        weights = weights_folder(compose.cell_from(words).model)
        assert weights is not None
        assert 0 < (weights / "model.safetensors").stat().st_size - 4 * (counts.model - counts.head) < 10_000
    megabytes = {f"{4e-6 * (counts.model - counts.head):.1f} MB" for counts in (whole, low)}
    assert {line[head.index("model's file")] for line in lines} == megabytes


def test_apply_multiplies_the_maps_out(svd: list[str], run_tiny: Run, tmp_path: Path) -> None:
    outcome = run_tiny(*svd, "method=lora", "protocol.lr=1e-2")
    write_model(outcome.path.parent, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    cell = compose.cell_from(svd)
    ours, _, _ = reload(outcome.path.parent)
    batch = Forward(ours, "fp32", CPU).batch(tokens_of(cell, weights=weights_folder(cell.model))["dev"], np.arange(8))
    ours.module.eval()
    assert torch.allclose(plain(**batch.inputs).logits, ours.forward(batch.inputs), atol=1e-5)


def test_adapters_follow_the_whole_map_and_what_needs_whole_maps_says_so(svd: list[str], command: Command) -> None:
    words = [*svd, "progress=false"]
    houlsby = count_cell(compose.cell_from([*words, "method=pfeiffer"])).backbone
    assert houlsby == count_cell(compose.cell_from([*words, "model.weights=random", "method=pfeiffer"])).backbone
    for method in ("light_peft", "lst"):
        code, _, err = command("count", *words, f"method={method}")
        assert (code, len(err.splitlines())) == (2, 1)
        assert "low-rank" in err


def distillation(source: list[str], *words: str) -> tuple[Cell, Model, Model, Distillation]:
    """Cell, student, teacher, and both together."""
    recipe, rest = split_words([*source, *DISTIL, *words])
    cell, teacher = loaded(rest)
    student = copy.deepcopy(teacher)
    for name, rank in plan(cell.model, cell.scope, recipe).items():
        whole = student.module.get_submodule(name)
        assert isinstance(whole, nn.Linear)
        student.module.set_submodule(name, factored(whole, rank))
    teacher.module.train()
    return cell, student, teacher, Distillation(student, teacher, recipe, cell.protocol, CPU)


def test_distillation_comes_closer_on_text_that_it_has_not_seen(source: list[str]) -> None:
    cell, student, teacher, both = distillation(source)
    tokens = tokens_of(cell, weights=weights_folder(cell.model))
    was = {name: p.clone() for name, p in teacher.module.named_parameters()}
    outside = {name: p.clone() for name, p in student.module.named_parameters() if ".layer." not in name}
    before = both.loss(tokens["dev"])
    both.run(tokens["train"], 0)
    assert both.loss(tokens["dev"]) < 0.8 * before
    assert not any(module.training for module in teacher.module.modules())
    assert all(torch.equal(p, was[name]) and p.grad is None for name, p in teacher.module.named_parameters())
    assert all(torch.equal(student.module.get_parameter(name), p) for name, p in outside.items())


def test_a_step_goes_down_both_losses_by_their_weights_and_the_rate_along_a_cosine(source: list[str]) -> None:
    """The gradient that the optimizer sees at the first step, and its learning rate at every step."""
    weights = ["make.distil_weight=0.3", "make.residual_weight=2", "make.residual_margin=0.01"]
    cell, student, _, both = distillation(source, *weights, "make.steps=4", "make.lr=3e-3", "make.last_lr=1e-3")
    tokens = tokens_of(cell, weights=weights_folder(cell.model))["train"]
    trained = {name: p for name, p in student.module.named_parameters() if p.requires_grad}
    rows = next(on_text.endless(tokens, cell.protocol, 0))
    parts = []
    for loss in (both.difference(Forward(student, "fp32", CPU).batch(tokens, rows)), both.residual()):
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        parts.append([torch.zeros_like(p) if g is None else g for p, g in zip(trained.values(), found, strict=True)])
    assert all(any(gradient.any() for gradient in part) for part in parts)
    seen: list[list[torch.Tensor]] = []
    rates: list[float] = []

    def watch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.extend({group["lr"] for group in optimizer.param_groups})
        seen.append([p.grad.clone() for p in trained.values() if p.grad is not None])

    hook = register_optimizer_step_pre_hook(watch)
    both.run(tokens, 0)
    hook.remove()
    for gradient, distil, residual in zip(seen[0], *parts, strict=True):
        torch.testing.assert_close(gradient, 0.3 * distil + 2 * residual)
    half = 2e-3 * 0.5**0.5 / 2  # the cosine of an eighth of a turn
    assert rates == pytest.approx([3e-3, 2e-3 + half, 2e-3, 2e-3 - half])  # 1e-3 would be the fifth


def test_the_weight_of_the_residual_makes_other_bytes(source: list[str], tmp_path: Path) -> None:
    words = [*DISTIL, "make.steps=2"]
    made(source, tmp_path / "without", *words, "make.residual_weight=0")
    made(source, tmp_path / "with", *words, "make.residual_weight=1")
    with_it, without = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert any(not torch.equal(with_it[name], tensor) for name, tensor in without.items() if ".layer." in name)
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items() if ".layer." not in name)


def test_a_teacher_is_as_near_to_itself_as_can_be(source: list[str]) -> None:
    cell, _, teacher, _ = distillation(source)
    itself = Distillation(copy.deepcopy(teacher), teacher, split_words(DISTIL)[0], cell.protocol, CPU)
    assert itself.loss(tokens_of(cell, weights=weights_folder(cell.model))["dev"]) == 0.0


def test_the_residual_sees_the_largest_entry_alone(source: list[str]) -> None:
    _, student, teacher, both = distillation(source)
    maps = {name: m for name, m in student.module.named_modules() if isinstance(m, LowRankLinear)}
    parts = [
        (float((m.product() - teacher.module.get_parameter(f"{name}.weight")).abs().max()) - 1e-3) ** 2
        for name, m in maps.items()
    ]
    both.residual().backward()
    assert float(both.residual().detach()) == pytest.approx(np.mean(parts), rel=1e-5)
    for low in maps.values():
        rank = low.down.out_features
        assert low.down.weight.grad is not None
        assert low.up.weight.grad is not None
        assert (low.down.weight.grad.count_nonzero(), low.up.weight.grad.count_nonzero()) == (rank, rank)


def test_equal_seeds_give_equal_bytes_and_labels_are_never_seen(source: list[str], tmp_path: Path) -> None:
    cell = compose.cell_from(source)
    text = tmp_path / "words"
    text.mkdir()
    (text / "a.txt").write_text("\n\n".join(rows_of(cell).read()["train"].texts[0]), encoding="utf-8")
    for name, words in {"one": [], "again": [], "text": [f"make.text={text}"], "other": ["seed=1"]}.items():
        made(source, tmp_path / name, *DISTIL, *words)
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "again", "text")}
    assert files["one"] == files["again"] == files["text"]
    assert {"config.json", "lowrank.json", "model.safetensors", "tokenizer.json"} <= set(files["one"])
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != files["one"]["model.safetensors"]
    facts = json.loads(files["one"]["lowrank.json"])
    assert facts["distilled"]["after"] < facts["distilled"]["before"]
    assert (
        facts["entries"][1] == sum(t.numel() for t in load_file(tmp_path / "one" / "model.safetensors").values()) + 272
    )


FORGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a rank beyond the map": lambda facts: facts["ranks"].update({next(iter(facts["ranks"])): 10**9}),
    "a rank of none": lambda facts: facts["ranks"].update({next(iter(facts["ranks"])): 0}),
    "another rank": lambda facts: facts["ranks"].update({next(iter(facts["ranks"])): 3}),
    "an unknown map": lambda facts: facts["ranks"].update({"bert.encoder.layer.9.output.dense": 4}),
    "no map": lambda facts: facts["ranks"].update({"bert.embeddings": 4}),
    "a map too few": lambda facts: facts["ranks"].pop(next(iter(facts["ranks"]))),
    "no ranks": lambda facts: facts.update(ranks={}),
    "another format": lambda facts: facts.update(format="peftbench-lowrank-9"),
    "a ratio of two": lambda facts: facts.update(ratio=2),
    "a key too many": lambda facts: facts.update({"_target_": "os.system"}),
    "a hash that is none": lambda facts: facts["source"].update(sha256="\x1b]52;c"),
}


@pytest.mark.parametrize("kind", [*FORGED, "not json", "a folder"])
def test_forged_facts_are_one_line(kind: str, svd: list[str], command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    folder.mkdir()
    for path in folder_of(svd).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    facts = folder / "lowrank.json"
    if kind in FORGED:
        raw = json.loads(facts.read_text())
        FORGED[kind](raw)
        facts.write_text(json.dumps(raw))
    elif kind == "not json":
        facts.write_text("{")
    else:
        facts.unlink()
        facts.mkdir()
    words = [*svd, f"model.weights={folder}", "method=bitfit", "progress=false", f"outputs={tmp_path / 'outputs'}"]
    code, _, err = command("run", *words)
    assert (code, len(err.splitlines())) == (3, 1), err
    assert not (tmp_path / "outputs").exists()


BAD = {
    "make.ratio=0": "make.ratio=0: must be greater than 0",
    "make.ratio=1.5": "make.ratio=1.5: must be at most 1",
    "make.ratio=0.001": "make.ratio=0.001: leaves bert.encoder.layer.0.attention.self.query",
    "make.ratio=half": "make.ratio=half",
    "make.ratoi=0.5": "make.ratoi: there is no such key",
    "make.variant=qr": "make.variant=qr",
    "make.text=[a": "not of the form make.key=value",
    "make.ratio": "not of the form make.key=value",
    "make.steps=0": "make.steps=0",
    "make=lowrnk": "did you mean lowrank",
    "model.weights=random": "random weights",
    "scope.kinds=[layer_norm]": "no linear map",
    "method=nope": "method=nope",
}


@pytest.mark.parametrize("word", BAD)
def test_bad_words_are_one_line_before_weights_are_looked_for(word: str, command: Command, tmp_path: Path) -> None:
    make = [] if word.startswith("make=") else ["make=lowrank"]
    to = tmp_path / "to"
    weights = [] if word.startswith("model.weights") else ["model.weights=/nowhere"]
    code, _, err = command("backbone", *make, "model=bert_tiny", *weights, word, "--to", str(to))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert BAD[word] in err
    assert not to.exists()


def test_bad_places_are_one_line(source: list[str], svd: list[str], command: Command, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "latin.txt").write_bytes(b"\xe4\n\xe4\n")
    bad = [
        ([*source, "--to", str(tmp_path / "full")], 2, "not an empty folder"),
        ([*svd, "--to", str(tmp_path / "a")], 2, "low-rank already"),
        ([*source, "model.weights=/nowhere", "--to", str(tmp_path / "b")], 3, "/nowhere"),
        ([*source, "make.text=/nowhere", "--to", str(tmp_path / "c")], 3, "make.text=/nowhere"),
        ([*source, f"make.text={tmp_path / 'latin.txt'}", "--to", str(tmp_path / "d")], 3, "not UTF-8"),
        ([*source, f"make.text={tmp_path / 'full'}", "--to", str(tmp_path / "e")], 3, "no two rows"),
        ([*source, "data.limit=1", "--to", str(tmp_path / "f")], 3, "no two rows"),
    ]
    for words, expected, naming in bad:
        code, _, err = command("backbone", "make=lowrank", "make.ratio=0.5", *words)
        assert (code, len(err.splitlines())) == (expected, 1), err
        assert naming in err
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_the_command_prints_the_words_that_use_it(source: list[str], tmp_path: Path) -> None:
    done = start("backbone", *DISTIL, *source, "--to", "low", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rest = [word for word in source if not word.startswith(("model=", "model.weights", "model.sha256"))]
    _, model = loaded([*rest, *done.stdout.split()])
    assert len(model.ranks) == 12
    assert len(done.stderr.splitlines()) == 2
