"""Dropout drops the share it should, scales exactly, and can be taken up where it was left."""

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from peftbench.backbone.attention import attention
from peftbench.backbone.dropout import Dropout, Noise, dropped


@given(p=st.floats(0.01, 0.9), seed=st.integers(0, 2**32), rows=st.integers(1, 7), columns=st.integers(1, 9))
def test_every_element_is_zero_or_scaled_and_so_is_its_gradient(p: float, seed: int, rows: int, columns: int) -> None:
    x = torch.full((rows, columns), 2.0, requires_grad=True)
    dropped = Dropout(p, Noise(seed))(x)
    dropped.sum().backward()
    scale = 1 / (1 - round(p * 2**16) / 2**16)
    assert x.grad is not None
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2 * scale))
    torch.testing.assert_close(x.grad, kept * torch.full_like(x, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_share_that_is_dropped_is_p(p: float, dtype: torch.dtype) -> None:
    n = 2_000_000
    dropped = Dropout(p, Noise(1))(torch.ones(n, dtype=dtype))
    share = (dropped == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / n) ** 0.5 + 2e-5
    assert dropped.dtype == dtype
    neighbours = torch.corrcoef(torch.stack([(dropped == 0)[:-1], (dropped == 0)[1:]]).double())[0, 1].item()
    assert abs(neighbours) < 5 / n**0.5


def test_what_is_kept_is_scaled_as_torch_scales_and_nothing_is_lost_on_the_way() -> None:
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)  # all there are, infinities and NaN among them
    torch.testing.assert_close(dropped(every, key=1, p=0.0), every, rtol=0, atol=0, equal_nan=True)
    p = 0.3
    actual = dropped(every, key=5, p=p)
    kept = dropped(torch.ones(2**16), key=5, p=p) != 0
    expected = (every.float() * (1 / (1 - round(p * 2**16) / 2**16))).bfloat16()
    torch.testing.assert_close(actual[kept], expected[kept], rtol=0, atol=0, equal_nan=True)
    assert (actual[~kept] == 0).all()
    with pytest.raises(TypeError, match="float64"):
        dropped(every.double(), key=5, p=p)


def test_keys_and_places_drop_independently() -> None:
    n, p = 500_000, 0.5
    noise = Noise(0)
    keys = [*(noise.key() for _ in range(5)), 7, 7 + (1 << 32), 7 + (2 << 32)]  # as drawn, and far too near
    gone = torch.stack([dropped(torch.ones(n), key, p) == 0 for key in keys]).double()
    for lag in (0, 1, 2, 3, 8, 64, 384, 4096):
        correlations = torch.corrcoef(torch.cat([gone[:, : n - lag], gone[:, lag:]]))[: len(keys), len(keys) :]
        if lag == 0:
            correlations = correlations - torch.diag(correlations.diag())
            correlations[6, 7] = correlations[7, 6] = 0  # the same key twice
        assert correlations.abs().max() < 6 / n**0.5, lag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", ["qkvb", "qk", "v", "kv", "b"])
def test_dropped_attention_and_its_gradients_are_those_of_its_formula(trained: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 5, 4).to(dtype) for _ in "qkv"] + [torch.randn(1, 3, 5, 5).to(dtype)]
    one, other = ([part.clone().requires_grad_(name in trained) for part, name in zip(parts, "qkvb", strict=True)]
                  for _ in range(2))  # fmt: skip
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    module = torch.nn.Module()
    module.dropout = Dropout(0.9, Noise(9))  # the rate that is asked for counts
    actual, _ = attention(module, *one[:3], mask, dropout=0.4, position_bias=one[3])
    query, key, value, bias = other
    scores = ((query / 2) @ key.transpose(-1, -2) + bias).masked_fill(~mask, torch.finfo(dtype).min)
    left = dropped(torch.ones(scores.shape), Noise(9).key(), p=0.4)
    expected = ((scores.softmax(-1) * left).to(dtype) @ value).transpose(1, 2)
    torch.testing.assert_close(actual, expected)
    for result in (actual, expected):
        result.square().sum().backward()
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        near = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
        torch.testing.assert_close(mine.grad, theirs.grad, **near)


def test_torch_keeps_its_number_of_threads() -> None:
    code = "import torch; from peftbench.backbone.dropout import dropped; dropped(torch.ones(9), 1, 0.5); "
    code += "print(torch.get_num_threads())"
    for count in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": count}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == count


def test_nothing_is_dropped_in_evaluation_or_at_zero() -> None:
    x = torch.randn(5, 6)
    assert Dropout(0.5, Noise()).eval()(x) is x
    assert Dropout(0.0, Noise())(x) is x


def test_the_stream_goes_on_where_its_state_was_taken() -> None:
    one, other = Noise(3), Noise(4)
    drop = Dropout(0.3, one)
    drop(torch.ones(10))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    x = torch.randn(50)
    assert torch.equal(drop(x), Dropout(0.3, other)(x))
    one.seed(3)
    assert torch.equal(drop(x), Dropout(0.3, Noise(3))(x))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_own_but_for_what_is_dropped(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8).unbind()
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    module = torch.nn.Module()
    module.is_causal = False
    expected, _ = sdpa_attention_forward(module, query, key, value, mask if masked else None, dropout=0.0)
    module.dropout = Dropout(1e-9, Noise())  # rounds to no element dropped, and still takes the path that drops
    actual, _ = attention(module, query, key, value, mask if masked else None, dropout=1e-9)
    torch.testing.assert_close(actual, expected)
    module.dropout = Dropout(0.2, Noise(1))
    many = torch.stack(
        [attention(module, query, key, value, mask if masked else None, dropout=0.2)[0] for _ in range(3000)]
    )
    torch.testing.assert_close(many.mean(0), expected, atol=0.06, rtol=0)
    assert (many.std(0) > 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_sees_none_leaves_the_others_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 4, 7, 8).to(dtype).requires_grad_() for _ in range(3)]
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    mask[1, :, 6] = False  # padding beyond the window of a local attention
    module = torch.nn.Module()
    module.dropout = Dropout(0.1, Noise())
    mixed, _ = attention(module, *parts, mask, dropout=0.1)
    assert mixed.isfinite().all()
    mixed[1, :5].sum().backward()  # nothing else follows from padding
    gradients = [part.grad for part in parts if part.grad is not None]
    assert len(gradients) == 3
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[1, :, 5:] == 0).all()
