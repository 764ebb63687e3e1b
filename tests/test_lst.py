"""LST: the ladder is the formula, no activation of the backbone is kept for the way back, layers start as its own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from support import assemble, losses, values
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer
from uses import MODELS, done, labelled, words_of, written

from peftbench.backbone.model import Model, build, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell, Scope
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import Tuner
from peftbench.methods.lst import LST, Ladder
from peftbench.methods.narrow import kept_rows
from peftbench.methods.narrow_start import Importance, best, fisher
from peftbench.methods.strata import Strata, Stratum
from peftbench.runner import apply
from peftbench.runner.counts import count_cell
from peftbench.runner.run import Outcome
from peftbench.training.trainer import Trainer

Make = Callable[..., Cell]
Run = Callable[..., Outcome]
WORDS = ("method=lst", "method.init=random", "protocol.precision=fp32")
MODERNBERT = (
    "model=modernbert_base",
    *(f"model.config.{key}_token_id=0" for key in ("pad", "bos", "eos", "cls", "sep")),
)
LAYERS = "model.config.num_hidden_layers=4"


def ladder_of(model: Model) -> Ladder:
    ladder = model.module.get_submodule("ladder")
    assert isinstance(ladder, Ladder)
    return ladder


def first_batch(trainer: Trainer) -> Any:
    assert trainer.train is not None
    return trainer.forward.batch(trainer.train, trainer.order(0)[0])


def by_formula(plain: nn.Module, tuner: Tuner, rungs: list[int], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits from a plain BERT's hidden states, narrow layers of the library, and the ladder's weights."""
    module: Any = plain
    hidden = module.bert(**inputs, output_hidden_states=True).hidden_states
    w = {name.removeprefix("ladder."): p.detach() for name, p in tuner.trainables().items()}
    config = copy.deepcopy(module.config)
    config.hidden_size, config.intermediate_size, config._attn_implementation = 16, 64, "eager"
    mask = (1.0 - inputs["attention_mask"][:, None, None, :].float()) * torch.finfo(torch.float32).min
    z = nn.functional.linear(hidden[0], w["downs.0.weight"], w["downs.0.bias"])
    for i, rung in enumerate(rungs):
        layer, start = BertLayer(config).eval(), f"side.encoder.encoder.layer.{i}."
        layer.load_state_dict({name.removeprefix(start): p for name, p in w.items() if name.startswith(start)})
        mu = torch.sigmoid(w["gates"][i] / 0.1)
        down = nn.functional.linear(hidden[rung + 1], w[f"downs.{i + 1}.weight"], w[f"downs.{i + 1}.bias"])
        z = layer(mu * z + (1 - mu) * down, mask)
    y = nn.functional.linear(z, w["up.weight"], w["up.bias"])
    logits: torch.Tensor = module.classifier(module.bert.pooler(y))
    return logits


@pytest.mark.parametrize(("words", "rungs"), [((), [0, 1, 2, 3]), (("method.every=2", "scope.layers=[0,1,2]"), [0, 2])])
def test_the_logits_are_the_formulas(tiny: Make, words: tuple[str, ...], rungs: list[int]) -> None:
    cell = tiny(*WORDS, LAYERS, *words, "protocol.lr=0.01")
    model, tuner, trainer = assemble(cell)
    assert all(mu == 0.5 for mu in tuner.facts()["mu"])
    trainer.run()
    assert tuner.facts()["rungs"] == rungs
    assert all(mu != 0.5 for mu in tuner.facts()["mu"])
    batch = first_batch(trainer)
    plain = load_model(cell.model, 2, cell.seed)[0].module.eval()
    plain.get_submodule("classifier").load_state_dict(model.module.get_submodule("classifier").state_dict())
    model.module.eval()
    with torch.no_grad():
        expected = by_formula(plain, tuner, rungs, {k: v for k, v in batch.inputs.items() if k != "labels"})
        torch.testing.assert_close(trainer.forward.logits(batch), expected, atol=1e-5, rtol=1e-5)
        for gates, below in ((-100.0, False), (100.0, True)):  # every rung forgets what is below it, or all but that
            ladder_of(model).gates.fill_(gates)
            before = trainer.forward.logits(batch)
            ladder_of(model).downs[0].weight.add_(1.0)
            assert torch.equal(before, trainer.forward.logits(batch)) != below


