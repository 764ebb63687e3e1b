"""An architecture that this package does not know is one yaml of a user's own, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from uses import done, labelled, written

from peftbench.ground.errors import ConfigError
from peftbench.record import read_record
from peftbench.runner.run import Outcome

# Positions turn queries and keys: their table lies beside the layers, and is handed from one to the next.
ROFORMER = """
# a small roformer
defaults: [_base, _self_]
model_type: roformer
layout:
  layers: roformer.encoder.layer
  kinds:
    query: [attention.self.query]
    key: [attention.self.key]
    value: [attention.self.value]
    attention_output: [attention.output.dense]
    intermediate: [intermediate.dense]
    output: [output.dense]
    layer_norm: [attention.output.LayerNorm, output.LayerNorm]
    attention_norm: [attention.output.LayerNorm]
    output_norm: [output.LayerNorm]
    embeddings: [roformer.embeddings, roformer.encoder.embed_positions]
    pooler: []
  head: [classifier]
  attention: eager
  starts_in_the_middle: false
config:
  vocab_size: 2000
  embedding_size: 32
  hidden_size: 32
  num_hidden_layers: 3
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  type_vocab_size: 2
  pad_token_id: 0
"""

# The modules of another architecture under a name of its own; positions start after the padding id's.
XLM_ROBERTA = """
# a small xlm-roberta
defaults: [_base, _self_]
model_type: xlm-roberta
layout:
  layers: roberta.encoder.layer
  kinds:
    query: [attention.self.query]
    key: [attention.self.key]
    value: [attention.self.value]
    attention_output: [attention.output.dense]
    intermediate: [intermediate.dense]
    output: [output.dense]
    layer_norm: [attention.output.LayerNorm, output.LayerNorm]
    attention_norm: [attention.output.LayerNorm]
    output_norm: [output.LayerNorm]
    embeddings: [roberta.embeddings]
    pooler: []
  head: [classifier]
  positions_from: padding
config:
  vocab_size: 2000
  hidden_size: 32
  num_hidden_layers: 3
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  type_vocab_size: 1
  pad_token_id: 1
"""

# One map for query, key and value; tokens see only those before them; the head has another name.
GPT_NEOX = """
# a small gpt-neox
defaults: [_base, _self_]
model_type: gpt_neox
layout:
  layers: gpt_neox.layers
  kinds:
    query: [attention.query_key_value]
    key: [attention.query_key_value]
    value: [attention.query_key_value]
    attention_output: [attention.dense]
    intermediate: [mlp.dense_h_to_4h]
    output: [mlp.dense_4h_to_h]
    layer_norm: [input_layernorm, post_attention_layernorm, gpt_neox.final_layer_norm]
    embeddings: [gpt_neox.embed_in]
    pooler: []
  head: [score]
  attention: sdpa
config:
  vocab_size: 2000
  hidden_size: 32
  num_hidden_layers: 3
  num_attention_heads: 2
  intermediate_size: 64
  max_position_embeddings: 64
  pad_token_id: 0
"""


@pytest.mark.parametrize("text", [ROFORMER, XLM_ROBERTA, GPT_NEOX], ids=["roformer", "xlm-roberta", "gpt-neox"])
def test_an_architecture_is_one_yaml(text: str, tmp_path: Path, run_tiny: Callable[..., Outcome]) -> None:
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(text)
    words = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "model=mine", "model.weights=random"]
    if "attention: " in text:  # what the layout says of it is held against what runs
        dropout = "attention_dropout" if text == GPT_NEOX else "attention_probs_dropout_prob"
        with pytest.raises(ConfigError, match="0 of 3 attention modules of mine are this bench's own; give eager"):
            run_tiny(*words, "model.layout.attention=bench", f"+model.config.{dropout}=0.1")
    trained = {}
    for method in ("lora", "bitfit"):
        run = done(run_tiny(*words, f"method={method}", "protocol.precision=fp32", "protocol.lr=0.01"))
        record = read_record(run / "result.json")
        assert record.cell.model == "mine"
        trained[method] = record.counts.backbone
        np.testing.assert_array_equal(labelled(run, tmp_path), written(run))
    assert trained == {"lora": 3 * 2 * 8 * (32 + 32), "bitfit": 3 * (5 * 32 + 64 + 2 * 32) + 32}


def test_its_heads_are_pruned_where_its_yaml_says_that_they_can_be(
    tmp_path: Path, run_tiny: Callable[..., Outcome]
) -> None:
    mine = tmp_path / "conf" / "model" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(XLM_ROBERTA)
    words = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "model=mine", "model.weights=random"]
    words += ["method=light_peft", "method.estimation=3", "protocol.precision=fp32"]
    with pytest.raises(ConfigError, match=r"prunes heads, and mine has layout\.prunes_heads=false"):
        run_tiny(*words)
    mine.write_text(XLM_ROBERTA.replace("layout:\n", "layout:\n  prunes_heads: true\n"))
    run = done(run_tiny(*words))
    assert read_record(run / "result.json").counts.kept < read_record(run / "result.json").counts.backbone
    np.testing.assert_allclose(labelled(run, tmp_path), written(run), atol=2e-5)
