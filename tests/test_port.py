"""`peftbench port`: what an old run learned on a newer backbone, between its floor and its ceiling."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import uses
from checkpoints import checkpoint
from forgery import Said
from safetensors.torch import load_file, save_file
from studies import learn_otherwise

from peftbench.backbone.model import load_model
from peftbench.backbone.weights import WEIGHTS_FILE
from peftbench.commands import artefacts
from peftbench.config import compose
from peftbench.ground.errors import DataError
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.lifecycle.parents import parent
from peftbench.lifecycle.patch import Patch
from peftbench.lifecycle.task_model import backbone_of
from peftbench.record import Record, find_records, read_record
from peftbench.runner.delta import Delta
from peftbench.runner.deltas import model_spec, reload
from peftbench.runner.porting import ported, put_draws
from peftbench.runner.run import run
from peftbench.study.lock import Elsewhere, Lock

Command = Callable[..., Said]
CELL = ["data=sample", "data.limit=48", "tracker=none", "progress=false", "protocol.max_length=24", "task=sst2"]
CELL += ["protocol.batch_size=8", "protocol.max_steps=3", "protocol.lr=0.01"]
METHODS = {  # by the word: other words of the run
    "full": [],
    "bitfit": [],
    "lora": [],
    "pafi": ["budget=200"],
    "id3_lora": ["budget=60"],
    "adalora": ["method.rank=4", "method.target_rank=2"],
    "spafit": ["method.strata.frozen.last=-1"],
    "houlsby": [],
    "light_peft": [],
}

VALUES = ("full", "bitfit", "pafi")  # their deltas hold final values of entries


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small BERT, which lacks its pooler, the same in other bytes, a newer one, and old runs."""
    folder = tmp_path_factory.mktemp("ported")
    (folder / "words").write_text("\n".join(checkpoint("bert_base_uncased", folder / "old")))
    weights = load_file(folder / "old" / WEIGHTS_FILE)
    torch.manual_seed(2)
    newer = {name: one + 0.05 * torch.randn_like(one) for name, one in weights.items()}
    for name, tensors in (("same", weights), ("newer", newer)):
        shutil.copytree(folder / "old", folder / name)
        save_file(tensors, folder / name / WEIGHTS_FILE, metadata={"format": "pt", "made": name})
    for method, more in METHODS.items():
        run_of([*model(folder, "old"), *CELL, *more, f"method={method}", "study=s", *place(folder)])
    for name in ("same", "newer"):
        words = ["from=s", *model(folder, name), *place(folder), f"study={name}", "port.heads=kept"]
        assert artefacts.port(words) == 0
    return folder


def run_of(words: list[str]) -> Path:
    return run(compose.cell_from(words), compose.resolved(compose.load(words)), words).path.parent


def model(here: Path, name: str) -> list[str]:
    """The words of one of the backbones."""
    words = (here / "words").read_text().splitlines()
    return [word.replace(str(here / "old"), str(here / name)) for word in words]


def place(here: Path) -> list[str]:
    return [f"outputs={here / 'outputs'}", f"cache={here / 'cache'}"]


def port(command: Command, here: Path, *words: str, onto: str = "newer") -> str:
    code, out, err = command("port", "from=s", *model(here, onto), *place(here), *words)
    assert (code, err) == (0, ""), out
    return out


def made(study: Path) -> dict[str, tuple[Path, Record]]:
    """Artefacts of a study by name, without earlier ones that were set aside."""
    records = [(path.parent, read_record(path)) for path in find_records(study) if "-" not in path.parent.name]
    return {one.cell.method: (folder, one) for folder, one in records if one.made is not None}


def own_run(here: Path, method: str) -> Path:
    (folder,) = (here / "outputs" / "s").glob(f"sst2-{method}-[bn0-9]*/seed0")
    return folder


def backbone(here: Path, name: str) -> dict[str, torch.Tensor]:
    weights = load_file(here / name / WEIGHTS_FILE)
    return {key if key.startswith("bert.") else f"bert.{key}": one for key, one in weights.items()}


def named(method: str) -> str:
    budget = [word.partition("=")[2] for word in METHODS[method] if word.startswith("budget=")]
    return " ".join([method, *budget])


