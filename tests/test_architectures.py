"""Every architecture from a folder, whole and without its pooler: equal runs are equal, and all uses give their logits.

What a run wrote of its dev rows is the truth; everything that uses the run is held against it.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from uses import CLOSE, MODELS, POOLERS, done, exported, labelled, logits, words_of, written

from peftbench.ground.errors import ConfigError
from peftbench.ground.files import DELTA_FILE
from peftbench.record import Attention, read_record, write_record
from peftbench.runner import apply, deltas
from peftbench.runner.delta import FRESH
from peftbench.runner.run import Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without pooler"])
@pytest.mark.parametrize("name", MODELS)
def test_all_uses_of_a_run_give_its_logits(name: str, whole: bool, tmp_path: Path, run_tiny: Run) -> None:
    encoder = tmp_path / "encoder"
    words = words_of(checkpoint(name, encoder, whole))
    runs = []
    for number in (0, 1):
        torch.manual_seed(number)  # nothing may come from the global generator
        runs.append(done(run_tiny(*words, "method=lora", f"study=s{number}")))
    run, again = runs
    record, truth = read_record(run / "result.json"), written(run)
    lacking = POOLERS.get(name) if not whole else None
    assert record.drawn == ([f"{lacking}.dense.bias", f"{lacking}.dense.weight"] if lacking else [])
    assert record.hashes.tokenizer
    assert record.attention == Attention(2, 2)
    assert np.ptp(truth, axis=0).min() > 1e-3, "rows are told apart"
    for file in (DELTA_FILE, "predictions/dev.tsv"):
        assert (run / file).read_bytes() == (again / file).read_bytes(), file

    np.testing.assert_array_equal(labelled(run, tmp_path), truth)
    apply.write_model(run, tmp_path / "applied")
    applied = AutoModelForSequenceClassification.from_pretrained(tmp_path / "applied")
    np.testing.assert_allclose(logits(applied, tmp_path / "applied"), truth, atol=CLOSE)
    np.testing.assert_allclose(exported(run, encoder, tmp_path / "adapter"), truth, atol=CLOSE)

    # evaluated alone, with the earlier run's head: first with its method, then with its delta merged
    start = [f"init_from={run}", "task.train=null", "task.test=[]", "seed=5"]
    went_on = done(run_tiny(*words, "method=lora", *start))
    np.testing.assert_array_equal(written(went_on), truth)
    other = done(run_tiny(*words, "method=full", *start))
    np.testing.assert_allclose(written(other), truth, atol=CLOSE)
    np.testing.assert_array_equal(labelled(other, tmp_path), written(other))


@pytest.mark.parametrize("name", ["distilbert", "deberta_v3_base", "bert_base_cased"])
def test_a_record_without_the_newer_keys_of_a_layout_predicts_what_its_run_did(
    name: str, tmp_path: Path, run_tiny: Run
) -> None:
    """With full fine-tuning, which trains the drawn pooler, too: it is stored once."""
    run = done(run_tiny(*words_of(checkpoint(name, tmp_path / "encoder")), "method=full"))
    record, stored = read_record(run / "result.json"), load_file(run / DELTA_FILE)
    assert not [key for key in stored if key.startswith(FRESH)]
    assert set(record.drawn) <= set(stored)

    model = record.config["model"]
    old = {key: model["layout"][key] for key in ("layers", "kinds", "head")}
    write_record(replace(record, config={**record.config, "model": {**model, "layout": old}}), run)
    np.testing.assert_array_equal(labelled(run, tmp_path), written(run))


def test_a_run_that_went_on_from_a_merged_one_needs_neither_of_them(tmp_path: Path, run_tiny: Run) -> None:
    """LoRA from BitFit's run, and LoRA on from there: the last delta holds all three, and PEFT's format does not."""
    words = words_of(checkpoint("roberta_base", tmp_path / "encoder"))
    first = done(run_tiny(*words, "method=bitfit"))
    second = done(run_tiny(*words, "method=lora", f"init_from={first}"))
    truth = written(second)
    third = done(run_tiny(*words, "method=lora", f"init_from={second}", "task.train=null", "task.test=[]", "seed=5"))
    np.testing.assert_array_equal(written(third), truth)
    for run in (first, second):
        shutil.rmtree(run)
    np.testing.assert_array_equal(labelled(third, tmp_path), truth)
    with pytest.raises(ConfigError, match="started from another method's run") as caught:
        deltas.export_peft(third, tmp_path / "adapter")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", POOLERS)
def test_lora_on_a_pooler_that_was_drawn_has_no_peft_format(name: str, tmp_path: Path, run_tiny: Run) -> None:
    words = words_of(checkpoint(name, tmp_path / "encoder"), "method=lora", "method.kinds=[pooler]")
    run = done(run_tiny(*words))
    with pytest.raises(ConfigError, match=r"pooler\.dense: the weights lacked it and LoRA trained it") as caught:
        deltas.export_peft(run, tmp_path / "adapter")
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "adapter").exists()
    np.testing.assert_array_equal(labelled(run, tmp_path), written(run))
