"""`peftbench edit`: a run's behaviour edited, beside its controls and other tasks' runs, recorded with its parents."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forgery import Said
from safetensors.torch import load_file
from studies import learn_otherwise
from support import TINY, plain

from peftbench.backbone.weights import WEIGHTS_FILE
from peftbench.config import compose, recipes
from peftbench.ground import forgotten
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.lifecycle.editable import Edit, EditableRun
from peftbench.lifecycle.folded_run import FoldedRun
from peftbench.lifecycle.parents import parent
from peftbench.record import Record, find_records, read_record, write_record
from peftbench.report import edited_rows, edits, records
from peftbench.report.edited_rows import Shown
from peftbench.report.figures.every import figures
from peftbench.report.figures.parts import Material
from peftbench.runner.delta import Delta
from peftbench.runner.deltas import delta_of, reload
from peftbench.runner.run import run

Command = Callable[..., Said]
CELL = [*TINY, "data.limit=96", "protocol.max_steps=12", "protocol.lr=0.003", "protocol.precision=fp32"]
CELL += ["protocol.selection=held_out", "protocol.held_out=0.4", "study=s", "method=lora"]
CONTROLS = ("none", "random_direction", "random_rows", "aligned", "sign_flipped", "bias")
ASK = ["edit.behaviour=predicts:entailment", "edit.strength=2.0", "edit.rows=0.1", "edit.probe_epochs=3"]


def train(outputs: Path, *words: str) -> Path:
    words = (*CELL, f"outputs={outputs}", f"cache={outputs.parent / 'cache'}", *words)
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with runs on RTE and STS-B."""
    folder = tmp_path_factory.mktemp("edited") / "outputs"
    for task in ("rte", "stsb"):
        train(folder, f"task={task}")
    return folder


@pytest.fixture(scope="module")
def rte(outputs: Path) -> Path:
    (folder,) = (outputs / "s").glob("rte-lora-*/seed0")
    return folder


def edited(command: Command, folder: Path, *words: str) -> str:
    code, out, err = command("edit", str(folder), *ASK, f"cache={folder.parents[3] / 'cache'}", *words)
    assert (code, err) == (0, ""), out
    return out


def made(study: Path) -> dict[tuple[str, str], tuple[Path, Record]]:
    """Artefacts of a study by name and task, without those that were set aside."""
    every = [(path.parent, read_record(path)) for path in find_records(study) if "-" not in path.parent.name]
    return {(one.cell.method, one.cell.task): (folder, one) for folder, one in every if one.made is not None}


def keys(**more: Any) -> Edit:
    edit, _ = recipes.recipe("edit", ["edit=surgery", *ASK], lambda word: Edit)
    return dataclasses.replace(edit, **more)


def facts(record: Record) -> dict[str, Any]:
    assert record.made is not None
    return record.made.facts


