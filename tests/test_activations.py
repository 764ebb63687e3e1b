"""What the way back needs is made again where that is cheap: the same numbers to the last bit, and fewer bytes kept."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import kept_by_a_layer
from test_models import small
from torch import nn
from uses import MODELS

from peftbench.backbone.activations import made, recomputed_activations
from peftbench.backbone.model import Model, load_model

SIZES = {
    **dict.fromkeys(("hidden_size", "dim", "embedding_size", "pooler_hidden_size"), 48),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 64),
    **dict.fromkeys(("num_attention_heads", "n_heads"), 4),
}


def gradients(
    model: Model, precision: torch.dtype, around: AbstractContextManager[None]
) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
    """Logits and every gradient of a pass with dropout."""
    model.noise.seed(3)
    model.module.train().zero_grad()
    ids = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()
    with torch.autocast("cpu", precision, enabled=precision == torch.bfloat16), around:
        logits = model.forward({"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask})
    logits.logsumexp(-1).sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_no_number_changes(name: str, precision: torch.dtype) -> None:
    spec = small(name)
    sizes = {key: size for key, size in SIZES.items() if key in spec.config}
    model, _ = load_model(replace(spec, config={**spec.config, **sizes}), 2, seed=0)
    logits, expected = gradients(model, precision, nullcontext())
    again, actual = gradients(model, precision, recomputed_activations())
    assert torch.equal(again, logits)
    assert actual.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(actual[key], value)] == []


# Of every layer: queries, keys, values, what goes into both norms and (4 times as wide) into gelu; and where the output
# map of attention trains, what goes into that.
TENSORS = {
    "lora": (("method=lora",), 5 + 4),
    "lora, every map": (
        ("method=lora", "method.kinds=[query,key,value,attention_output,intermediate,output]", "method.rank=1"), 6 + 4,
    ),
    "bitfit": (("method=bitfit",), 5 + 4),
    "full": (("method=full",), 6 + 4),
    "random masking": (("method=random_masking", "budget=500"), 6 + 4),
}  # fmt: skip


@pytest.mark.parametrize(("words", "tensors"), TENSORS.values(), ids=TENSORS)
def test_a_layer_keeps_only_what_is_dear(words: tuple[str, ...], tensors: int) -> None:
    assert tensors <= kept_by_a_layer(*words) < tensors + 0.35, "attention's weights alone are more than that"


def test_what_several_want_is_made_again_once_and_then_let_go() -> None:
    calls: list[torch.Tensor] = []

    def norm(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return functional_norm(x)

    x, weights = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    with recomputed_activations():
        y = made(norm, x)
        z = made(torch.sin, y.view(4, 3))
        total = (y * weights + y.t().mm(weights).mean() + (z.view(3, 4) * weights)).sum()
    assert len(calls) == 1
    total.backward()
    assert len(calls) == 2


def functional_norm(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:])


STEPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "norm": lambda x: made(functional_norm, x),
    "gelu": lambda x: made(nn.functional.gelu, x),
    "changed in place": lambda x: made(nn.functional.gelu, x).add_(1),
    "a view": lambda x: made(torch.tanh, x).t().contiguous().t(),
    "half of it": lambda x: torch.cat([made(torch.sigmoid, x)[:, 2:], x[:, :2]], 1),
    "made of a view": lambda x: made(nn.functional.gelu, x.t()).t(),
    "not made": torch.exp,
    "made in vain": lambda x: (made(torch.exp, 2 * x), x)[1] * x,
}


@pytest.mark.parametrize("around", [nullcontext, recomputed_activations])
@pytest.mark.parametrize("name", ["norm", "gelu", "not recomputed", "made of what was made"])
def test_an_input_that_is_changed_in_place_is_an_error_as_of_autograd(name: str, around: Callable[[], Any]) -> None:
    steps = {
        **STEPS,
        "not recomputed": torch.sin,
        "made of what was made": lambda x: made(torch.tanh, STEPS["gelu"](x)),
    }
    x = torch.randn(3, 6, requires_grad=True)
    with around():
        hidden = x * 2
        made_of_it = steps[name](hidden)
        hidden.add_(1)
    with pytest.raises(RuntimeError, match=r"in.?place"):
        made_of_it.square().sum().backward()


@given(names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_any_order_of_steps_has_its_own_gradients(names: list[str], seed: int) -> None:
    """Tensors that are gone leave their addresses to others; views and changes in place are seen."""
    torch.manual_seed(seed)
    start, weights = torch.randn(3, 6), torch.randn(3, 6)
    results = []
    for around in (nullcontext(), recomputed_activations()):
        x, w = start.clone().requires_grad_(), weights.clone().requires_grad_()
        with around:
            y = x
            for name in names:
                y = STEPS[name](y) * w
        y.sum().backward()
        results.append((y.detach(), x.grad, w.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
