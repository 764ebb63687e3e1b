"""`peftbench merge`: one backbone made of runs, between its floor and its ceiling, recorded with its parents."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forgery import Said
from support import TINY
from transformers import AutoModelForSequenceClassification

from peftbench.backbone.model import load_model
from peftbench.config import compose
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.lifecycle import merge, task_model, vectors
from peftbench.lifecycle.parents import parent
from peftbench.lifecycle.runs import by_seed
from peftbench.record import Record, find_records, read_record, write_record
from peftbench.runner.run import run

Command = Callable[..., Said]
QUICK = ["protocol.max_steps=3", "protocol.lr=0.01", "protocol.precision=fp32", "protocol.selection=held_out"]
CHANGES = {"lora": [], "bitfit": [], "full": [], "pafi": ["budget=200"], "id3": ["budget=200"], "spafit": []}
SMALL = ["merge.choose_rows=4", "merge.refit_rows=16", "merge.grid=[0.5,1.0]"]


def train(outputs: Path, *words: str) -> Path:
    words = (*TINY, *QUICK, f"outputs={outputs}", f"cache={outputs.parent / 'cache'}", "study=s", *words)
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with runs of every kind of change on RTE and SST-2."""
    folder = tmp_path_factory.mktemp("merged") / "outputs"
    for method, words in CHANGES.items():
        for task in ("rte", "sst2"):
            train(folder, f"method={method}", f"task={task}", *words)
    train(folder, "method=lora", "task=stsb", "study=scores")
    return folder


def made(folder: Path) -> dict[tuple[str, str], Record]:
    """Artefacts of a study by name and task."""
    records = [read_record(path) for path in find_records(folder)]
    return {(one.cell.method, one.cell.task): one for one in records if one.made is not None}


def merged(command: Command, outputs: Path, *words: str) -> str:
    code, out, err = command("merge", "from=s", f"outputs={outputs}", *SMALL, *words)
    assert (code, err) == (0, "")
    return out


def test_a_merge_stands_between_floor_and_ceiling_and_is_found_again(outputs: Path, command: Command) -> None:
    words = ("method=lora", "merge=average,ties", "study=m")
    out = merged(command, outputs, *words)
    records = made(outputs / "m")
    names = {name for name, _ in records}
    assert names == {
        "own run of lora",
        "own run of lora, refitted head",
        *(f"{way} of lora, {head} head" for way in ("backbone", "average", "ties") for head in ("kept", "refitted")),
    }
    assert all((name, task) in records for name in names for task in ("rte", "sst2"))
    for task in ("rte", "sst2"):
        (folder,) = (outputs / "s").glob(f"{task}-lora-*/seed0")
        own, ceiling = read_record(folder / RECORD_FILE), records["own run of lora", task]
        assert ceiling.headline.value == pytest.approx(own.headline.value), "a run by itself is what it was"
        assert list(ceiling.hashes.parents.values()) == [own.hashes.delta]
        assert own.hashes.delta in records["ties of lora, kept head", task].hashes.parents.values()
        assert len(records["ties of lora, kept head", task].hashes.parents) == 2
    ties = records["ties of lora, kept head", "rte"].made
    assert ties is not None
    assert ties.keys["keep"] == 0.2
    assert "keeps" not in ties.keys, "shares that are not tried decide nothing"
    assert list(ties.facts["tried"]) == ["0.5", "1"]
    assert ties.facts["scale"] in (0.5, 1.0)
    assert set(ties.facts["norms"]) == {"rte", "sst2"}
    assert ties.facts["head_modules"] == ["classifier"]
    assert "cosines (equal signs): rte, sst2 " in out
    again = merged(command, outputs, *words)
    assert again.count("already there: ") == 2 * len(names)
    code, table, _ = command("table", "m", "--outputs", str(outputs), "--format", "md")
    assert code == 0
    assert "| ties of lora, refitted head |" in table


WAYS = {
    "task_arithmetic,magnitude,dare,dare_ties,pcb,pcb_nlp,pcb_vision,pcb_search": "bitfit",
    "fisher": "bitfit",
    "regmean": "lora",
}