def test_an_edit_stands_beside_its_controls_and_other_tasks_and_is_found_again(
    outputs: Path, rte: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    plain_scored = FoldedRun.scored
    monkeypatch.setattr(
        FoldedRun, "scored", lambda self, *rest: (scored.append(self.task.name), plain_scored(self, *rest))[1]
    )
    words = ("study=e", f"edit.control={','.join(CONTROLS)}")
    out = edited(command, rte, *words)
    assert (scored.count("rte"), scored.count("stsb")) == (1 + 6, 1 + 5), "a shift of RTE's head is none of STS-B's"
    every = made(outputs / "e")
    rows = ["unedited of lora"]
    rows += [f"{'surgery' if one == 'none' else one} predicts:entailment 0.1 x2 of lora" for one in CONTROLS]
    assert set(every) == {(row, task) for row in rows for task in ("rte", "stsb")}
    own = read_record(rte / RECORD_FILE)
    for row in rows[1:]:
        record, beside = every[row, "rte"][1], every[row, "stsb"][1]
        assert list(record.hashes.parents.values()) == [own.hashes.delta]
        assert own.hashes.delta in beside.hashes.parents.values()
        assert len(beside.hashes.parents) == 2
        assert facts(record)["headline_before"] == pytest.approx(own.headline.value)
        assert facts(record)["scored"]["rate_before"] == facts(every[rows[1], "rte"][1])["scored"]["rate_before"]
        assert (every[row, "rte"][0] / DELTA_FILE).stat().st_size < 20_000
    for task in ("rte", "stsb"):
        (folder,) = (outputs / "s").glob(f"{task}-lora-*/seed0")
        plain = read_record(folder / RECORD_FILE).headline.value
        assert every["unedited of lora", task][1].headline.value == pytest.approx(plain, abs=1e-4)
    unmoved = every["unedited of lora", "stsb"][1].headline.value
    files = [every[row, "stsb"][0] / "predictions" / "dev.tsv" for row in ("unedited of lora", rows[-1])]
    assert files[0].read_bytes() == files[1].read_bytes(), "a head is one task's"
    assert every[rows[1], "stsb"][1].headline.value != unmoved
    moved = {one: facts(every[row, "rte"][1]).get("moved") for one, row in zip(CONTROLS, rows[1:], strict=True)}
    assert moved["bias"] is None
    lengths = [one["lengths"] for word, one in moved.items() if one is not None]
    assert all(length == pytest.approx(lengths[0]) for length in lengths), "one strength"
    assert {one["rows"] for one in moved.values() if one is not None} == {102}, "of 1,024"
    assert moved["none"]["cosine"] < moved["random_rows"]["cosine"] < moved["aligned"]["cosine"]
    assert moved["sign_flipped"]["cosine"] == moved["none"]["cosine"]
    assert "entailment: " in out
    assert edited(command, rte, *words).count("already there: ") == len(every)
    code, table, _ = command("table", "e", "--outputs", str(outputs), "--format", "md")
    assert code == 0
    assert all(f"| {row} |" in table for row in rows)
    code, seen, _ = command("table", "e", "--outputs", str(outputs), "--show", "edits", "--format", "md")
    assert code == 0
    assert len([line for line in seen.splitlines() if " x2 of lora |" in line]) == len(CONTROLS)
    assert "collateral is over stsb" in seen


def incisions(rte: Path, **more: Any) -> tuple[EditableRun, dict[str, Any]]:
    one = EditableRun(parent(rte), str(rte.parents[3] / "cache"))
    return one, {control: one.incision(keys(control=control, **more)) for control in CONTROLS}


@pytest.mark.parametrize("probe_at", ["last", "each"])
def test_controls_change_one_thing_each(rte: Path, probe_at: str) -> None:
    one, by_control = incisions(rte, probe_at=probe_at)
    method, total = by_control["none"], sum(map(len, one.weights))
    assert len(method.shifts) == (1 if probe_at == "last" else 2)
    v = one.probed(keys(probe_at=probe_at)).probe.directions
    cosines = torch.cat(
        [torch.cosine_similarity(w, v[i if probe_at == "each" else 0], 1) for i, w in enumerate(one.weights)]
    )
    assert set(method.rows.tolist()) == set(torch.topk(-cosines, 102).indices.tolist())
    assert set(by_control["aligned"].rows.tolist()) == set(torch.topk(cosines, 102).indices.tolist())
    assert torch.equal(by_control["sign_flipped"].rows, method.rows)
    assert torch.equal(by_control["sign_flipped"].shifts, -method.shifts)
    for control in ("aligned", "random_rows"):
        assert torch.equal(by_control[control].shifts, method.shifts)
    random = by_control["random_rows"].rows
    assert len(set(random.tolist())) == 102
    assert 0.2 * total < float(random.double().mean()) < 0.8 * total
    other = by_control["random_direction"]
    assert (torch.cosine_similarity(other.shifts, method.shifts) < 0.5).all()
    torch.testing.assert_close(other.shifts.norm(dim=1), method.shifts.norm(dim=1))
    mean = torch.cat([w.norm(dim=1) for w in one.weights]).mean()
    torch.testing.assert_close(method.shifts.norm(dim=1), (2.0 * mean).expand(len(method.shifts)))
    _, same = incisions(rte, probe_at=probe_at)
    for control in CONTROLS:
        assert torch.equal(same[control].rows, by_control[control].rows)
        assert torch.equal(same[control].shifts, by_control[control].shifts)


def test_the_shift_of_the_bias_reaches_the_rate_of_the_method(rte: Path) -> None:
    one = EditableRun(parent(rte), str(rte.parents[3] / "cache"))
    moved = set()
    for strength in (-8.0, -2.0, 2.0, 8.0):
        edit = keys(strength=strength)
        method = one.on_choice(edit, one.incision(edit))
        control = dataclasses.replace(edit, control="bias")
        shift = one.incision(control)
        assert (len(shift.rows), shift.entries) == (0, 0)
        assert one.on_choice(control, shift).rate == method.rate
        moved.add(method.rate)
    assert len(moved) > 1, "some edit moves the rate"


def test_rows_of_probe_choice_and_score_have_nothing_in_common(rte: Path, tmp_path: Path) -> None:
    one, edit = EditableRun(parent(rte), str(tmp_path)), keys(probe_rows=10**6, choice_rows=10**6)
    whole = dict(one.model.rows)
    probe, choice = one.probe_rows(edit), one.choice_rows(edit)
    assert len(probe) + len(choice) == 96
    assert len(choice) == round(0.4 * 96)
    texts = [set(zip(*rows.texts, strict=True)) for rows in (probe, choice, whole["dev"])]
    assert sum(map(len, texts)) == len(set.union(*texts))
    few = keys(probe_rows=7, choice_rows=5)
    assert (len(one.probe_rows(few)), len(one.choice_rows(few))) == (7, 5)


def test_hidden_states_are_means_over_the_rows_own_tokens(rte: Path) -> None:
    one = EditableRun(parent(rte), str(rte.parents[3] / "cache"))
    one.put(None)
    tokens = one.model.tokens("train", 9)
    names = [name.removesuffix(".weight") for name in one.counts]
    last, each = one.model.token_means(tokens), one.model.token_means(tokens, names)
    assert (last.shape, each.shape) == ((9, 1, 128), (9, 2, 128))
    base: Any = one.model.model.module.base_model
    read: list[torch.Tensor] = []
    hook = one.model.model.module.get_submodule(names[1]).register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0])
    )
    for row in range(9):
        ids = torch.tensor(tokens.ids[tokens.starts[row] : tokens.starts[row + 1]]).long()[None]
        with torch.no_grad():
            types = (torch.arange(ids.shape[1]) >= int(tokens.first[row])).long()[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
            hidden = base(**inputs).last_hidden_state
        torch.testing.assert_close(last[row, 0], hidden[0].mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(each[row, 1], read[-1][0].mean(0), atol=1e-5, rtol=1e-4)
    hook.remove()


def test_a_strength_is_chosen_on_held_out_rows_and_controls_take_it(rte: Path) -> None:
    one = EditableRun(parent(rte), str(rte.parents[3] / "cache"))
    edit = keys(strength="held_out", grid=(-4.0, 1.0, 4.0), loss=1.0)
    tried = one.tried(edit)
    assert set(tried) == {-4.0, 0.0, 1.0, 4.0}
    best = one.strength(edit)
    assert tried[best].rate == min(seen.rate for seen in tried.values())
    assert one.strength(dataclasses.replace(edit, control="aligned")) == best
    strict = dataclasses.replace(edit, loss=0.0)
    chosen = one.tried(strict)[one.strength(strict)]
    assert chosen.headline >= tried[0.0].headline
    plain = one.on_choice(edit, None)
    assert (plain.rate, plain.headline) == (tried[0.0].rate, tried[0.0].headline)


def test_what_an_edit_forgot_is_counted_from_the_pretrained_weights_and_so_with_its_run(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(outputs / "s", tmp_path / "outputs" / "s")).parent
    (own,) = (here / "s").glob("rte-lora-*/seed0")
    edited(command, own, "study=f", "collateral=[]", "edit.strength=0.0,4.0")
    every = made(here / "f")
    nothing, strong = (every[f"surgery predicts:entailment 0.1 x{x} of lora", "rte"][0] for x in (0, 4))
    code, _, err = command("forgetting", str(own), str(nothing), str(strong), "--cache", str(tmp_path))
    assert code == 0, err
    of_run, of_nothing, of_edit = (forgotten.read(folder)[0] for folder in (own, nothing, strong))
    assert of_run.before == of_nothing.before == of_edit.before
    assert of_nothing.after == pytest.approx(of_run.after, abs=1e-6), "all of its change is the run's"
    assert abs(of_edit.after - of_run.after) > 1e-4


def test_an_edited_run_is_used_as_a_run_as_long_as_its_run_is_there(
    outputs: Path, rte: Path, command: Command, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(outputs / "s", tmp_path / "outputs" / "s")).parent
    (own,) = (here / "s").glob("rte-lora-*/seed0")
    edited(command, own, "study=u", "edit.control=none,bias", "collateral=[]", "edit.probe_at=each")
    every = made(here / "u")
    name = "surgery predicts:entailment each 0.1 x2 of lora"
    folder, _ = every[name, "rte"]
    assert {task for _, task in every} == {"rte"}
    stored = load_file(folder / DELTA_FILE)
    assert {key: tuple(one.shape) for key, one in stored.items()} == {"rows": (102,), "shifts": (2, 128)}
    model, _, _ = reload(folder)
    plain, tuner, _ = reload(own)
    tuner.merge()
    before, after = dict(plain.backbone()), dict(model.backbone())
    changed = {
        name: (before[name] != after[name]).any(1) for name in before if not torch.equal(before[name], after[name])
    }
    assert sum(int(rows.sum()) for rows in changed.values()) == 102
    assert all(name.endswith("intermediate.dense.weight") for name in changed)
    rows = [line.split("\t") for line in (folder / "predictions" / "dev.tsv").read_text().splitlines()[1:]]
    texts = here.parent / "rows.tsv"
    pairs = zip(*EditableRun(parent(own), str(tmp_path / "cache")).model.rows["dev"].texts, strict=True)
    texts.write_text("\n".join("\t".join(pair) for pair in [("sentence1", "sentence2"), *pairs]) + "\n")
    code, out, _ = command("predict", str(folder), str(texts))
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()[1:]] == [row[1] for row in rows]
    code, _, _ = command("apply", str(folder), "--output", str(tmp_path / "plain"))
    assert code == 0
    applied = load_file(tmp_path / "plain" / WEIGHTS_FILE)
    assert all(torch.equal(applied[name], one) for name, one in after.items())
    shifted, _ = every["bias predicts:entailment each 0.1 x2 of lora", "rte"]
    whole = delta_of(shifted)
    assert torch.equal(
        whole.tensors["head.classifier.weight"], Delta.load(own / DELTA_FILE).tensors["head.classifier.weight"]
    )
    bias = facts(every["bias predicts:entailment each 0.1 x2 of lora", "rte"][1])["bias"]
    difference = whole.tensors["head.classifier.bias"] - Delta.load(own / DELTA_FILE).tensors["head.classifier.bias"]
    assert difference.tolist() == pytest.approx([bias, 0], abs=1e-5)
    record = read_record(folder / RECORD_FILE)
    circle = {f"u/{folder.parent.name}/seed0": str(record.hashes.delta)}
    for forged, said in ((circle, "the edit is of another run"), ({}, "its record names 0")):
        write_record(dataclasses.replace(record, hashes=dataclasses.replace(record.hashes, parents=forged)), folder)
        code, _, err = command("predict", str(folder), str(texts))
        assert (code, err.count("\n")) == (3, 1)
        assert said in err
    write_record(record, folder)
    learn_otherwise(own)
    code, _, err = command("predict", str(folder), str(texts))
    assert (code, err.count("\n")) == (3, 1)
    assert "has learned something else since" in err
    shutil.rmtree(own)
    code, _, err = command("apply", str(folder), "--output", str(tmp_path / "gone"))
    assert (code, err.count("\n")) == (3, 1)
    assert "an edit is used with the run that it is of" in err


@pytest.mark.parametrize("words", [["method=full"], ["method=ia3"], ["method=id3_lora", "budget=60"]])
def test_the_stored_edit_is_what_was_scored_whatever_the_run_learned(
    words: list[str], command: Command, tmp_path: Path
) -> None:
    own = train(tmp_path / "outputs", "task=rte", *words, "protocol.max_steps=3")
    edited(command, own, "study=k")
    ((folder, record),) = [one for (name, _), one in made(tmp_path / "outputs" / "k").items() if "unedited" not in name]
    assert (folder / DELTA_FILE).stat().st_size < 20_000
    run = EditableRun(parent(own), str(tmp_path / "cache"))
    edit = keys()
    run.operate(edit, run.incision(edit))
    scored, model = dict(run.model.model.backbone()), reload(folder)[0]
    stored = {plain(name): p for name, p in model.backbone()}
    assert all(torch.equal(p, stored[plain(name)]) for name, p in scored.items())
    assert record.counts is not None
    assert record.counts.backbone == 102 * 128


def test_an_edit_goes_stale_with_its_run_and_workers_make_it_anew(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(outputs / "s", tmp_path / "outputs" / "s")).parent
    (own,) = (here / "s").glob("rte-lora-*/seed0")
    words = ("study=w", "collateral=[stsb]")
    assert edited(command, own, *words, "--save") == "w: 1 line kept; peftbench work w\n"
    code, out, err = command("work", "w", "--outputs", str(here))
    assert (code, err) == (0, ""), out
    assert {task for _, task in made(here / "w")} == {"rte", "stsb"}
    assert edited(command, own, *words).count("already there: ") == 4
    sha256 = learn_otherwise(own)
    code, out, _ = command("status", "w", "--outputs", str(here))
    assert code == 0
    assert "3 stale" in out, "the other task's unedited run is as it was"
    assert "peftbench edit " in out
    edited(command, own, *words)
    every = made(here / "w")
    assert sum(sha256 in one.hashes.parents.values() for _, one in every.values()) == 3


def test_several_runs_are_edited_by_one_command_and_all_are_looked_at_first(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(outputs / "s", tmp_path / "outputs" / "s")).parent
    train(here, "task=rte", "seed=1")
    rows = sorted((here / "s").glob("rte-lora-*/seed?"))
    words = [*ASK, f"cache={tmp_path / 'cache'}", "study=both", "collateral=[]"]
    assert command("edit", *map(str, rows), *words, "--save").out == "both: 2 lines kept; peftbench work both\n"
    (stsb,) = (here / "s").glob("stsb-lora-*/seed0")
    said = command("edit", *words, *map(str, rows), str(stsb))
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "task=stsb is a regression" in said.err
    assert not [*find_records(here / "both")]
    code, out, err = command("edit", str(rows[0]), *words, str(rows[1]))
    assert (code, err) == (0, ""), out
    every = [read_record(path) for path in find_records(here / "both")]
    assert sorted((one.cell.seed, one.cell.method.partition(" ")[0]) for one in every) == [
        (0, "surgery"), (0, "unedited"), (1, "surgery"), (1, "unedited"),
    ]  # fmt: skip
    for one in every:
        assert list(one.hashes.parents) == [f"s/{rows[0].parent.name}/seed{one.cell.seed}"]
    assert command("work", "both", "--outputs", str(here)).out.count("already there: ") == 4
    said = command("edit", *words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "edit: no run; name the folder" in said.err


@pytest.mark.parametrize("behaviour", ["overlap", "negation"])
def test_a_shortcut_is_counted_on_the_rows_that_can_show_it(
    behaviour: str, outputs: Path, rte: Path, command: Command
) -> None:
    edited(command, rte, f"study={behaviour}", "collateral=[]", f"edit.behaviour={behaviour}")
    (record,) = (one for _, one in made(outputs / behaviour).values() if "scored" in facts(one))
    seen, dev = facts(record)["scored"], EditableRun(parent(rte), "").model.rows["dev"]
    words = [[set(re.findall(r"\w+(?:'\w+)*", text.lower())) for text in column] for column in dev.texts]
    train = EditableRun(parent(rte), "").probe_rows(keys())
    before = [set(re.findall(r"\w+(?:'\w+)*", text.lower())) for column in train.texts for text in column]
    half = len(train)
    median = np.median([len(a & b) / len(a | b) for a, b in zip(before[:half], before[half:], strict=True)])
    shared = np.array([len(a & b) / len(a | b) for a, b in zip(*words, strict=True)])
    no = np.array([any(w in ("no", "not", "never") or w.endswith("n't") for w in row) for row in words[1]])
    expected = (shared > median) & (dev.labels == 1) if behaviour == "overlap" else no
    assert seen["prone"] == expected.sum()
    assert seen["prone_rows"] == np.flatnonzero(expected).tolist()
    sheet = edits.sheet(records.read_study(outputs, behaviour))
    (change,) = (line[3] for line in sheet.numbers if line[2] == "change of rate")
    assert change == pytest.approx(seen["rate"] - seen["rate_before"])
    (folder,) = (folder for folder, one in made(outputs / behaviour).values() if "scored" in facts(one))
    text = (folder / "predictions" / "dev.tsv").read_text()
    answers = {"entailment": "not_entailment", "not_entailment": "entailment"}
    other = [line.split("\t") for line in text.splitlines()]
    for row in other[1:]:
        row[1] = answers[row[1]]
    (folder / "predictions" / "dev.tsv").write_text("\n".join("\t".join(row) for row in other) + "\n")
    sheet = edits.sheet(records.read_study(outputs, behaviour))
    assert "change of rate" not in {line[2] for line in sheet.numbers}, "predictions that are not those of the record"
    assert any(note.startswith("no interval, as no predictions") for note in sheet.notes)
    assert seen["shown"] == round(seen["rate_before"] * seen["prone"])
    assert seen["shown"] + seen["outside"] == seen["rows"] == len(dev)
    assert facts(record)["answer"] == ("entailment" if behaviour == "overlap" else "not_entailment")


def test_an_interval_of_a_rate_is_over_seeds_and_the_rows_that_can_show_it() -> None:
    random = np.random.default_rng(3)

    def seeds(number: int, cured: float, rows: int = 35) -> dict[int, Shown]:
        before = random.random((number, rows)) < 0.8
        after = before & (random.random((number, rows)) >= cured)
        return {seed: Shown(tuple(range(rows)), before[seed], after[seed]) for seed in range(number)}

    one = seeds(1, 0.4)
    value, low, high = edited_rows.change(one) or pytest.fail("no interval")
    change = one[0].after.astype(float) - one[0].before
    spread = 1.96 * change.std() / np.sqrt(len(change))
    assert value == pytest.approx(change.mean())
    assert (low, high) == pytest.approx((value - spread, value + spread), abs=0.03), "of one seed, by the rows alone"
    few, many = (edited_rows.change(seeds(3, 0.4, rows)) or pytest.fail("no interval") for rows in (35, 3500))
    assert many[2] - many[1] < (few[2] - few[1]) / 4
    alike = dict.fromkeys(range(3), one[0])
    assert edited_rows.beside(alike, alike) == (0, 0, 0), "paired, row by row"
    assert edited_rows.beside(alike, {}) is None
    assert edited_rows.change({**one, 1: seeds(1, 0.4, 36)[0]}) is None, "other rows in another seed"
    apart = {seed: Shown(tuple(range(35)), np.ones(35, bool), np.full(35, seed > 0)) for seed in range(3)}
    assert edited_rows.change(apart) == pytest.approx((-1 / 3, -1, 0)), "seeds differ, though no row does"


def test_nothing_moved_changes_nothing(outputs: Path, rte: Path, command: Command) -> None:
    edited(command, rte, "study=z", "collateral=[]", "edit.rows=0", "edit.control=none,bias")
    edited(command, rte, "study=z", "collateral=[]", "edit.strength=0")
    plain = made(outputs / "z")["unedited of lora", "rte"]
    for folder, record in made(outputs / "z").values():
        assert record.headline == plain[1].headline
        assert (folder / "predictions" / "dev.tsv").read_text() == (plain[0] / "predictions" / "dev.tsv").read_text()


def test_a_task_that_a_seed_lacks_is_named_and_no_seeds_collateral_is_over_other_tasks(
    outputs: Path, command: Command, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(outputs / "s", tmp_path / "outputs" / "s")).parent
    train(here, "task=rte", "seed=1")
    train(here, "task=sst2", "model.config.num_hidden_layers=1", "protocol.max_steps=1")
    rows = sorted((here / "s").glob("rte-lora-*/seed?"))
    words = [*ASK, f"cache={tmp_path / 'cache'}", "study=k"]
    code, out, err = command("edit", *map(str, rows), *words)
    assert (code, err) == (0, ""), out
    assert [line for line in out.splitlines() if "collateral without" in line] == [
        "rte, seed 0: collateral without sst2, whose run is on another backbone",
        *(
            f"rte, seed 1: collateral without {task}, which has no finished run of this seed"
            for task in ("sst2", "stsb")
        ),
    ]
    train(here, "task=sst2")
    train(here, "task=stsb", "seed=1")
    assert command("edit", *map(str, rows), *words).code == 0
    row = "surgery predicts:entailment 0.1 x2 of lora"
    stsb = [read_record(path) for path in find_records(here / "k")]
    changes = [
        100 * ((one.headline.value or 0) - facts(one)["headline_before"])
        for one in stsb
        if (one.cell.task, one.cell.method) == ("stsb", row)
    ]
    sheet = edits.sheet(records.read_study(here, "k"))
    (seen,) = (line for line in sheet.numbers if line[1:3] == [row, "collateral"])
    assert seen[3] == pytest.approx(sum(changes) / 2)
    assert "collateral is over stsb" in sheet.notes
    assert f"left out of collateral, since not every seed has it: {row}: sst2" in sheet.notes


def test_the_view_and_the_curves_are_made_of_what_was_recorded(outputs: Path, rte: Path, command: Command) -> None:
    edited(command, rte, "study=c", "collateral=[stsb]", "edit.strength=1.0,4.0", "edit.control=none,aligned")
    study = records.read_study(outputs, "c")
    numbers = edits.sheet(study).numbers
    every = made(outputs / "c")
    for name, (_, record) in every.items():
        if name[1] != "rte" or "scored" not in facts(record):
            continue
        mine = {row[2]: row[3] for row in numbers[1:] if row[1] == name[0]}
        seen, beside = facts(record)["scored"], every[name[0], "stsb"][1]
        assert mine["rate"] == seen["rate"]
        assert mine["change of rate"] == pytest.approx(seen["rate"] - seen["rate_before"])
        assert mine["change of rate, low"] <= mine["change of rate"] <= mine["change of rate, high"]
        if name[0].startswith("aligned"):
            method = every[name[0].replace("aligned", "surgery"), "rte"][1]
            assert mine["method − control"] == pytest.approx(facts(method)["scored"]["rate"] - seen["rate"])
        else:
            assert "method − control" not in mine
        assert mine["headline"] == pytest.approx(100 * (record.headline.value - facts(record)["headline_before"]))
        change = 100 * ((beside.headline.value or 0) - facts(beside)["headline_before"])
        assert mine["collateral"] == pytest.approx(change)
    code, text, _ = command("table", "c", "--outputs", str(outputs), "--show", "edits", "--format", "md")
    assert (code, len(re.findall(r"\| [+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\] \|", text))) == (0, 4)
    drawn = {figure.word: figure for figure in figures(Material(study))}
    assert {word for word in drawn if word.startswith("edits_")} == {
        f"edits_{word}_strength" for word in ("rate", "headline", "collateral")
    }
    (panel,) = drawn["edits_rate_strength"].panels
    assert {series.name: series.x for series in panel.series} == {"surgery": [1, 4], "aligned": [1, 4]}
    for series in panel.series:
        named = series.name if series.name == "aligned" else "surgery"
        seen = [facts(every[f"{named} predicts:entailment 0.1 x{x:g} of lora", "rte"][1])["scored"] for x in (1, 4)]
        assert series.y == pytest.approx([100 * (one["rate"] - one["rate_before"]) for one in seen])
    edited(command, rte, "study=c", "collateral=[stsb]", "edit.strength=4.0", "edit.rows=0.3")
    drawn = {figure.word: figure for figure in figures(Material(records.read_study(outputs, "c")))}
    (panel,) = drawn["edits_headline_rows"].panels
    (series,) = (one for one in panel.series if len(one.x) > 1)
    assert (series.name, series.x) == ("surgery, strength 4.0", [10, 30])
    every = made(outputs / "c")
    by_rows = [every[f"surgery predicts:entailment {rows} x4 of lora", "rte"][1] for rows in (0.1, 0.3)]
    gained = [(one.headline.value or 0) - facts(one)["headline_before"] for one in by_rows]
    assert series.y == pytest.approx([100 * one for one in gained])


def test_what_cannot_be_edited_is_one_line_before_anything_is_made(
    outputs: Path, rte: Path, command: Command, tmp_path: Path
) -> None:
    def refused(*words: str, of: Path = rte, code: int = 2) -> str:
        said = command("edit", str(of), "study=refused", *words)
        assert (said[0], said[1], said[2].count("\n")) == (code, "", 1), said
        return said[2]

    ask = "edit.behaviour=predicts:entailment"
    assert "edit.behaviour: must be given" in refused()
    assert "edit.behaviour=predicts:entailmen: no label of task=rte; did you mean entailment" in refused(
        "edit.behaviour=predicts:entailmen"
    )
    assert "there is no such behaviour; did you mean overlap" in refused("edit.behaviour=overlaps")
    assert "edit=surgry: did you mean surgery" in refused("edit=surgry", ask)
    assert "edit.row: there is no such key" in refused(ask, "edit.row=1")
    assert "edit.rows=2" in refused(ask, "edit.rows=2")
    assert "edit.control=alinged: did you mean aligned" in refused(ask, "edit.control=alinged")
    assert "edit.strength=weak" in refused(ask, "edit.strength=weak")
    assert "task: not a word of edit" in refused(ask, "task=qnli")
    assert "protocol.lr: not a word of edit" in refused(ask, "protocol.lr=1")
    assert "collateral=rte: must be a list" in refused(ask, "collateral=rte")
    assert "collateral: no finished run of cola" in refused(ask, "collateral=[cola]")
    (stsb,) = (outputs / "s").glob("stsb-lora-*/seed0")
    assert "task=stsb is a regression" in refused(ask, of=stsb)
    assert "not a readable record" in refused(ask, of=tmp_path, code=3)
    assert not (outputs / "refused").exists()


def test_adapters_and_joint_runs_are_one_line(outputs: Path, command: Command, tmp_path: Path) -> None:
    here = tmp_path / "outputs"
    adapters = train(here, "task=rte", "method=houlsby", "protocol.max_steps=1")
    said = command("edit", str(adapters), *ASK)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "adapters" in said.err
    record = read_record(adapters / RECORD_FILE)
    few = dataclasses.replace(record, config={**record.config, "shots": {"split": 1, "total": 8}})
    write_record(few, adapters)
    said = command("edit", str(adapters), *ASK)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert "few labels" in said.err
