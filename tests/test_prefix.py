"""Frozen first layers that are run once per row: the same training without dropout, and less of it computed."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import losses
from transformers.models.bert.modeling_bert import BertSelfAttention

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.runner.counts import count_cell
from peftbench.runner.run import Outcome

Run = Callable[..., Outcome]
BERT = ("+model.config.hidden_dropout_prob=0", "+model.config.attention_probs_dropout_prob=0")
DISTILBERT = ("+model.config.dropout=0", "+model.config.attention_dropout=0", "+model.config.seq_classif_dropout=0")
SMALL = ("model.config.vocab_size=2000", "protocol.precision=fp32")
METHODS = {
    "head": ("method=head", "protocol.lr=0.01"),
    "lora above": ("method=lora", "method.dropout=0", "scope.layers=1"),
    "random masking above": ("method=random_masking", "budget=200", "scope.layers=1", "protocol.lr=0.01"),
    "id3 above": ("method=id3", "budget=50", "scope.layers=1", "protocol.lr=0.01"),
    "full above, accumulated": ("method=full", "scope.layers=1", "protocol.accumulation=2"),
    "fisher above": ("method=fish", "budget=50", "scope.layers=1", "protocol.lr=0.01"),
}
BACKBONES = {
    "roberta": ("model=roberta_base", "model.config.num_hidden_layers=2", *BERT),
    "electra": ("model=electra_small", "model.config.num_hidden_layers=2", *BERT),
    "distilbert": ("model=distilbert", "model.config.n_layers=2", *DISTILBERT),
    "modernbert": (
        "model=modernbert_base",
        "model.config.num_hidden_layers=2",
        *(f"model.config.{key}_token_id=0" for key in ("pad", "bos", "eos", "cls", "sep")),
    ),
    "deberta": ("model=deberta_v3_base", "model.config.num_hidden_layers=2", *BERT),
    "mpnet": ("model=mpnet_base", "model.config.num_hidden_layers=2", *BERT),
}


def logits(outcome: Outcome) -> np.ndarray:
    return np.loadtxt(outcome.path.parent / "predictions" / "dev.tsv", delimiter="\t", skiprows=1, usecols=(3, 4))


def check_same(run_tiny: Run, *words: str) -> None:
    kept, plain = run_tiny(*words, "protocol.keep_prefix=true"), run_tiny(*words)
    assert kept.record.status == plain.record.status == "done"
    assert kept.record.fingerprint != plain.record.fingerprint
    assert len(losses(plain.path.parent)) == 6
    assert losses(kept.path.parent) == pytest.approx(losses(plain.path.parent), rel=1e-5)
    assert logits(kept) == pytest.approx(logits(plain), abs=1e-4)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_without_dropout_training_is_the_same(run_tiny: Run, method: tuple[str, ...]) -> None:
    check_same(run_tiny, *SMALL, *BERT, *method)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("method", [METHODS["head"], METHODS["lora above"]], ids=["head", "lora"])
def test_other_backbones_can_start_in_the_middle(
    run_tiny: Run, backbone: tuple[str, ...], method: tuple[str, ...]
) -> None:
    check_same(run_tiny, *backbone, *SMALL, *method)


def test_frozen_layers_are_run_once_per_row(run_tiny: Run) -> None:
    calls = [0]

    def count(module: torch.nn.Module, *_: object) -> None:
        calls[0] += isinstance(module, BertSelfAttention)

    hook = torch.nn.modules.module.register_module_forward_hook(count)  # type: ignore[no-untyped-call]
    try:
        runs = []
        for steps in (6, 12):
            calls[0] = 0
            run_tiny(
                "method=head", "protocol.keep_prefix=true", f"protocol.max_steps={steps}", "protocol.eval_batch_size=64"
            )
            runs.append(calls[0])
    finally:
        hook.remove()
    # two layers: a batch of training rows, a batch of dev, the two tokens that tell whose attention runs, and a row
    # before and after training whose operations are counted
    assert runs == [10, 10]


def test_in_bf16_and_with_dropout_it_learns(run_tiny: Run) -> None:
    words = ("method=full", "scope.layers=1", "protocol.lr=0.002", "protocol.max_steps=60")
    outcome = run_tiny(*words, "protocol.keep_prefix=true")
    assert np.mean(losses(outcome.path.parent)[-6:]) < 0.5 * losses(outcome.path.parent)[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=lora"], "may change the first layer"),
        (["method=bitfit"], "may change the first layer"),
        (["method=random_masking", "budget=100"], "may change the first layer"),
        (["method=gradual_unfreeze"], "may change the first layer"),
        (["method=head", "model=deberta_v3_base", "model.layout.starts_in_the_middle=false"], "deberta_v3_base"),
    ],
)
def test_refused_where_nothing_can_be_kept(tiny: Callable[..., Cell], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        count_cell(tiny(*words, "protocol.keep_prefix=true"))


def test_strata_tell_what_their_parts_may_change(tiny: Callable[..., Cell]) -> None:
    top = ("method=spafit", "method.strata.biases.last=1")
    count_cell(tiny(*top, "method.strata.frozen.last=0", "protocol.keep_prefix=true"))
    with pytest.raises(ConfigError, match="may change the first layer"):
        count_cell(tiny(*top, "method.strata.frozen.last=-1", "protocol.keep_prefix=true"))


def test_off_it_leaves_fingerprints_as_they_were() -> None:
    off, on = (compose.cell_from(["tracker=none", f"protocol.keep_prefix={word}"]) for word in ("false", "true"))
    assert off.fingerprint == compose.cell_from(["tracker=none"]).fingerprint != on.fingerprint
