"""Every architecture: built, computed with padding, every parameter in its place; weights checked before use."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftbench.backbone.model import build, compute_precision, load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.config.spec import ModelSpec
from peftbench.ground.errors import ConfigError, DataError
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell

SMALL = {
    "layers": {"num_hidden_layers": 2, "n_layers": 2},
    "vocab": {"vocab_size": 300},
    "ids": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2},
}

LINEAR = {"query", "key", "value", "attention_output", "intermediate", "output"}


def small(name: str) -> ModelSpec:
    """The same architecture with two layers and a short vocabulary."""
    spec = compose.cell_from([f"model={name}", "model.weights=random"]).model
    config = dict(spec.config)
    for change in SMALL.values():
        config.update({key: value for key, value in change.items() if key in config})
    return ModelSpec(**{**vars(spec), "config": config})


@pytest.mark.parametrize("name", compose.words("model"))
def test_every_parameter_has_a_place(name: str) -> None:
    model = build(compose.cell_from([f"model={name}"]).model, 2, device="meta")
    places = [model.place(parameter) for parameter, _ in model.backbone()]
    assert {place.layer for place in places} - {None} == set(range(model.depth))
    entries: dict[int, int] = {}  # of the linear maps, by layer: layers are alike
    kinds: dict[int, set[str]] = {}
    for (_, parameter), place in zip(model.backbone(), places, strict=True):
        if place.layer is not None and place.kinds <= LINEAR:
            entries[place.layer] = entries.get(place.layer, 0) + parameter.numel()
            kinds[place.layer] = kinds.get(place.layer, set()) | place.kinds
    assert len(set(entries.values())) == 1
    assert list(kinds.values()) == [LINEAR] * model.depth
    outside = {kind for place in places if place.layer is None for kind in place.kinds}
    assert "embeddings" in outside
    assert not outside & LINEAR
    assert list(model.head()), "the head has parameters"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name",
    ["bert_tiny", "roberta_base", "deberta_v3_base", "electra_small", "distilbert", "modernbert_base", "mpnet_base"],
)
def test_padding_does_not_change_a_row(name: str, precision: str) -> None:
    model, _ = load_model(small(name), 3, seed=0)
    for _, parameter in model.backbone():
        parameter.requires_grad_(False)
    compute_precision(model, precision, [])
    model.module.eval()
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    alone = {"input_ids": ids[:1, :5], "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    padded = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        one, both = model.forward(alone), model.forward(padded)
    assert both.shape == (2, 3)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both[:1], one, atol=1e-5 if precision == "fp32" else 0.05, rtol=0)


def test_a_row_as_long_as_there_are_positions_is_computed_and_a_longer_one_is_refused() -> None:
    words = ["model=roberta_base", "model.weights=random", "model.config.num_hidden_layers=1"]
    words += ["model.config.max_position_embeddings=20", "model.config.pad_token_id=7", "protocol.max_length=12"]
    cell = compose.cell_from(words)
    model, _ = load_model(cell.model, 2, seed=0)
    ids = torch.full((1, 12), 9)
    model.module.eval()
    assert model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).isfinite().all()
    with pytest.raises(ConfigError, match=r"protocol.max_length=13: roberta_base has 12 positions"):
        compose.cell_from([*words, "protocol.max_length=13"])


def test_numbers_that_would_be_computed_wrongly_are_refused_before_any_weights() -> None:
    with pytest.raises(ConfigError, match=r"model.config.pad_token_id=0: mpnet pads with 1, whatever it is told"):
        count_cell(compose.cell_from(["model=mpnet_base", "model.config.pad_token_id=0"]))
    with pytest.raises(ConfigError, match=r"type_vocab_size=0: bert.embeddings.token_type_embeddings would have no"):
        count_cell(compose.cell_from(["model.config.type_vocab_size=0"]))


def test_minilm_comes_from_the_package_and_is_what_the_file_holds() -> None:
    spec = compose.cell_from([]).model
    model, folder = load_model(spec, 2, seed=0)
    assert folder is not None
    assert model.weights_sha256 == spec.sha256
    stored = load_file(folder / "model.safetensors")
    own = dict(model.backbone())
    assert len(own) == 103
    for name, parameter in own.items():
        assert torch.equal(parameter, stored[name.removeprefix("bert.")]), name


def test_the_head_follows_the_seed_and_nothing_else_does() -> None:
    spec = small("bert_tiny")
    heads = [dict(load_model(spec, 2, seed)[0].head())["classifier.weight"] for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    backbones = [dict(load_model(spec, 2, seed)[0].backbone()) for seed in (0, 1)]
    assert all(torch.equal(backbones[0][name], backbones[1][name]) for name in backbones[0])
    state = torch.get_rng_state()
    load_model(spec, 2, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MiniLM in a folder of the test's own."""
    source = weights_folder(compose.cell_from([]).model)
    assert source is not None
    return Path(shutil.copytree(source, tmp_path / "minilm"))