@pytest.mark.parametrize("method", METHODS)
def test_on_the_same_weights_a_ported_run_is_the_run_bit_for_bit(method: str, here: Path) -> None:
    folder, record = made(here / "outputs" / "same")[f"port of {named(method)}, kept head"]
    own = own_run(here, method)
    before, after = Delta.load(own / DELTA_FILE), Delta.load(folder / DELTA_FILE)
    assert before.tensors.keys() == after.tensors.keys()
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in after.tensors.items())
    assert (folder / "predictions" / "dev.tsv").read_bytes() == (own / "predictions" / "dev.tsv").read_bytes()
    assert record.headline == read_record(own / RECORD_FILE).headline
    assert record.made is not None
    assert record.made.facts["distance"] == 0


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("houlsby", "light_peft")])
def test_a_ported_run_changes_the_newer_backbone_as_the_run_changed_the_old_one(method: str, here: Path) -> None:
    folder, record = made(here / "outputs" / "newer")[f"port of {named(method)}, kept head"]
    changes = []
    for place_of, name in ((own_run(here, method), "old"), (folder, "newer")):
        weights, (whole, tuner, _) = backbone(here, name), reload(place_of)
        tuner.merge()
        changes.append({key: p.detach().float() - weights[key] for key, p in whole.backbone() if key in weights})
    before, after = changes
    touched = {name for name, change in before.items() if change.any()}
    assert touched
    for name, change in before.items():
        torch.testing.assert_close(after[name], change, atol=2e-6, rtol=0)
        if method in VALUES:
            assert torch.equal(after[name] == 0, change == 0), f"{name}: the same entries, and as many"
        if name not in touched:
            assert not after[name].any(), "what the run left alone stays, bit for bit"
    run_record = read_record(own_run(here, method) / RECORD_FILE)
    assert record.hashes.parents == {f"s/{own_run(here, method).parent.name}/seed0": run_record.hashes.delta}
    assert record.made is not None
    gap = {name: one - backbone(here, "old")[name] for name, one in backbone(here, "newer").items()}
    distance = sum(float(one.double().square().sum()) for one in gap.values()) ** 0.5
    assert record.made.facts["distance"] == pytest.approx(distance, rel=1e-5)
    length = sum(float(one.double().square().sum()) for one in before.values()) ** 0.5
    if method in ("lora", "pafi"):  # of others the pooler counts, which neither file has
        assert record.made.facts["change"]["length"] == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_that_is_carried_there_and_back_is_the_old_one(method: str, here: Path) -> None:
    own = Delta.load(own_run(here, method) / DELTA_FILE)
    there = Delta.load(made(here / "outputs" / "newer")[f"port of {named(method)}, kept head"][0] / DELTA_FILE)
    old, new = (load_model(compose.cell_from(model(here, name)).model, 2, 0)[0] for name in ("old", "newer"))
    put_draws(there, new, old)
    back = ported(there, new, old)
    assert back.tensors.keys() == own.tensors.keys()
    for name, tensor in own.tensors.items():
        torch.testing.assert_close(back.tensors[name], tensor, atol=1e-6, rtol=0)
    differ = any(not torch.equal(there.tensors[name], tensor) for name, tensor in own.tensors.items())
    assert differ == (method in (*VALUES, "spafit")), "factors and modules are carried over as they are"


def test_rows_lie_between_floor_and_run_are_found_again_and_go_stale(
    here: Path, command: Command, tmp_path: Path
) -> None:
    outputs = Path(shutil.copytree(here / "outputs" / "s", tmp_path / "outputs" / "s")).parent
    words = ("method=lora", "study=p", f"outputs={outputs}")
    out = port(command, here, *words)
    records = made(outputs / "p")
    names = {f"{what} of lora, {head} head" for what in ("newer backbone", "port") for head in ("kept", "refitted")}
    names.add("old run of lora")
    assert set(records) == names
    old = read_record(next((outputs / "s").glob("*-lora-*/seed0/result.json")))
    assert records["old run of lora"][1].headline == old.headline, "it is the run, on its own backbone"
    assert out.count("the newer backbone has moved by") == 1
    floor = records["newer backbone of lora, kept head"]
    assert floor[1].hashes.delta is None
    assert floor[1].counts is not None
    assert floor[1].counts.backbone == 0
    kept, refitted = (
        Delta.load(records[f"port of lora, {head} head"][0] / DELTA_FILE) for head in ("kept", "refitted")
    )
    differing = {name for name, one in kept.tensors.items() if not torch.equal(one, refitted.tensors[name])}
    assert differing == {"head.classifier.weight", "head.classifier.bias"}
    again = port(command, here, *words)
    assert again.count("already there: ") == len(names)
    assert port(command, here, *words, "--save") == "p: 1 line kept; peftbench work p\n"
    assert command("work", "p", "--outputs", str(outputs)).out.count("already there: ") == len(names)
    code, table, _ = command("table", "p", "--outputs", str(outputs), "--format", "md")
    assert code == 0
    assert all(f"| {name} |" in table for name in names)
    (own,) = (outputs / "s").glob("sst2-lora-*/seed0")
    sha256 = learn_otherwise(own)
    code, status, _ = command("status", "p", "--outputs", str(outputs))
    assert code == 0
    assert f"{len(names)} stale" in status
    assert "peftbench port from=s" in status
    port(command, here, *words)
    records = made(outputs / "p")
    assert all(sha256 in one.hashes.parents.values() for _, one in records.values())


