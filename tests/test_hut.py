"""HUT against explicitly scaled weights, autograd's closed form and peft's HiRA."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import assemble
from torch import nn

from peftbench.backbone.model import Model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.methods.hut import HUT, HUTLinear, HUTTuner
from peftbench.runner.counts import count_cell

Tiny = Callable[..., Cell]
BLOCKS = {1: ([0] * 10, [0] * 7), 3: ([0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 2, 2])}  # of columns, of rows
READINGS = [(1, "blocks"), (1, "sum"), (3, "blocks"), (3, "sum")]


def learned(rank: int, reading: str, bias: bool = True, out: int = 7, width: int = 10) -> tuple[nn.Linear, HUTLinear]:
    """A frozen map in fp64, and an update of it with random values."""
    torch.manual_seed(rank)
    base = nn.Linear(width, out, bias=bias).double().requires_grad_(False)
    layer = HUTLinear(base, rank, reading).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for p in layer.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    return base, layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rank", "reading"), READINGS)
def test_the_forward_is_the_formula(rank: int, reading: str, bias: bool) -> None:
    base, layer = learned(rank, reading, bias)
    x = torch.randn(4, 5, 10, dtype=torch.float64)
    left, right = torch.ones(7, 10, dtype=torch.float64), torch.ones(7, 10, dtype=torch.float64)
    for i in range(7):
        for j in range(10):
            if reading == "sum":
                left[i, j] += layer.hut_A[i].sum().item()
                right[i, j] += layer.hut_B[:, j].sum().item()
            else:
                left[i, j] += layer.hut_A[i, BLOCKS[rank][0][j]].item()
                right[i, j] += layer.hut_B[BLOCKS[rank][1][i], j].item()
    expected = (1 + layer.hut_scale) * (x @ (left * base.weight * right).T)
    if bias:
        assert layer.hut_shift is not None
        expected = expected + base.bias + layer.hut_shift
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-6)
    assert ("hut_shift" in dict(layer.named_parameters())) == bias
    plain = copy.deepcopy(layer).merged()  # which folds in fp32
    torch.testing.assert_close(plain(x), expected, atol=1e-6, rtol=1e-5)
    assert (plain.bias is not None) == bias


def test_a_weight_of_zero_stays_zero() -> None:
    _, layer = learned(3, "blocks")
    with torch.no_grad():
        layer.weight[2] = 0
        layer.weight[:, 4] = 0
    merged = layer.merged().weight
    assert not merged[2].any()
    assert not merged[:, 4].any()
    assert merged[0, :4].all()


def test_the_gradients_of_the_diagonals_are_the_closed_form() -> None:
    base, layer = learned(1, "blocks")
    x, upstream = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 7, dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    a, b, scale = 1 + layer.hut_A[:, 0], 1 + layer.hut_B[0], 1 + layer.hut_scale
    torch.testing.assert_close(layer.hut_A.grad[:, 0], scale * (upstream * ((x * b) @ base.weight.T)).sum(0))
    torch.testing.assert_close(layer.hut_B.grad[0], (x * ((upstream * scale * a) @ base.weight)).sum(0))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("words", [(), ("method.rank=3",), ("method.rank=3", "method.reading=sum")])
def test_the_start_is_the_backbone_bit_for_bit(words: tuple[str, ...], precision: str, tiny: Tiny) -> None:
    logits = []
    for method in (("method=hut", *words), ("method=head",)):
        _, _, trainer = assemble(tiny(*method, f"protocol.precision={precision}"))
        logits.append(trainer.evaluator.predict(trainer.scored["dev"]))
    np.testing.assert_array_equal(*logits)


def scaled(tiny: Tiny, *words: str) -> tuple[Model, HUTTuner]:
    """The small model with HUT on it, with random factors but neither scale nor shift."""
    model, tuner, _ = assemble(tiny("method=hut", "protocol.precision=fp32", *words))
    assert isinstance(tuner, HUTTuner)
    with torch.no_grad():
        for name, p in tuner.trainables().items():
            if name.endswith(("hut_A", "hut_B")):
                p.normal_(std=0.3)
    return model, tuner


@pytest.mark.parametrize(("rank", "reading"), READINGS)
def test_hira_of_enough_rank_is_the_same_model(rank: int, reading: str, tiny: Tiny) -> None:
    """W * (1 + B A): at rank 1 with B = [a, -1] and A = [b; 1]; S_A * S_B - 1 has at most rank r^2 + 1 in general."""
    peft = pytest.importorskip("peft", reason="peft is an extra that is not installed")
    if not hasattr(peft, "HiraConfig"):
        pytest.skip("this peft has no HiRA")
    plain, _, trainer = assemble(tiny("method=head", "protocol.precision=fp32"))
    model, tuner = scaled(tiny, f"method.rank={rank}", f"method.reading={reading}")
    by_block = rank > 1 and reading == "blocks"
    names = [name.removesuffix(".hut_A") for name in tuner.trainables() if name.endswith("hut_A")]
    enough = rank**2 + 1 if by_block else 2
    theirs = peft.get_peft_model(plain.module, peft.HiraConfig(r=enough, target_modules=names)).eval()
    for name in names:
        a, b = (tuner.trainables()[f"{name}.hut_{side}"].detach() for side in "AB")
        if by_block:
            rows, columns = torch.arange(128) * rank // 128, torch.arange(128) * rank // 128
            pairs = [(p, q) for p in range(rank) for q in range(rank)]
            outer = [((1 + a[:, p]) * (rows == q), (1 + b[q]) * (columns == p)) for p, q in pairs]
        else:
            outer = [(1 + a.sum(1), 1 + b.sum(0))]
        outer.append((-torch.ones(128), torch.ones(128)))
        layer = plain.module.get_submodule(name)
        layer.hira_B["default"].data = torch.stack([column for column, _ in outer], 1)
        layer.hira_A["default"].data = torch.stack([row for _, row in outer])
    batch = trainer.forward.batch(trainer.scored["dev"], np.arange(16))
    with torch.no_grad():
        logits = model.module.eval()(**batch.inputs).logits
        torch.testing.assert_close(logits, theirs(**batch.inputs).logits, atol=1e-6, rtol=1e-5)
        tuner.merge()
        merged = theirs.merge_and_unload().eval()(**batch.inputs).logits
        torch.testing.assert_close(model.module(**batch.inputs).logits, merged, atol=1e-6, rtol=1e-5)


def test_summed_columns_are_no_capacity() -> None:
    """Four columns that are summed take the steps of one with four times the learning rate."""
    weights = []
    for rank, lr in ((4, 0.01), (1, 0.04)):
        torch.manual_seed(0)
        base = nn.Linear(10, 7).double().requires_grad_(False)
        layer = HUTLinear(base, rank, "sum").double()
        x, y = torch.randn(20, 10, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
        for _ in range(20):
            loss = ((layer(x) - y) ** 2).mean()
            factors = [layer.hut_A, layer.hut_B]
            for p, grad in zip(factors, torch.autograd.grad(loss, factors), strict=True):
                p.data -= lr * grad
        weights.append(layer.updated(base.weight.float()))
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], base.weight)


def test_counts_budget_and_decay(tiny: Tiny) -> None:
    assert count_cell(tiny("method=hut", "method.rank=8")).backbone == 2 * 2 * (2 * 128 * 8 + 2 * 128)
    assert count_cell(tiny("model=minilm_l6", "method=hut")).backbone == 18_432
    assert count_cell(tiny("model=minilm_l6", "method=hut", "method.rank=8")).backbone == 82_944
    known = [("bert_base_cased", 1, 73_728), ("bert_base_cased", 8, 331_776), ("roberta_large", 8, 884_736)]
    for model, rank, entries in known:
        cell = compose.cell_from([f"model={model}", "method=hut", f"method.rank={rank}"])
        assert count_cell(cell).backbone == entries
    each, fixed = 2 * 2 * 2 * 128, 2 * 2 * 2 * 128
    assert count_cell(tiny("method=hut", f"budget={fixed + 5 * each + 7}")).backbone == fixed + 5 * each
    _, tuner = scaled(tiny)
    assert {name.rpartition(".")[2] for name in tuner.trainables() if not tuner.decays(name)} == {"hut_shift"}
    with pytest.raises(ConfigError, match=r"method\.rank=129: above the shortest side of a map here, which is 128"):
        count_cell(tiny("method=hut", "method.rank=129"))
    assert HUT().reading == "blocks"
