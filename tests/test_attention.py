"""Every architecture on this bench's attention is the library's own model, but for what is dropped."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_models import small
from transformers import AutoConfig, AutoModelForSequenceClassification
from uses import MODELS

from peftbench.backbone.model import Model, load_model
from peftbench.config import compose
from peftbench.ground.errors import ConfigError
from peftbench.record import Attention
from peftbench.runner.run import Outcome

NONE = 1e-9  # rounds to no element dropped, and still takes the path that drops
RATES = ("dropout", "hidden_dropout_prob", "classifier_dropout", "seq_classif_dropout")  # outside attention
OF_ATTENTION = ("attention_dropout", "attention_probs_dropout_prob")


def both(name: str, rate: float, **numbers: Any) -> tuple[Model, torch.nn.Module]:
    """A model on our attention, and the library's own with the same weights, which drops nothing."""
    spec = small(name)
    known = AutoModelForSequenceClassification.from_config
    sizes = {"hidden_size": 48, "dim": 48, "embedding_size": 48, "intermediate_size": 64, "hidden_dim": 64}
    sizes |= {"num_attention_heads": 4, "n_heads": 4, "pooler_hidden_size": 48}
    config = spec.config | {key: value for key, value in sizes.items() if key in spec.config} | numbers
    declared = AutoConfig.for_model(spec.model_type).to_dict()
    rates = dict.fromkeys(RATES, 0.0) | dict.fromkeys(OF_ATTENTION, rate)
    config |= {"initializer_range": 0.3} | {key: value for key, value in rates.items() if key in declared}
    apart = {"key": (*spec.layout.kinds["key"], *(f"attention.self.pos_{kind}_proj" for kind in ("key", "query")))}
    layout = replace(spec.layout, kinds={**spec.layout.kinds, **apart})  # what no size of DeBERTa-v3 has
    spec = replace(spec, layout=layout, config=config)
    ours, _ = load_model(spec, 2, seed=0)
    settings: Any = ours.module.config
    settings = type(settings)(**{**settings.to_dict(), **dict.fromkeys(OF_ATTENTION, 0.0)})
    theirs = known(settings, attn_implementation="eager")
    theirs.load_state_dict(ours.module.state_dict())
    return ours, theirs


def rows(tokens: int) -> dict[str, torch.Tensor]:
    """Two rows, one of them padded."""
    ids = torch.randint(3, 300, (2, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, tokens, dtype=torch.long)
    mask[1, tokens // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def gradients(module: torch.nn.Module, logits: torch.Tensor) -> Mapping[str, torch.Tensor]:
    logits.logsumexp(-1).sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_librarys_own_function_at_rest_and_in_training(name: str) -> None:
    for rate in (0.0, NONE):
        ours, theirs = both(name, rate)
        counted = ours.attention(torch.device("cpu"))
        assert counted.modules == counted.ours == 2
        batch = rows(11)
        with torch.no_grad():
            at_rest = ours.module.eval()(**batch).logits
            torch.testing.assert_close(at_rest, theirs.eval()(**batch).logits, rtol=1e-4, atol=1e-5)
        assert at_rest.std() > 1e-2
        one, other = ours.module.train()(**batch).logits, theirs.train()(**batch).logits
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        expected = gradients(theirs, other)
        actual = gradients(ours.module, one)
        assert actual.keys() == expected.keys()
        largest = max(float(value.abs().max()) for value in expected.values())
        for key, value in expected.items():  # some are 0 but for rounding: a bias of keys changes no softmax
            torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-5 * largest, msg=key)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("terms", [["c2p", "p2c"], ["p2c"], ["c2p"], []])
def test_positions_far_apart_share_a_bucket(terms: list[str], shared: bool) -> None:
    far = {"position_buckets": 8, "max_position_embeddings": 24, "pos_att_type": terms, "share_att_key": shared}
    ours, theirs = both("deberta_v3_base", NONE, **far)
    for tokens in (3, 31):
        one, other = (module.train()(**rows(tokens)).logits for module in (ours.module, theirs))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, NONE])
def test_a_token_sees_its_window_alone(rate: float) -> None:
    """ModernBERT's second layer; 31 tokens are more than a window of 6, as 11 are less than its own of 128."""
    ours, theirs = both("modernbert_base", rate, local_attention=6)
    batch = rows(31)
    one, other = (module.train()(**batch).logits for module in (ours.module, theirs))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    wide, _ = both("modernbert_base", rate)
    wide.module.load_state_dict(ours.module.state_dict())
    assert not torch.allclose(wide.module.train()(**batch).logits, other, atol=1e-3), "the window hides something"


@pytest.mark.parametrize("name", MODELS)
def test_in_training_weights_are_dropped_from_the_models_own_stream(name: str) -> None:
    ours, _ = both(name, 0.5)
    batch, state = rows(11), torch.get_rng_state()
    ours.module.train()
    values = []
    for seed in (1, 1, 2):
        ours.noise.seed(seed)
        values.append(ours.forward(batch))
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    assert not torch.allclose(values[0], values[2], atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_stream_of_random_numbers_is_another_fingerprint() -> None:
    own, theirs = (
        compose.cell_from(["model=mpnet_base", "tracker=none", f"model.layout.attention={word}"]).fingerprint
        for word in ("bench", "eager")
    )
    assert own != theirs
    kept = [
        compose.cell_from(["tracker=none", f"model.layout.attention={word}"]).fingerprint for word in ("bench", "sdpa")
    ]
    assert kept[0] == kept[1]


def test_on_a_gpu_torchs_own_function_computes_all_of_them() -> None:
    model, _ = load_model(small("bert_base_cased"), 2, seed=0)
    assert model.attention(torch.device("cuda")) == Attention(modules=2, ours=0)


def test_wherever_a_model_is_built_its_attention_must_be_found() -> None:
    spec = small("bert_base_cased")
    kinds = {**spec.layout.kinds, "key": (*spec.layout.kinds["key"], *spec.layout.kinds["query"]), "query": ()}
    with pytest.raises(ConfigError, match=r"layout\.kinds\.query: bert_base_cased has no such module"):
        load_model(replace(spec, layout=replace(spec.layout, kinds=kinds)), 2, seed=0)


def test_a_record_says_how_many_attention_modules_are_ours(run_tiny: Callable[..., Outcome]) -> None:
    assert run_tiny("method=bitfit").record.attention == Attention(modules=2, ours=2)
    assert run_tiny("method=head", "model.layout.attention=sdpa").record.attention == Attention(modules=2, ours=0)