@pytest.mark.parametrize("ways", WAYS)
def test_every_way_merges_and_leaves_what_no_run_changed(
    outputs: Path, command: Command, ways: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[dict[str, torch.Tensor]] = []
    plain, method = task_model.FoldedModel.put, WAYS[ways]
    monkeypatch.setattr(
        task_model.FoldedModel, "put", lambda self, weights: (put.append(dict(weights)), plain(self, weights))[1]
    )
    rows = ["merge.rows=4"] if ways in ("fisher", "regmean") else []
    words = [f"method={method}", f"merge={ways}", f"study={ways[:7]}", "merge.heads=kept", "merge.scale=1.0"]
    merged(command, outputs, *words, *rows)
    for way in ways.split(","):
        record = made(outputs / ways[:7])[f"{way} of {method}, kept head", "rte"]
        assert record.headline.value is not None
        assert record.counts is not None
        assert record.counts.backbone > 0
    folders = sorted((outputs / "s").glob(f"*-{method}-*/seed0"))
    group = merge.Group([parent(folder) for folder in folders], str(outputs.parent / "cache"))
    touched = {name for name, _ in group.vectors("weights").places}
    scored = [weights for weights in put if weights]
    assert len(scored) >= 2 * len(ways.split(","))
    for weights in scored:
        assert all(torch.equal(weights[name], group.before[name]) for name in group.before if name not in touched)
    assert not any(torch.equal(scored[-1][name], group.before[name]) for name in touched if ".dense." in name)


def test_a_backbone_whose_weights_are_others_now_is_no_start_of_a_change(outputs: Path) -> None:
    runs = [parent(folder) for folder in sorted((outputs / "s").glob("*-lora-*/seed0"))]
    other = [
        dataclasses.replace(
            one, record=dataclasses.replace(one.record, hashes=dataclasses.replace(one.record.hashes, weights="0" * 64))
        )
        for one in runs
    ]
    with pytest.raises(DataError, match="its backbone has other weights now"):
        _ = merge.Group(other, str(outputs.parent / "cache")).before


@pytest.mark.parametrize("method", CHANGES)
def test_task_vectors_are_what_each_run_changed_and_nothing_else_moves(outputs: Path, method: str) -> None:
    folders = sorted((outputs / "s").glob(f"*-{method}-*/seed0"))
    group = merge.Group([parent(folder) for folder in folders], str(outputs.parent / "cache"))
    taus = group.vectors("touched")
    names = {name for name, _ in taus.places}
    assert names
    if method in ("lora", "bitfit"):
        assert all(name.endswith(".weight" if method == "lora" else ".bias") for name in names)
    if method == "pafi":
        assert 200 <= taus.rows.shape[1] <= 400, "the entries that either run chose"
    zero = taus.added(torch.randn(taus.rows.shape[1]), 0.0)
    assert all(torch.equal(weight, group.before[name]) for name, weight in zero.items())
    moved = taus.added(torch.ones(taus.rows.shape[1]), 1.0)
    runs = [one.own for one in group.models.values()]
    for name, weight in moved.items():
        unchanged = torch.stack([one[name] == group.before[name] for one in runs]).all(0)
        assert torch.equal(weight == group.before[name], unchanged), "inside a weight, too"
    for row, one in zip(taus.rows, runs, strict=True):
        for name, weight in taus.added(row, 1.0).items():
            torch.testing.assert_close(weight, one[name], atol=1e-7, rtol=0)
        picked = taus.picked({name: one[name] - group.before[name] for name in names})
        torch.testing.assert_close(picked, row, atol=0, rtol=0)
    whole = vectors.vectors(group.before, runs, "backbone")
    assert whole.rows.shape[1] == sum(weight.numel() for weight in group.before.values())
    assert int((whole.rows != 0).sum()) == int((taus.rows != 0).sum())


def test_other_conventions_of_papers_and_libraries_are_what_they_are_there(
    outputs: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft.utils.merge_utils", reason="peft is an extra that is not installed")
    put: list[dict[str, torch.Tensor]] = []
    plain = task_model.FoldedModel.put
    monkeypatch.setattr(
        task_model.FoldedModel, "put", lambda self, weights: (put.append(dict(weights)), plain(self, weights))[1]
    )
    asked = ["merge.over=backbone", "merge.equalize=norm", "merge.within=tensor", "merge.heads=refit"]
    merged(command, outputs, "method=lora", "merge=ties", "merge.scale=0.5", "study=papers", *asked)
    folders = sorted((outputs / "s").glob("*-lora-*/seed0"))
    group = merge.Group([parent(folder) for folder in folders], str(outputs.parent / "cache"))
    runs = [one.own for one in group.models.values()]
    changes = {name: torch.stack([(one[name] - p).flatten() for one in runs]) for name, p in group.before.items()}
    norms = torch.cat([*changes.values()], 1).norm(dim=1)
    for name, before in group.before.items():
        rows = changes[name] * (norms.mean() / norms)[:, None]
        expected = before + 0.5 * peft.ties([*rows], torch.ones(2), 0.2).view_as(before)
        torch.testing.assert_close(put[-1][name], expected, atol=1e-7, rtol=0)
    records = made(outputs / "papers")
    assert {name for name, _ in records} == {
        "own run of lora", *(f"{way} of lora, refitted head" for way in ("ties", "backbone", "own run"))
    }  # fmt: skip
    ties = records["ties of lora, refitted head", "rte"].made
    assert ties is not None
    assert ties.facts["entries"] == sum(weight.numel() for weight in group.before.values())


def test_pcb_says_which_run_it_leaves_out(outputs: Path, command: Command) -> None:
    for task, lr in (("rte", 1e-30), ("sst2", 0.01)):
        train(outputs, "method=lora", f"task={task}", f"protocol.lr={lr}", "study=still")
    code, out, err = command(
        "merge",
        "from=still",
        f"outputs={outputs}",
        "method=lora",
        "merge=pcb,ties",
        "merge.scale=1",
        "merge.heads=kept",
    )
    assert (code, err) == (0, "")
    assert out.count("left out, because they changed nothing: rte\n") == 1
    for way, left_out in (("pcb", ["rte"]), ("ties", None)):
        one = made(outputs / "still")[f"{way} of lora, kept head", "sst2"].made
        assert one is not None
        assert one.facts.get("left_out") == left_out


def test_merges_of_other_settings_are_rows_of_their_own(outputs: Path, command: Command) -> None:
    words = ["method=pafi", "merge=ties", "merge.keep=0.2,0.5,1", "merge.heads=kept", "study=kept"]
    merged(command, outputs, *words)
    code, table, _ = command("table", "kept", "--outputs", str(outputs), "--format", "md")
    assert code == 0
    rows = [line for line in table.splitlines() if line.startswith("| ties of pafi 200, kept head")]
    assert len(rows) == 3, "one for each share of entries kept"
    assert not any("–" in row.split("|")[4:7] for row in rows), "the same share on both tasks"
    shown = command("table", "kept", "--outputs", str(outputs), "--show", "merges", "--format", "md").out
    lines = [line for line in shown.splitlines() if "| ties of pafi 200, kept head" in line]
    assert [line.count("(merge.keep=") for line in lines] == [0, 1, 1]
    assert re.search(r"^\| rte, sst2 \| own run of pafi 200 \| 2 \| [\d.]+ \| 100\.0 \|", shown, re.MULTILINE)
    assert len(re.findall(r"^†2?: merge\.keep=[\d.]+ \(not [\d.]+\)", table, re.MULTILINE)) == 2


def test_what_decides_nothing_makes_no_other_merge(outputs: Path, command: Command) -> None:
    """The order of tasks, rows that refit no head, and what would be tried where nothing is chosen."""
    words = ["method=lora", "merge.heads=kept", "study=once"]
    merged(command, outputs, *words, "merge=average", "tasks=[rte,sst2]")
    for idle in ("tasks=[sst2,rte]", "merge.refit_rows=7", "merge.grid=[0.5]", "merge.choose_rows=7"):
        out = merged(command, outputs, *words, "merge=average", idle)
        assert out.count("already there") == 6, f"{idle}: two merges, their floors and their ceilings"
    chosen = [*words, "merge=ties", "merge.choose_rows=16"]
    merged(command, outputs, *chosen, "merge.grid=[0.5,1.0]")
    assert merged(command, outputs, *chosen, "merge.grid=[1.0,0.5]").count("already there") == 6
    assert merged(command, outputs, *chosen, "merge.grid=[0.5,1.0,2.0]").count("already there") == 4
    both = (by_seed(outputs, "s", "lora", None, tasks, []) for tasks in (["rte", "sst2"], ["sst2", "rte"]))
    assert next(both) == next(both), "with more than two tasks, parents have an order"


def test_share_and_scale_are_chosen_together_on_the_same_held_out_rows(outputs: Path, command: Command) -> None:
    words = ["method=full", "merge.heads=kept", "merge.choose_rows=64"]
    grid = ["merge.grid=[3.0,0.5]", "merge.keeps=[0.3,1.0]", "merge.keep=held_out"]
    ways = ("magnitude", "ties", "dare", "dare_ties", "pcb")
    out = merged(command, outputs, *words, *grid, f"merge={','.join(ways)}", "study=shares")
    for way in ways:
        one = made(outputs / "shares")[f"{way} of full, kept head", "rte"].made
        assert one is not None
        tried = one.facts["tried"]
        assert set(tried) == {f"{scale}, keep {keep}" for scale in ("0.5", "3") for keep in ("0.3", "1")}
        means = {setting: np.mean([*by_task.values()]) for setting, by_task in tried.items()}
        best = min(setting for setting, mean in means.items() if mean == max(means.values()))
        assert best == f"{one.facts['scale']:g}, keep {one.facts['keep']:g}"
        assert f"scale {best}, chosen on held-out rows of " in out
        if way not in ("magnitude", "ties"):
            continue
        given = [f"merge.scale={one.facts['scale']}", f"merge.keep={one.facts['keep']}", f"study={way}"]
        merged(command, outputs, *words, f"merge={way}", *given)
        chosen, same = (
            next((outputs / study).glob(f"rte-{way}-*kept*/seed0")) / "predictions" / "dev.tsv"
            for study in ("shares", way)
        )
        assert chosen.read_bytes() == same.read_bytes()
    merged(command, outputs, *words, *grid, "merge=ties", "merge.scale=1.0", "study=one")
    ties = made(outputs / "one")["ties of full, kept head", "rte"].made
    assert ties is not None
    assert set(ties.facts["tried"]) == {"1, keep 0.3", "1, keep 1"}


def test_a_merge_is_scored_as_a_plain_model_of_its_weights(outputs: Path, command: Command, tmp_path: Path) -> None:
    words = ["method=lora", "merge=task_arithmetic", "merge.scale=0.5", "merge.heads=kept", "study=plain"]
    merged(command, outputs, *words)
    plain = {}
    for task in ("rte", "sst2"):
        (folder,) = (outputs / "s").glob(f"{task}-lora-*/seed0")
        assert command("apply", str(folder), "--output", str(tmp_path / task)).code == 0
        plain[task] = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
    (folder,) = (outputs / "s").glob("rte-lora-*/seed0")
    before = task_model.backbone_of(load_model(parent(folder).model, 2, 0)[0])
    after = [dict(module.named_parameters()) for module in plain.values()]
    with torch.no_grad():
        for name, weight in before.items():
            plain["rte"].get_parameter(name).copy_(weight + 0.5 * sum(one[name] - weight for one in after))
    tokens = task_model.FoldedModel(parent(folder), str(outputs.parent / "cache")).tokens("dev", 48)
    (made_of,) = (outputs / "plain").glob("rte-task_arithmetic-*kept*/seed0/predictions/dev.tsv")
    lines = [line.split("\t") for line in made_of.read_text().splitlines()[1:]]
    assert len(lines) == len(tokens)
    for row, line in enumerate(lines):
        with torch.no_grad():
            logits = plain["rte"](**inputs_of(tokens, row)).logits[0]
        assert [float(value) for value in line[3:]] == pytest.approx(logits.tolist(), abs=2e-5)


def inputs_of(tokens: Tokens, row: int) -> dict[str, torch.Tensor]:
    ids = torch.tensor(tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]).long()[None]
    types = (torch.arange(ids.shape[1]) >= int(tokens.first[row])).long()[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_statistics_are_those_of_autograd_and_of_the_inputs_without_padding(task: str, outputs: Path) -> None:
    (folder,) = (outputs / ("scores" if task == "stsb" else "s")).glob(f"{task}-lora-*/seed0")
    one = task_model.FoldedModel(parent(folder), str(outputs.parent / "cache"))
    one.put({})
    tokens = one.tokens("train", 3)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    found = one.curvature(tokens, [name])[name]
    weight = dict(one.model.backbone())[name].requires_grad_(True)
    expected = torch.zeros_like(weight)
    products = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
    kept: list[torch.Tensor] = []
    layer = one.model.module.get_submodule(name.removesuffix(".weight"))
    hook = layer.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    for row in range(3):
        outputs_of = one.model.forward(inputs_of(tokens, row))[0]
        # a score y is the mean of a normal distribution of unit variance
        terms = outputs_of if task == "stsb" else torch.log_softmax(outputs_of, 0)
        shares = torch.ones(1) if task == "stsb" else terms.detach().exp()
        for share, term in zip(shares, terms, strict=True):
            (grad,) = torch.autograd.grad(term, weight, retain_graph=True)
            expected += share * grad**2 / 3
        products += kept[-1][0].double().T @ kept[-1][0].double()
    hook.remove()
    products /= sum(len(states[0]) for states in kept)
    assert expected.any()
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-3)
    torch.testing.assert_close(one.input_products(tokens, [name])[name], products, atol=1e-4, rtol=1e-4)


def test_a_refitted_head_is_the_best_there_is_on_its_rows() -> None:
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.normal(size=(60, 4)))
    labels = torch.from_numpy((features[:, 0] + 0.5 > 0).numpy().astype(np.int64))
    fitted = task_model.fit_head(features, labels, 2)
    rows = torch.cat([features, torch.ones(60, 1)], 1)
    assert ((rows @ fitted).argmax(1) == labels).float().mean() > 0.95
    scores = 2 * features[:, 1] - 1
    torch.testing.assert_close(
        task_model.fit_head(features, scores, 1)[:, 0], torch.tensor([0, 2, 0, 0, -1.0]).double(), atol=0.02, rtol=0
    )


