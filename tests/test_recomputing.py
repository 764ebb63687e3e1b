"""Gradient checkpointing: the same run to the last bit, and less memory kept for the way back."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from support import kept_by_a_layer, left_after, losses
from uses import done

from peftbench.backbone.activations import recomputed_activations
from peftbench.backbone.model import load_model
from peftbench.backbone.recomputing import recomputed
from peftbench.config import compose
from peftbench.ground.files import DELTA_FILE
from peftbench.runner.run import Outcome

SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64, "vocab_size": 2000}
METHODS = {
    "full": ("method=full",),
    "lora": ("method=lora",),
    "houlsby": ("method=houlsby",),
    "random masking": ("method=random_masking", "budget=500"),
    "id3, growing and grown": ("method=id3", "budget=500", "method.steps=3"),
    "adalora": ("method=adalora",),
    "peft in place": ("method=peft", "method.type=adalora", "method.config.init_r=4", "method.config.target_r=2"),
    "lst": ("method=lst", "method.examples=2"),
    "keys and values": ("method=prefix_tuning",),
    "light peft": ("method=light_peft", "protocol.max_steps=8"),
    "prefix": ("method=full", "scope.layers=1", "protocol.keep_prefix=true"),
    "mpnet": ("method=full", "model=mpnet_base", *(f"model.config.{key}={size}" for key, size in SMALL.items())),
}


@pytest.mark.parametrize("words", METHODS.values(), ids=METHODS)
def test_no_value_changes_and_so_no_fingerprint(words: tuple[str, ...], run_tiny: Callable[..., Outcome]) -> None:
    """With dropout."""
    plain = run_tiny(*words, "study=plain")
    again = run_tiny(*words, "study=again", "protocol.gradient_checkpointing=true")
    assert again.record.fingerprint == plain.record.fingerprint
    one, other = done(plain), done(again)
    assert losses(one) == losses(other)
    assert len(set(losses(one))) == len(losses(one))
    assert (one / DELTA_FILE).read_bytes() == (other / DELTA_FILE).read_bytes()


@pytest.mark.parametrize("model", ["roberta_base", "mpnet_base", "deberta_v3_base", "modernbert_base"])
def test_less_is_kept(model: str) -> None:
    """Bytes of tensors kept for the way back, beside the parameters: a layer's input alone, and what lies outside.

    Beside a step without checkpointing, where what is cheap to make is made again, too.
    """
    sizes = [f"model.config.{key}={value}" for key, value in {**SMALL, "num_hidden_layers": 4}.items()]
    sizes += [f"model.config.{key}_token_id=1" for key in ("pad", "bos", "eos", "cls", "sep")] * (
        model == "modernbert_base"
    )
    spec = compose.cell_from([f"model={model}", "model.weights=random", "tracker=none", *sizes]).model
    made, _ = load_model(spec, 2, seed=0)
    batch = {"input_ids": torch.full((4, 32), 9), "attention_mask": torch.ones(4, 32, dtype=torch.long)}
    made.module.train()

    def left(around: Callable[[], AbstractContextManager[None]]) -> int:
        def forward() -> torch.Tensor:
            with around():
                return made.forward(batch)

        return left_after(forward)

    assert left(lambda: recomputed(made)) < 0.3 * left(recomputed_activations)


@pytest.mark.parametrize("words", [("method=full",), ("method=random_masking", "budget=500")], ids=["full", "masked"])
def test_a_layer_keeps_its_input_alone(words: tuple[str, ...]) -> None:
    assert 1 <= kept_by_a_layer(*words, "protocol.gradient_checkpointing=true") < 1.2