def test_a_newer_backbone_that_changes_makes_it_anew(here: Path, command: Command, tmp_path: Path) -> None:
    newer = shutil.copytree(here / "newer", tmp_path / "newer")
    words = [word.replace(str(here / "old"), str(newer)) for word in model(here, "old")]
    ask = ("port", "from=s", *words, *place(here), "method=bitfit", "study=moving", "port.heads=kept")
    assert command(*ask)[0] == 0
    weights = load_file(newer / WEIGHTS_FILE)
    save_file({name: one * 1.1 for name, one in weights.items()}, newer / WEIGHTS_FILE, metadata={"format": "pt"})
    code, out, _ = command(*ask)
    assert code == 0
    there = [line for line in out.splitlines() if line.startswith("already there")]
    assert len(there) == 1
    assert "old run of bitfit" in there[0], "on its own backbone, which has not changed"


def test_a_newer_backbone_that_changes_between_two_parts_is_refused(here: Path, tmp_path: Path) -> None:
    newer = shutil.copytree(here / "newer", tmp_path / "newer")
    words = [word.replace(str(here / "old"), str(newer)) for word in model(here, "old")]
    patch = Patch(parent(own_run(here, "bitfit")), compose.cell_from(words).model, str(here / "cache"))
    assert patch.plain().model.weights_sha256 == patch.patched().model.weights_sha256
    save_file(
        {name: one * 1.1 for name, one in load_file(newer / WEIGHTS_FILE).items()},
        newer / WEIGHTS_FILE,
        metadata={"format": "pt"},
    )
    for part in (patch.plain, patch.patched):
        with pytest.raises(DataError, match="its weights changed while a port was made; the same command goes on"):
            part()
    patch.forget()
    assert patch.plain().model.weights_sha256 == load_model(patch.model, 2, 0)[0].weights_sha256


def test_a_scale_moves_the_scores_along_the_change_and_is_chosen_on_held_out_rows(here: Path, command: Command) -> None:
    words = ("method=lora", "study=scaled", "port.scale=0.5,1,held_out", "port.grid=[30,0.5]", "port.refit_rows=8")
    out = port(command, here, *words, "port.choose_rows=8")
    records = made(here / "outputs" / "scaled")
    assert set(records) == {
        f"{what} of lora, {head} head"
        for what in ("newer backbone", "port", "port x0.5", "scaled port")
        for head in ("kept", "refitted")
    } | {"old run of lora"}
    half, scaled = (records[f"{what} of lora, kept head"][1] for what in ("port x0.5", "scaled port"))
    assert half.hashes.delta is None
    assert half.made is not None
    assert half.made.keys == {"scale": 0.5, "head": "kept"}
    assert scaled.made is not None
    facts = scaled.made.facts
    assert set(facts["tried"]) == {"30", "0.5"}
    scores = {float(scale): by_task["sst2"] for scale, by_task in facts["tried"].items()}
    newer = compose.cell_from(model(here, "newer")).model
    patch = Patch(parent(own_run(here, "lora")), newer, str(here / "cache"))
    for scale, score in scores.items():
        on = patch.plain(scale)
        rows = on.tokens("held_out", 8)
        given = on.predict(rows).argmax(1)
        assert score == pytest.approx(float((given == rows.labels).mean()))
    assert facts["scale"] == min(scale for scale in scores if scores[scale] == max(scores.values()))
    assert facts["chosen_on"]["runs_that_trained_on_them"] == ["sst2"], "the run held no rows out"
    assert f"scale {facts['scale']:g}, chosen on held-out rows of 30: " in out
    assert records["scaled port of lora, refitted head"][1].made.facts["scale"] == facts["scale"]  # type: ignore[union-attr]
    if facts["scale"] == 0.5:
        assert scaled.headline == half.headline
    assert scaled.hashes.delta is None


