"""LiST's linear adapter: near the identity at the start, the published count, and folding that changes nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support import assemble
from torch import nn

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.methods.linear_adapter import LinearAdapterLinear
from peftbench.runner.counts import count_cell

Tiny = Callable[..., Cell]
FACTS = yaml.safe_load((Path(__file__).parent / "data" / "counts.yaml").read_text(encoding="utf-8"))


def test_the_count_is_the_published_one() -> None:
    counts = count_cell(compose.cell_from(["model=roberta_large", "method=linear_adapter", "task=mnli"]))
    assert counts.backbone == FACTS["list_adapters"]["values"]["roberta-large"] == 12_582_912
    assert count_cell(compose.cell_from(["model=minilm_l6", "method=linear_adapter"])).backbone == 6 * 2 * 2 * 384 * 128


def test_fresh_adapters_hardly_change_the_logits_and_half_of_one_not_at_all(tiny: Tiny) -> None:
    _, _, plain = assemble(tiny("method=head", "protocol.precision=fp32"))
    _, tuner, trainer = assemble(tiny("method=linear_adapter", "protocol.precision=fp32"))
    expected = plain.evaluator.predict(plain.scored["dev"])
    logits = trainer.evaluator.predict(trainer.scored["dev"])
    assert not np.array_equal(logits, expected)
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
    with torch.no_grad():
        for name, p in tuner.trainables().items():
            if name.endswith("adapter_up"):
                p.zero_()
    np.testing.assert_array_equal(trainer.evaluator.predict(trainer.scored["dev"]), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_folding_gives_the_same_map(bias: bool) -> None:
    torch.manual_seed(0)
    base = nn.Linear(10, 7, bias=bias)
    layer = LinearAdapterLinear(base, width=3, std=0.5)
    x = torch.randn(4, 5, 10)
    y = base(x)
    expected = y + y @ layer.adapter_down.T @ layer.adapter_up.T
    torch.testing.assert_close(layer(x), expected)
    folded = layer.merged()
    torch.testing.assert_close(folded(x), expected)
    assert type(folded) is nn.Linear
    assert (folded.bias is not None) == bias
