"""make=mlm: masked-LM training goes on, and its folder is a backbone that a prompt reads and a classifier, too."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from forgery import Said
from prompted import masked_checkpoint, wordpiece
from safetensors.torch import load_file

from peftbench.backbone.weights import file_sha256
from peftbench.runner.run import Outcome
from peftbench.training.masked import Vocabulary, hide

Run = Callable[..., Outcome]
Command = Callable[..., Said]
SMALL = ["task=sst2", "data=sample", "protocol.batch_size=16", "protocol.max_length=24", "protocol.precision=fp32"]
VOCABULARY = Vocabulary(mask=4, special={0, 1, 2, 4}, size=100)


def test_a_share_of_the_tokens_is_hidden_and_no_special_one() -> None:
    ids = np.tile(np.array([0, *range(10, 40), 2, 1, 1]), (400, 1))
    shown, hidden = hide(ids, VOCABULARY, 0.15, (7, 1))
    assert not hidden[:, [0, 31, 32, 33]].any()
    assert hidden.mean() * 34 / 30 == pytest.approx(0.15, abs=0.01)
    assert (shown[~hidden] == ids[~hidden]).all()
    masked, kept = (shown[hidden] == 4).mean(), (shown[hidden] == ids[hidden]).mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)
    again, other = hide(ids, VOCABULARY, 0.15, (7, 1)), hide(ids, VOCABULARY, 0.15, (7, 2))
    assert (again[0] == shown).all()
    assert (other[1] != hidden).any()
    assert hide(ids[:1], VOCABULARY, 1e-9, (7, 1))[1].sum() == 1, "one at least"


def made(command: Command, source: list[str], folder: Path, *words: str) -> tuple[list[str], str]:
    """Train on; the words of a cell that uses it, and what was said."""
    make = ["make=mlm", "make.steps=40", "make.lr=3e-3", *source, *SMALL, *words]
    code, out, err = command("backbone", *make, "--to", str(folder))
    assert code == 0, err
    sizes = [word for word in source if word.startswith("model.config.")]
    return [*out.split(), *sizes], err


def test_a_head_is_made_where_there_is_none_and_learns_and_a_prompt_reads_it(
    command: Command, run_tiny: Run, tmp_path: Path
) -> None:
    source = checkpoint("bert_base_uncased", tmp_path / "source", whole=True)
    wordpiece().save_pretrained(tmp_path / "source")
    words, err = made(command, source, tmp_path / "made", f"cache={tmp_path}")
    assert "masked-LM head: new: drawn" in err
    facts = json.loads((tmp_path / "made" / "masked_lm.json").read_text())
    assert facts["head"] == "new"
    assert facts["after"] < facts["before"] - 0.3
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "made"))
    assert torch.equal(before["bert.pooler.dense.weight"], after["bert.pooler.dense.weight"])
    words_of = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(before[words_of], after[words_of])
    for kind in ("prompt", "classifier"):
        record = run_tiny(*words, *SMALL, "method=bitfit", f"readout={kind}", "protocol.max_steps=1").record
        assert record.status == "done"
        assert (record.hashes.weights, record.drawn) == (words[2].partition("=")[2], [])


def test_a_head_that_is_there_is_kept_and_the_backbone_may_stay(command: Command, tmp_path: Path) -> None:
    source = masked_checkpoint("roberta_base", tmp_path / "source")
    _, err = made(command, source, tmp_path / "made", "make.head_only=true", f"cache={tmp_path}")
    assert "the source's own, trained on" in err
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "made"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("lm_head")}
    assert before.keys() == after.keys()
    again = made(command, source, tmp_path / "again", "make.head_only=true", f"cache={tmp_path}")
    sha256 = file_sha256(tmp_path / "made" / "model.safetensors")
    assert again[0][2] == f"model.sha256={sha256}", "equal seeds, equal files"


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["model.weights=random"], 2, "model.weights=random: masked-LM training goes on from weights"),
        (["make.masked=1"], 2, "make.masked=1: must be less than 1"),
        (["make.ratio=0.5"], 2, "make.ratio: there is no such key"),
        (["make.text=/nowhere.txt"], 3, "make.text=/nowhere.txt: No such file"),
        (["task=ax", "task.train=null", "init_from=null"], 2, "task=ax: has no training rows"),
    ],
)
def test_what_is_not_possible_is_one_line(
    words: list[str], code: int, line: str, command: Command, tmp_path: Path
) -> None:
    source = masked_checkpoint("roberta_base", tmp_path / "source")
    given = command("backbone", "make=mlm", *source, *SMALL, *words, "--to", str(tmp_path / "made"))
    assert given[0] == code
    assert given[2].startswith(line)
    assert given[2].count("\n") == 1