def spec_of(folder: Path, *overrides: str) -> ModelSpec:
    return compose.cell_from([f"model.weights={folder}", *overrides]).model


def test_weights_from_a_folder(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["pooler.dense.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    model, weights = load_model(spec_of(folder, "model.sha256=null"), 2, seed=0)
    assert weights == folder
    for name, parameter in model.backbone():
        assert torch.equal(parameter, tensors[name.removeprefix("bert.")]), name


def test_other_bytes_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["pooler.dense.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match="not the pinned 53aa51172d142c89"):
        load_model(spec_of(folder), 2, seed=0)
    load_model(spec_of(folder, "model.sha256=null"), 2, seed=0)


def test_missing_tensors_and_other_numbers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.3.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"lacks 1 tensor of the backbone, bert.encoder.layer.3.output.dense.weight"):
        load_model(spec_of(folder, "model.sha256=null"), 2, seed=0)
    with pytest.raises(DataError, match="num_hidden_layers=6"):
        load_model(spec_of(folder, "model.sha256=null", "model.config.num_hidden_layers=4"), 2, seed=0)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"no model.safetensors in that folder"):
        load_model(spec_of(tmp_path), 2, seed=0)


def test_where_no_source_has_the_weights_the_line_says_what_works() -> None:
    spec = compose.cell_from(["model=bert_base_cased"]).model
    with pytest.raises(
        DataError, match=r"the Hub gives no google-bert/bert-base-cased.*\nWhat works: model.weights=<folder"
    ):
        weights_folder(spec)


def test_lora_equals_peft(tmp_path: Path) -> None:
    """Same start, same data: same logits and the same losses over ten steps, in fp32 without dropout."""
    import peft

    spec = small("bert_tiny")
    spec = ModelSpec(
        **{**vars(spec), "config": {**spec.config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}
    )
    ours, _ = load_model(spec, 2, seed=0)
    cell = compose.cell_from(["method=lora", "method.dropout=0", "method.rank=4", "method.alpha=12"])
    tuner = deltas.attach(cell.attachment, ours, seed=0)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["query", "value"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(load_model(spec, 2, seed=0)[0].module, config)
    named = dict(theirs.named_parameters())
    for name, parameter in tuner.trainables().items():
        base, _, factor = name.rpartition(".")
        named[f"base_model.model.{base}.{factor}.default.weight"].data.copy_(parameter.data)

    random = torch.Generator().manual_seed(1)
    ids, labels = torch.randint(3, 300, (10, 6, 12), generator=random), torch.randint(0, 2, (10, 6), generator=random)
    mask = torch.ones(6, 12, dtype=torch.long)
    trained = [
        [*tuner.trainables().values(), *dict(ours.head()).values()],
        [p for p in theirs.parameters() if p.requires_grad],
    ]
    assert sum(p.numel() for p in trained[0]) == sum(p.numel() for p in trained[1])
    series = []
    for module, parameters in zip((ours.module, theirs), trained, strict=True):
        optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
        for x, y in zip(ids, labels, strict=True):
            loss = torch.nn.functional.cross_entropy(module(input_ids=x, attention_mask=mask).logits, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        series.append(losses)
    np.testing.assert_allclose(series[0], series[1], rtol=1e-5)
    assert series[0][-1] != series[0][0]
