"""`peftbench forgetting`: what a run's backbone lost, by two probes, and the column that shows it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from prompted import masked_checkpoint
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from studies import learn_otherwise
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from peftbench.config import compose
from peftbench.data import sources
from peftbench.data.split import make_split
from peftbench.ground import forgotten
from peftbench.ground.errors import DataError
from peftbench.ground.forgotten import Forgetting
from peftbench.lifecycle.forgetting import Measuring, Probe
from peftbench.lifecycle.parents import parent
from peftbench.runner.run import Outcome

Run = Callable[..., Outcome]
Command = Callable[..., Said]
SMALL = ["task=sst2", "data=sample", "protocol.max_length=24", "protocol.max_steps=3", "study=s", "protocol.lr=0.05"]


def spearman_of(folder: Path) -> float:
    """Of a plain folder's encoder, by transformers alone: row by row, without padding."""
    task = compose.cell_from(["task=stsb", "data=sample"])
    rows = sources.load(task.data, task.task.parts[0], ["dev"])["dev"]
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    cosines = []
    for pair in zip(*rows.texts, strict=True):
        ids = [tokenizer(text, truncation=True, max_length=128, return_tensors="pt")["input_ids"] for text in pair]
        with torch.no_grad():
            one, other = (encoder(input_ids=one).last_hidden_state[0].mean(0) for one in ids)
        cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
    assert rows.labels is not None
    return float(spearmanr(cosines, rows.labels).statistic)