def line_of(said: Said) -> str:
    assert (said[0], said[1], said[2].count("\n")) == (2, "", 1), said
    return said[2]


def test_what_cannot_be_merged_is_one_line_before_anything_is_made(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    def refused(*words: str) -> str:
        return line_of(command("merge", f"outputs={outputs}", "study=refused", *words))

    ask = ("from=s", "method=lora", "merge=ties")
    assert "merge=tise: did you mean ties" in refused("from=s", "method=lora", "merge=tise")
    assert "from=t: there is none under" in refused("from=t", "method=lora", "merge=ties")
    assert "method=lara: no finished run" in refused("from=s", "method=lara", "merge=ties")
    assert "method: must be given" in refused("from=s", "merge=ties")
    assert "merge.keep=2" in refused(*ask, "merge.keep=2")
    assert "merge.offdiagonal: there is no such key" in refused(*ask, "merge.offdiagonal=1")
    assert "protocol.lr: not a word of merge" in refused(*ask, "protocol.lr=1")
    assert "no finished run of lora on rte, seed 7" in refused(*ask, "seed=7")
    assert "seed=x: must be a whole number" in refused(*ask, "seed=x")
    assert "no finished run of lora on cola" in refused(*ask, "tasks=[cola,rte]")
    assert "a merge is of 2 to" in refused(*ask, "tasks=[rte]")
    assert "tasks=rte: must be a list" in refused(*ask, "tasks=rte")
    for word in ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"):
        assert f"{word}: is of run; here commas sweep, and --save" in refused(*ask, word)
    assert not (outputs / "refused").exists()


def test_adapters_other_backbones_and_two_runs_for_one_task_are_one_line(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    here = tmp_path / "outputs"
    for task in ("rte", "sst2"):
        train(here, "method=houlsby", f"task={task}", "protocol.max_steps=1")
    words = ("merge", "from=s", f"outputs={here}", "merge=average", "study=m")
    assert "adapters" in line_of(command(*words, "method=houlsby"))
    (folder,) = (here / "s").glob("rte-houlsby-*/seed0")
    record = read_record(folder / RECORD_FILE)
    write_record(dataclasses.replace(record, hashes=dataclasses.replace(record.hashes, weights="0" * 64)), folder)
    assert "other backbones" in line_of(command(*words, "method=houlsby"))
    write_record(record, folder)
    write_record(record, here / "s" / "rte-houlsby-other" / "seed0")
    assert "are both of houlsby on rte, seed 0" in line_of(command(*words, "method=houlsby"))
