"""Every architecture from a folder without a pooler or a head: equal runs are equal, and all uses give their logits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from peftbench.backbone.model import load
from peftbench.config import compose
from peftbench.files import DELTA_FILE
from peftbench.record import read_record, write_record
from peftbench.runner import apply, deltas
from peftbench.runner.run import Outcome, read_rows

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
LETTERS = [chr(number) for number in range(97, 123)]
WORDS = [*SPECIAL, "the", "film", "is", "good", "one", "bad", "movie", "it", "was", *LETTERS]

SMALL = {
    "vocab_size": 64,
    **dict.fromkeys(("hidden_size", "dim", "embedding_size", "pooler_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"), 2),
    **{"pad_token_id": 0, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2},
}
MODELS = [
    "bert_base_cased",
    "roberta_base",
    "deberta_v3_base",
    "electra_small",
    "distilbert",
    "modernbert_base",
    "mpnet_base",
    "minilm_l6",
]


def sizes(name: str) -> dict[str, object]:
    """The model's own configuration, made small."""
    config = compose.cell_from([f"model={name}"]).model.config
    return {**config, **{key: value for key, value in SMALL.items() if key in config}}


def write_tokenizer(folder: Path) -> None:
    """A small tokenizer whose vocabulary is the model's."""
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # type: ignore[arg-type]
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)


def checkpoint(name: str, folder: Path) -> list[str]:
    """Write an encoder alone, without pooler, with its tokenizer; returns the words that make a cell use it."""
    spec, config = compose.cell_from([f"model={name}"]).model, sizes(name)
    made = AutoConfig.for_model(spec.model_type, **config)
    encoder = AutoModel.from_config(made)
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    encoder.save_pretrained(folder)
    write_tokenizer(folder)
    changed = [f"model.config.{key}={value}" for key, value in config.items() if spec.config[key] != value]
    return [f"model={name}", f"model.weights={folder}", "model.sha256=null", *changed]


@pytest.mark.parametrize("name", MODELS)
def test_all_uses_of_a_run_give_its_logits(name: str, tmp_path: Path, run_tiny: Callable[..., Outcome]) -> None:
    import peft

    words = checkpoint(name, tmp_path / "encoder")
    kinds = {"bert_base_cased": ["bert.pooler"], "minilm_l6": ["bert.pooler"], "deberta_v3_base": ["pooler"]}
    go = ["method=lora", "protocol.precision=fp32", "protocol.max_steps=3", "protocol.lr=0.01", *words]
    runs = []
    for number in (0, 1):
        torch.manual_seed(number)  # nothing may come from the global generator
        outcome = run_tiny(*go, f"study=s{number}")
        assert outcome.error is None, outcome.error
        runs.append(outcome.path.parent)
    record = read_record(runs[0] / "result.json")
    prefix = kinds.get(name)
    assert record.drawn == ([f"{prefix[0]}.dense.bias", f"{prefix[0]}.dense.weight"] if prefix else [])
    assert record.hashes.tokenizer
    assert (runs[0] / DELTA_FILE).read_bytes() == (runs[1] / DELTA_FILE).read_bytes()
    assert (runs[0] / "predictions/dev.tsv").read_bytes() == (runs[1] / "predictions/dev.tsv").read_bytes()

    ids = torch.arange(4, 16).reshape(2, 6)
    mask = torch.ones_like(ids)

    def logits(module: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(module.eval()(input_ids=ids, attention_mask=mask).logits)

    torch.manual_seed(7)
    ours = logits(deltas.reload(runs[0])[0].module)
    apply.apply(runs[0], tmp_path / "applied")
    applied = AutoModelForSequenceClassification.from_pretrained(tmp_path / "applied")
    np.testing.assert_allclose(logits(applied), ours, atol=1e-5)
    deltas.export_peft(runs[0], tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder", num_labels=2)
    np.testing.assert_allclose(logits(peft.PeftModel.from_pretrained(base, tmp_path / "adapter")), ours, atol=1e-5)

    cell = compose.cell_from([*go, "task=sst2", "data=sample", f"init_from={runs[0]}", "seed=5"])
    model, _ = load(cell.model, 2, cell.seed)
    deltas.restore(deltas._own_delta(runs[0]), model)
    np.testing.assert_allclose(logits(model.module), ours, atol=1e-5)


def table(lines: list[str]) -> np.ndarray:
    """The logits in the last two columns of a table of predictions, (rows, 2)."""
    return np.array([[float(cell) for cell in line.split("\t")[-2:]] for line in lines[1:]])


@pytest.mark.parametrize("name", ["distilbert", "deberta_v3_base", "bert_base_cased"])
def test_a_record_without_the_newer_keys_of_a_layout_predicts_what_its_run_did(
    name: str, tmp_path: Path, run_tiny: Callable[..., Outcome]
) -> None:
    """With full fine-tuning, which trains the drawn pooler, too: it is stored once."""
    words = ["method=full", "protocol.precision=fp32", "protocol.max_steps=2", *checkpoint(name, tmp_path / "encoder")]
    outcome = run_tiny(*words)
    assert outcome.error is None, outcome.error
    run, record = outcome.path.parent, read_record(outcome.path)
    stored = load_file(run / DELTA_FILE)
    assert not [key for key in stored if key.startswith(deltas.FRESH)]
    assert set(record.drawn) <= set(stored)

    model = record.config["model"]
    old = {key: model["layout"][key] for key in ("layers", "kinds", "head")}
    write_record(replace(record, config={**record.config, "model": {**model, "layout": old}}), run)
    cell = compose.cell_from(["task=sst2", "data=sample", "data.limit=48"])
    file = tmp_path / "new.tsv"
    file.write_text("\n".join(["sentence", *read_rows(cell)["dev"].texts[0]]) + "\n", encoding="utf-8")
    found = table(apply.label(run, file, tmp_path / "cache"))
    expected = table((run / "predictions" / "dev.tsv").read_text(encoding="utf-8").splitlines())
    np.testing.assert_allclose(found, expected, atol=2e-5)  # both are written with five decimals