def test_the_similarity_of_sentences_is_that_of_the_plain_folders_before_and_after(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    source = checkpoint("bert_base_uncased", tmp_path / "source", whole=True)
    run = run_tiny(*source, *SMALL, "method=full", "protocol.lr=0.003").path.parent
    code, out, err = command("forgetting", str(run), "--cache", str(tmp_path))
    assert code == 0, err
    (kept,) = forgotten.read(run)
    command("apply", str(run), "--output", str(tmp_path / "plain"))
    assert kept.before == pytest.approx(spearman_of(tmp_path / "source"), abs=1e-4)
    assert kept.after == pytest.approx(spearman_of(tmp_path / "plain"), abs=1e-4)
    assert kept.after != kept.before
    assert f"{kept.before:.4f} to {kept.after:.4f}" in out


def test_a_head_alone_forgets_nothing_and_the_table_has_both_in_columns(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    runs = {name: run_tiny(*SMALL, f"method={name}").path.parent for name in ("head", "full")}
    outputs = str(tmp_path / "outputs")
    code, _, err = command("table", "s", "--outputs", outputs, "--show", "forgetting")
    assert (code, "nothing was measured; peftbench forgetting s" in err) == (2, True)
    assert command("forgetting", "s", "--outputs", outputs, "--cache", str(tmp_path))[0] == 0
    head, full = (forgotten.read(runs[name])[0] for name in ("head", "full"))
    assert head.before == head.after == full.before
    assert full.after != full.before
    again = command("forgetting", "s", "--outputs", outputs, "--cache", str(tmp_path))[1]
    assert again.count("measured before") == 2
    shown = command("table", "s", "--outputs", outputs, "--show", "forgetting", "--format", "csv")[1]
    assert "similarity change" in shown
    assert "masked loss" not in shown
    kept = json.loads((runs["full"] / forgotten.FILE).read_text())
    (runs["full"] / forgotten.FILE).write_text(json.dumps([{**kept[0], "delta": "0" * 64}]))
    shown = command("table", "s", "--outputs", outputs, "--show", "forgetting", "--format", "csv")[1]
    assert "full" not in shown, "what an earlier run forgot is not what this one did"


def test_the_loss_of_masked_tokens_is_by_the_head_of_the_weights(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    source = masked_checkpoint("roberta_base", tmp_path / "source")
    text = tmp_path / "text.txt"
    text.write_text("This is great.\n\nIt was a terrible film?\n" * 8)
    runs = {name: run_tiny(*source, *SMALL, f"method={name}").path.parent for name in ("bitfit", "lora", "head")}
    code, _, err = command("forgetting", *map(str, runs.values()), "--text", str(text), "--cache", str(tmp_path))
    assert code == 0, err
    kept = {name: forgotten.read(run)[0] for name, run in runs.items()}
    assert kept["head"].before == kept["head"].after
    assert len({one.before for one in kept.values()}) == 1
    for name in ("bitfit", "lora"):
        command("apply", str(runs[name]), "--output", str(tmp_path / name))
        folded = AutoModelForMaskedLM.from_pretrained(tmp_path / "source")
        folded.load_state_dict(load_file(tmp_path / name / "model.safetensors"), strict=False)
        folded.save_pretrained(tmp_path / "folded")
        AutoTokenizer.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "folded")
        words = [word.replace(str(tmp_path / "source"), str(tmp_path / "folded")) for word in source]
        run = run_tiny(*words, *SMALL, "method=head", f"study={name}").path.parent
        assert command("forgetting", str(run), "--text", str(text), "--cache", str(tmp_path))[0] == 0
        assert forgotten.read(run)[0].before == pytest.approx(kept[name].after, abs=1e-5)
        assert kept[name].after != kept[name].before
    code, out, _ = command("forgetting", str(runs["bitfit"]), "--cache", str(tmp_path))
    assert {one.probe for one in forgotten.read(runs["bitfit"])} == {"similarity", "masked_lm"}, out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished run of this test's own."""
    return Path(shutil.copytree(finished, tmp_path / "outputs" / "s" / finished.parent.name / "seed0"))


def measuring(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> Measuring:
    """A probe of no rows, during which something happens."""
    monkeypatch.setattr(Probe, "measure", lambda *_: (meanwhile(), 0.5)[1])
    return Measuring(Probe("similarity", make_split("dev", (("a",), ("b",)), None)), "")


def test_what_another_probe_measures_meanwhile_is_kept(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = parent(copied), {path.name for path in copied.iterdir()}
    other = Forgetting("masked_lm", "0" * 64, run.delta, 1.0, 2.0)
    one, _ = measuring(monkeypatch, lambda: forgotten.keep(copied, [other])).measured(run)
    assert forgotten.read(copied) == [other, one]
    assert {path.name for path in copied.iterdir()} == before | {forgotten.FILE}


def test_a_run_that_is_run_again_meanwhile_keeps_no_figure_of_what_it_was(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="was run again while it was measured; the same command goes on"):
        measuring(monkeypatch, lambda: learn_otherwise(copied)).measured(parent(copied))
    assert forgotten.read(copied) == []


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["nowhere"], 2, "nowhere"),
        (["RUN", "--text", "no/text"], 3, "--text no/text: No such file"),
        (["RUN", "--text", "empty.txt"], 3, "--text empty.txt: holds no line of text"),
        (["RUN", "--text", "some.txt"], 2, "model.weights=random: there is no masked-LM head to probe with"),
        (["RUN", "--text", "some.txt", "--data", "x"], 2, "--data x: is for the sentences of STS-B"),
        (["RUN", "--data", "x"], 3, "x"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(
    command: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], code: int, reason: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "some.txt").write_text("a dog\n")
    before = {path.name for path in finished.iterdir()}
    said = command("forgetting", *(str(finished) if word == "RUN" else word for word in words))
    assert said[0] == code
    assert reason in said[2]
    assert said[2].count("\n") == 1
    assert {path.name for path in finished.iterdir()} == before


def test_weights_without_a_head_are_refused_before_any_run_is_measured(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("a dog\n")
    headless = run_tiny(*checkpoint("bert_base_uncased", tmp_path / "b"), *SMALL, "method=head").path.parent
    with_one = run_tiny(*masked_checkpoint("roberta_base", tmp_path / "r"), *SMALL, "method=head").path.parent
    code, _, err = command("forgetting", str(with_one), str(headless), "--text", str(tmp_path / "text.txt"))
    assert (code, "model=bert_base_uncased: no masked-LM head to probe with" in err) == (2, True)
    assert forgotten.read(with_one) == []


def test_a_backbone_that_says_the_same_of_every_sentence_tells_none_apart(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    source = checkpoint("bert_base_uncased", tmp_path / "source", whole=True)
    weights = load_file(tmp_path / "source" / "model.safetensors")
    last = "bert.encoder.layer.1.output.LayerNorm.weight"
    save_file(
        {**weights, last: torch.zeros_like(weights[last])}, tmp_path / "source" / "model.safetensors", {"format": "pt"}
    )
    run = run_tiny(*source, *SMALL, "method=head").path.parent
    assert command("forgetting", str(run), "--cache", str(tmp_path))[0] == 0
    (kept,) = forgotten.read(run)
    assert (kept.before, kept.after) == (0.0, 0.0)


def test_a_file_that_is_none_of_these_is_refused(tmp_path: Path) -> None:
    for content in ("{}", "[1]", '[{"probe": "similarity"}]', "[" * 100):
        (tmp_path / forgotten.FILE).write_text(content)
        with pytest.raises(DataError, match="measure again"):
            forgotten.read(tmp_path)
    assert forgotten.read(tmp_path / "nothing") == []