def test_padding_and_other_rows_change_nothing(tiny: Make) -> None:
    model, _, trainer = assemble(tiny(*WORDS, "method.every=2", LAYERS))
    model.module.eval()
    assert trainer.train is not None
    rows = trainer.order(0)[0]
    with torch.no_grad():
        together = trainer.forward.logits(trainer.forward.batch(trainer.train, rows))
        alone = [
            trainer.forward.logits(trainer.forward.batch(trainer.train, rows[i : i + 1])) for i in range(len(rows))
        ]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-5)
    assert float(together.std(0).min()) > 1e-4


def saved(model: Model, trainer: Trainer) -> tuple[int, list[str]]:
    """Bytes that a training step keeps for the way back, and the backbone's modules whose output is among them."""
    outputs: dict[int, tuple[str, torch.Tensor]] = {}  # by their storage; held, so that none is used again
    kept: dict[int, int] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output if isinstance(output, torch.Tensor) else output[0]
            outputs.setdefault(tensor.untyped_storage().data_ptr(), (name, tensor))

        return hook

    inside = [(n, m) for n, m in model.module.named_modules() if n.startswith(("bert.embeddings", "bert.encoder"))]
    hooks = [module.register_forward_hook(note(name), prepend=True) for name, module in inside]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = first_batch(trainer)
    model.module.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.forward(batch.inputs).sum().backward()  # all that is asked for: nothing is made again on the way back
    for handle in hooks:
        handle.remove()
    own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    return sum(size for at, size in kept.items() if at not in own), [outputs[at][0] for at in kept if at in outputs]


def test_nothing_of_the_backbone_is_kept_but_what_the_rungs_read(tiny: Make) -> None:
    sizes = {}
    for method in (WORDS, ("method=full",), ("method=bitfit",), ("method=lora",)):
        model, tuner, trainer = assemble(tiny(*method, LAYERS, "protocol.precision=fp32", "protocol.batch_size=16"))
        sizes[method[0]], kept = saved(model, trainer)
        if method is WORDS:
            assert kept == [f"bert.encoder.layer.{rung}.output.LayerNorm" for rung in range(4)]  # h_0 is dropped first
            assert all(p.grad is not None for p in tuner.trainables().values())
            assert not [n for n, p in model.backbone() if p.grad is not None and not n.startswith("ladder.")]
            assert not [
                m for n, m in model.module.named_modules() if n.startswith("bert.encoder.layer.") and m.training
            ]
            model.module.get_parameter("bert.encoder.layer.0.output.dense.bias").requires_grad_(True)
            assert len(saved(model, trainer)[1]) > 2 * len(kept), "this test can fail"
        else:
            assert len(kept) >= 8
    assert sizes["method=lst"] < 0.6 * min(size for name, size in sizes.items() if name != "method=lst")


@pytest.mark.parametrize("words", [("method.every=2",), ("method.init=fisher", "protocol.selection=held_out")])
def test_the_backbone_runs_once_per_row_and_all_else_is_as_before(run_tiny: Run, words: tuple[str, ...]) -> None:
    """With dropout, too: the ladder has some, the backbone none."""
    common = (*WORDS, LAYERS, "method.examples=3", *words)
    plain, kept = run_tiny(*common), run_tiny(*common, "protocol.keep_prefix=true")
    assert kept.record.status == "done"
    assert losses(kept.path.parent) == pytest.approx(losses(plain.path.parent), rel=1e-5)