def test_a_port_is_linear_in_what_the_run_learned(here: Path) -> None:
    newer = compose.cell_from(model(here, "newer")).model
    patch = Patch(parent(own_run(here, "lora")), newer, str(here / "cache"))
    assert patch.change is not None
    weights, now = {scale: backbone_of(patch.plain(scale).model) for scale in (0.0, 0.5, 1.0)}, patch.moved.now
    changed = False
    for name, change in patch.change.items():
        for scale, found in weights.items():
            exact = now[name] + scale * change
            rounded = exact.bfloat16().float()  # as frozen weights of the run are kept
            changed |= not torch.equal(rounded, now[name].bfloat16().float())
            assert torch.equal(found[name], exact) or torch.equal(found[name], rounded)
    assert changed


def test_a_ported_adapter_gives_what_peft_makes_of_it_on_the_newer_backbone(here: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is an extra that is not installed")
    folder, _ = made(here / "outputs" / "newer")["port of lora, kept head"]
    theirs = uses.exported(folder, here / "newer", tmp_path / "adapter")
    whole, _, _ = reload(folder)
    np.testing.assert_allclose(uses.logits(whole.module, here / "newer"), theirs, atol=uses.CLOSE)
    own = uses.exported(own_run(here, "lora"), here / "newer", tmp_path / "own")
    np.testing.assert_allclose(own, theirs, atol=uses.CLOSE)  # the factors are carried over as they are
    np.testing.assert_allclose(uses.written(folder), theirs, atol=0.03)  # which were scored in bf16


def test_a_ported_run_is_used_as_a_run(here: Path, command: Command, tmp_path: Path) -> None:
    folder, record = made(here / "outputs" / "newer")["port of bitfit, kept head"]
    assert command("apply", str(folder), "--output", str(tmp_path / "plain"))[0] == 0
    merged, now = load_file(tmp_path / "plain" / WEIGHTS_FILE), backbone(here, "newer")
    assert all(torch.equal(merged[name], one) for name, one in now.items() if name.endswith(".weight"))
    assert any(not torch.equal(merged[name], one) for name, one in now.items() if name.endswith(".bias"))
    fresh, _ = load_model(model_spec(record), 2, 0)
    assert fresh.weights_sha256 == record.hashes.weights


@pytest.mark.parametrize("method", ["lora", "bitfit", "pafi"])
def test_training_goes_on_from_the_ported_delta_and_its_head(method: str, here: Path, command: Command) -> None:
    study = f"on_{method}"
    out = port(command, here, f"method={method}", f"study={study}", "port.steps=0,2")
    records = made(here / "outputs" / study)
    for head in ("kept", "refitted"):
        start, _ = records[f"port of {named(method)}, {head} head"]
        record = records[f"port of {named(method)}, {head} head, 2 steps"][1]
        assert record.made is not None
        assert record.made.facts["started_from"] == f"{study}/{start.parent.name}/seed0"
        trained = here / "outputs" / record.made.facts["run"]
        ran = read_record(trained / RECORD_FILE)
        assert ran.headline == record.headline
        assert (ran.cell.study, ran.config["protocol"]["max_steps"]) == (f"{study}.port", 2)
        assert list(record.hashes.parents.values()) == [read_record(own_run(here, method) / RECORD_FILE).hashes.delta]
        still = [*ran.overrides, "protocol.lr=1e-12", f"study={study}.still"]
        after = Delta.load(run_of(still) / DELTA_FILE)
        first = Delta.load(start / DELTA_FILE)
        assert first.tensors.keys() == after.tensors.keys()
        for name, tensor in first.tensors.items():
            torch.testing.assert_close(after.tensors[name], tensor, atol=1e-9, rtol=1e-6)
        new = Delta.load(run_of([*still, "init_head=new"]) / DELTA_FILE)
        assert not torch.allclose(new.tensors["head.classifier.weight"], first.tensors["head.classifier.weight"])
    assert out.count("no run anew with 2 steps on the newer backbone: peftbench run ") == 1
    again = port(command, here, f"method={method}", f"study={study}", "port.steps=0,2")
    assert again.count("already there: ") == len(records) == 7


def test_runs_trained_anew_are_named_and_then_found(here: Path, command: Command) -> None:
    words = ("method=lora", "study=anew", "port.heads=kept", "port.steps=1")
    out = port(command, here, *words, onto="same")
    missing = [line for line in out.splitlines() if line.startswith("no run anew")]
    assert len(missing) == 2
    for line in missing:
        typed = shlex.split(line.partition(": ")[2])
        assert typed[:2] == ["peftbench", "run"]
        run_of(typed[2:])
    out = port(command, here, *words, onto="same")
    assert "no run anew" not in out
    every = [read_record(path) for path in find_records(here / "outputs" / "anew")]
    assert all(one.made is not None for one in every), "runs lie beside the study, so that no row stands twice"
    records = made(here / "outputs" / "anew")
    _, record = records["anew of lora"]
    own = read_record(own_run(here, "lora") / RECORD_FILE)
    assert record.headline == own.headline, "on the same weights it is the run again"
    assert record.made is not None
    facts = record.made.facts
    assert facts["change"]["cosine"] == pytest.approx(1)
    assert facts["residual"]["in_changes"] == pytest.approx(0, abs=1e-6)
    assert facts["cosines"] == {"query": pytest.approx(1), "value": pytest.approx(1)}
    assert len(record.hashes.parents) == 2
    one = records["anew of lora, 1 steps"][1].made
    assert one is not None
    assert one.facts["residual"]["in_changes"] > 0.1
    assert out.count("length of the change trained anew: ") == 1
    folder, _ = records["anew of lora, 1 steps"]
    (folder / RECORD_FILE).unlink()
    with Lock(folder):
        code, out, err = command("port", "from=s", *model(here, "same"), *place(here), *words)
    assert (code, err) == (Elsewhere.exit_code, ""), "a worker tries that line again"
    assert out.count("is running it") == 1


def test_what_cannot_be_ported_is_one_line_before_anything_is_made(
    here: Path, command: Command, tmp_path: Path
) -> None:
    def refused(code: int, *words: str) -> str:
        said = command("port", *place(here), "study=refused", *words)
        assert (said[0], said[1], said[2].count("\n")) == (code, "", 1), said
        return said[2]

    newer = model(here, "newer")
    assert "from: must be given" in refused(2, *newer)
    assert "model: must be given" in refused(2, "from=s")
    assert "from=t: there is none under" in refused(2, "from=t", *newer)
    assert "method=lara: no finished run" in refused(2, "from=s", *newer, "method=lara")
    assert "seed=7: no finished run" in refused(2, "from=s", *newer, "seed=7")
    assert "protocol.lr: not a word of port" in refused(2, "from=s", *newer, "protocol.lr=1")
    assert "port.heads=none" in refused(2, "from=s", *newer, "port.heads=none")
    assert "port.step: there is no such key" in refused(2, "from=s", *newer, "port.step=1")
    assert "only the whole change is trained on" in refused(2, "from=s", *newer, "port.steps=1", "port.scale=2")
    assert "these runs were trained on that backbone" in refused(2, "from=s", *model(here, "old"))
    larger = checkpoint("bert_base_uncased", tmp_path / "deeper")
    assert "port.scale=0.5: houlsby is no change" in refused(2, "from=s", *newer, "method=houlsby", "port.scale=0.5")
    assert "port.scale=held_out: houlsby is no change" in refused(
        2, "from=s", *newer, "method=houlsby", "port.scale=held_out"
    )
    other = ["model=bert_tiny", "model.weights=random"]
    assert "model=bert_tiny: other shapes than bert_base_uncased of the run" in refused(2, "from=s", *other)
    file = tmp_path / "deeper" / "tokenizer.json"
    file.write_text(file.read_text().replace('"film"', '"movies"'))
    save_file(load_file(here / "newer" / WEIGHTS_FILE), tmp_path / "deeper" / WEIGHTS_FILE, metadata={"format": "pt"})
    assert "another tokenizer than that of the run" in refused(3, "from=s", *larger)
    assert not (here / "outputs" / "refused").exists()
