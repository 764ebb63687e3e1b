"""Small checkpoints of every architecture in real folders, with a tokenizer that fits them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from peftbench.config import compose

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # RoBERTa's order: MPNet knows no other padding id than 1
SIGNS = [chr(number) for number in range(33, 127)]
WORDS = [*SPECIAL, "the", "film", "is", "good", "one", "bad", "movie", *SIGNS, *(f"##{sign}" for sign in SIGNS)]

SMALL = {
    "vocab_size": len(WORDS),
    **dict.fromkeys(("hidden_size", "dim", "embedding_size", "pooler_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"), 2),
    **{"pad_token_id": 1, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2},
}


def write_tokenizer(folder: Path) -> None:
    """A small tokenizer whose vocabulary is the model's: a few words, the others letter by letter."""
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))  # type: ignore[arg-type]
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", cls_token="<s>", sep_token="</s>", unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def checkpoint(name: str, folder: Path, whole: bool = False) -> list[str]:
    """Write a small classifier of this architecture, or its encoder without pooler and head, with a tokenizer.

    Returns:
        The words that make a cell use it.
    """
    spec = compose.cell_from([f"model={name}"]).model
    sizes = {key: value for key, value in SMALL.items() if key in spec.config}
    wide = {"initializer_range": 0.3}  # so that rows are told apart
    config = AutoConfig.for_model(spec.model_type, **{**spec.config, **sizes, **wide}, num_labels=2)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config)
    if not whole:
        model = getattr(model, model.base_model_prefix)
        if hasattr(model, "pooler"):
            model.pooler = None
    model.save_pretrained(folder)
    write_tokenizer(folder)
    changed = [f"model.config.{key}={value}" for key, value in sizes.items() if spec.config[key] != value]
    return [f"model={name}", f"model.weights={folder}", "model.sha256=null", *changed]