def test_with_kept_hidden_states_no_layer_of_the_backbone_runs(tiny: Make) -> None:
    model, _, trainer = assemble(tiny(*WORDS, LAYERS, "protocol.keep_prefix=true"))
    trainer.begin(total=2)
    calls: list[str] = []
    for name, module in model.module.named_modules():
        if name.endswith("attention.self"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    trainer.step(0, trainer.order(0)[0])
    assert len(calls) == 4
    assert all(name.startswith("ladder.") for name in calls)


@pytest.mark.parametrize(
    ("words", "all_rungs", "every_second"),
    [
        ("model=bert_base_cased", 2_376_300, 1_262_310),
        ("model=bert_large_cased", 8_170_648, 4_216_972),
        ("model=minilm_l6", 317_814, 177_555),
        ("model=minilm_l6 model.config.num_hidden_layers=12", 598_332, 317_814),
        ("model=bert_mini", 100_388, 58_530),
        ("model=bert_tiny", 14_930, 9_585),
    ],
)
def test_counts_are_the_closed_forms(words: str, all_rungs: int, every_second: int) -> None:
    for every, entries in ((1, all_rungs), (2, every_second)):
        cell = compose.cell_from([*words.split(), "method=lst", f"method.every={every}"])
        assert count_cell(cell).backbone == entries


def test_a_budget_takes_the_widest_ladder_then_fewer_rungs(tiny: Make) -> None:
    model = build(tiny().model, 2, "meta")
    chosen = [LST().within(model, Scope(), entries) for entries in (14_930, 14_929, 3_000, 1_000)]
    assert [(method.reduction, method.every) for method in chosen] == [(8, 1), (16, 1), (32, 1), (64, 2)]
    assert count_cell(tiny("method=lst", "budget=14930")).backbone == 14_930
    with pytest.raises(ConfigError, match=r"budget: 500 entries; LST here needs at least 975 \(reduction 64, the last"):
        LST().within(model, Scope(), 500)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.reduction=128"], "no multiple of 2 heads; 1, 2, 4, 8, 16, 32, 64 are possible"),
        (["method.reduction=7"], r"^method\.reduction=7: the hidden size 128 over it is no multiple of 2 heads"),
        (["scope.kinds=[query]"], r"^scope\.kinds=\['query'\]: LST trains whole layers"),
        (
            [*MODERNBERT, "model.config.hidden_size=72", "method.reduction=2"],
            r"^method\.reduction=2: modernbert_base cannot be made so",
        ),
        (
            [
                "model=mpnet_base",
                "model.layout.starts_in_the_middle=false",
                "method.reduction=8",
                "protocol.keep_prefix=true",
            ],
            "passes more than hidden states",
        ),
    ],
)
def test_bad_input_is_one_line(tiny: Make, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        count_cell(tiny("method=lst", *words))
    assert len(caught.value.every) == 1
    assert "\n" not in str(caught.value)


def test_beside_another_method_it_is_refused(tiny: Make) -> None:
    part = {"_target_": "peftbench.methods.lst.LST"}
    with pytest.raises(ConfigError, match="LST trains alone"):
        Strata({"all": Stratum(None, {"side": part})}).attach(build(tiny().model, 2, "meta"), Scope())
    with pytest.raises(ConfigError, match="must train alone"):
        count_cell(
            tiny("method=random_masking", "budget=50", "method.inner={_target_: peftbench.methods.lst.LST}"), steps=4
        )
    model, tuner, _ = assemble(tiny(*WORDS))
    model.module.get_parameter("bert.encoder.layer.0.output.dense.bias").requires_grad_(True)
    with pytest.raises(ConfigError, match="lets no gradient into the backbone"):
        tuner.check_steps(4)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "minilm_l6"])
def test_every_architecture_trains_and_predicts(name: str, tmp_path: Path, run_tiny: Run) -> None:
    words = words_of(checkpoint(name, tmp_path / "encoder"), "method=lst", "method.reduction=2", "method.examples=2")
    run = done(run_tiny(*words))
    assert labelled(run, tmp_path) == pytest.approx(written(run), abs=1e-4)
    with pytest.raises(ConfigError, match="LST cannot be merged into the backbone's weights"):
        apply.write_model(run, tmp_path / "plain")


@pytest.mark.parametrize("name", ["bert_base_cased", "deberta_v3_base", "modernbert_base", "mpnet_base"])
@pytest.mark.parametrize("init", ["fisher", "log_fisher", "magnitude"])
def test_pruned_to_its_own_width_a_layer_is_the_backbones(name: str, init: str, tmp_path: Path, tiny: Make) -> None:
    words = checkpoint(name, tmp_path / "encoder")
    model, _, trainer = assemble(tiny(*WORDS, *words, f"method.init={init}", "method.reduction=1", "method.examples=1"))
    trainer.begin(total=1)
    prefix, side = f"{model.module.base_model_prefix}.", ladder_of(model).side.encoder
    compared = 0
    for inside, parameter in side.named_parameters():
        assert torch.equal(parameter, model.module.get_parameter(prefix + inside)), inside
        compared += parameter.numel()
    assert compared > 2 * (4 * 16 * 16 + 2 * 16 * 24)


# Rows and columns of each map and norm that stay: what the layer reads, what its heads mix, what attention and both
# maps of the feed-forward sub-layer give; of a fused map every part's.
CHAINS = {
    "bert_base_cased": {
        **{f"attention.self.{kind}": ("attended", "read") for kind in ("query", "key", "value")},
        "attention.output.dense": ("mixed", "attended"),
        "attention.output.LayerNorm": ("mixed", None),
        "intermediate.dense": ("inner", "mixed"),
        "output.dense": ("left", "inner"),
        "output.LayerNorm": ("left", None),
    },
    "modernbert_base": {
        "attn.Wqkv": ("attended", "read"),
        "attn.Wo": ("mixed", "attended"),
        "mlp.Wi": ("inner", "mixed"),
        "mlp.Wo": ("left", "inner"),
        "attn_norm": ("read", None),
        "mlp_norm": ("mixed", None),
    },
}
SIDES = {"read": 16, "attended": 16, "mixed": 16, "inner": 24, "left": 16}  # of `checkpoint`; half of each stays


def highest(scores: np.ndarray, groups: int) -> np.ndarray:
    """The numbers of the better half of every group, rising; ties go to the first."""
    size = len(scores) // groups
    parts = [range(i * size, (i + 1) * size) for i in range(groups)]
    return np.array([i for part in parts for i in sorted(sorted(part, key=lambda i: (-scores[i], i))[: size // 2])])


@pytest.mark.parametrize("heads", ["within", "across"])
@pytest.mark.parametrize("name", CHAINS)
def test_pruned_to_half_its_width_a_layer_has_what_the_chain_chooses(
    name: str, heads: str, tmp_path: Path, tiny: Make
) -> None:
    words = ["method.init=magnitude", "method.reduction=2", f"method.heads={heads}"]
    model, _, trainer = assemble(tiny(*WORDS, *checkpoint(name, tmp_path / "encoder"), *words))
    trainer.begin(total=1)
    wide = {name: p.detach().numpy() for name, p in model.backbone() if not name.startswith("ladder.")}
    module: Any = model.module
    kept = {"left": highest(np.abs(module.get_input_embeddings().weight.detach().numpy()).sum(0), 1)}
    compared = 0
    for number, layer in enumerate(ladder_of(model).side.layers):
        own = {n.removeprefix(f"{model.layout.layers}.{number}."): p for n, p in wide.items()}
        kept = {"read": kept["left"]}
        for rows in ("attended", "mixed", "inner", "left"):
            scores = np.zeros(SIDES[rows])
            for path, (of, columns) in CHAINS[name].items():
                if of == rows and columns is not None:
                    for part in np.abs(own[f"{path}.weight"]).reshape(-1, *(SIDES[rows], SIDES[columns])):
                        scores += (part / part.mean())[:, kept[columns]].sum(1)
            kept[rows] = highest(scores, 2 if (rows, heads) == ("attended", "within") else 1)
        for inside, parameter in layer.named_parameters():
            rows, columns = CHAINS[name][inside.rpartition(".")[0]]
            whole = own[inside].reshape(-1, SIDES[rows], *own[inside].shape[1:])[:, kept[rows]]
            expected = whole if parameter.ndim == 1 else whole[:, :, kept[str(columns)]]
            np.testing.assert_array_equal(parameter.detach().numpy(), expected.reshape(parameter.shape), inside)
            compared += parameter.numel()
    assert compared > 2 * (4 * 8 * 8 + 2 * 8 * 12)


def test_the_papers_count_for_t5_follows_from_the_same_widths() -> None:
    """Nine of twelve rungs in each stack: 1.74% of T5-base; gates of the other rungs are counted, too."""
    d, inner, width = 768, kept_rows(3072, 8), kept_rows(768, 8)
    encoder = 4 * width**2 + 2 * width * inner + 2 * width
    decoder = encoder + 4 * width**2 + width
    stacks = 2 * (10 * (d + 1) * width + width + 32 * 12)  # maps down, a norm at the end, relative positions
    entries = 9 * (encoder + decoder) + stacks + (width + 1) * d + 2 * 12
    assert entries == 3_878_712
    assert round(100 * entries / 222_903_552, 2) == 1.74


def test_a_pruned_head_comes_from_one_of_the_backbones(tiny: Make) -> None:
    scores = torch.tensor([5.0, 4.0, 3.0, 0.0, 9.0, 2.0, 2.0, 1.0])
    assert best(scores, 4).tolist() == [0, 1, 2, 4]
    assert best(scores, 4, groups=2).tolist() == [0, 1, 4, 5], "ties go to the first"


def test_released_scores_keep_the_least_important_rows() -> None:
    parts = [torch.rand(6, 4) * 1e-4 + 1e-6]
    parts[0][2] *= 1e-3
    parts[0][4] = 0.0
    columns = torch.tensor([0, 3])
    ours, released = (Importance(score, {}, parts[0][0]).rows(parts, columns) for score in ("fisher", "log_fisher"))
    assert sorted(ours.argsort()[:2].tolist()) == [2, 4]
    assert released.argsort(descending=True)[:2].tolist() == [4, 2]
    many = Importance("fisher", {}, parts[0][0]).rows([parts[0], parts[0] * 1e-20], columns)
    torch.testing.assert_close(many, 2 * ours, msg="every matrix counts alike")


def test_fisher_is_the_sum_of_squared_gradients_of_single_rows(tiny: Make) -> None:
    model, _, trainer = assemble(tiny(*WORDS, "protocol.keep_prefix=true"))
    trainer.begin(total=1)
    before, ladder = values(model), ladder_of(model)
    ladder.aside = True
    training = trainer.training(1)
    importance = fisher(model, [1], 3, training, "fisher")
    name, words = "bert.encoder.layer.1.output.dense.weight", "bert.embeddings.word_embeddings.weight"
    watched = {key: model.module.get_parameter(key).requires_grad_(True) for key in (name, words)}
    expected = dict.fromkeys(watched, torch.zeros(()))
    for _ in training.passes(3, 1):
        for key, parameter in watched.items():
            assert parameter.grad is not None
            expected[key] = expected[key] + parameter.grad.square()
    torch.testing.assert_close(importance.weights[name], expected[name])
    torch.testing.assert_close(importance.columns, expected[words].sum(0))
    assert float(importance.columns.min()) > 0
    assert all(torch.equal(before[key], value) for key, value in values(model).items())
