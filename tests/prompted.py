"""Small backbones with a masked-LM head in real folders, with a tokenizer of BERT's or RoBERTa's kind."""

from pathlib import Path
from typing import Any

import torch
from checkpoints import SIGNS, SMALL
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

from peftbench.config import compose

WORDS = ["yes", "maybe", "no", "terrible", "great", "correct", "this", "is", "it", "was", "the", "film", "a", "dog"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece() -> Any:
    """Uncased words, the others letter by letter; BERT's signs."""
    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    signs = [sign for sign in SIGNS if not sign.isupper()]
    vocabulary = dict.fromkeys([*special, *WORDS, "incorrect", *signs, *(f"##{sign}" for sign in signs)])
    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))  # type: ignore[arg-type]
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))  # type: ignore[assignment]
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def byte_level() -> Any:
    """Bytes merged, spaces part of the tokens; RoBERTa's signs."""
    inner = ByteLevelBPETokenizer()
    text = " Yes Maybe No terrible great correct incorrect. This is it. It was the film, a dog?"
    inner.train_from_iterator([text] * 20, vocab_size=600, min_frequency=2, special_tokens=SPECIAL)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, **names)


KINDS = {"bert_base_uncased": wordpiece, "roberta_base": byte_level}


def masked_checkpoint(name: str, folder: Path, tokenizer: Any = None) -> list[str]:
    """Write a small masked LM of this architecture with a tokenizer.

    Returns:
        The words that make a cell use it.
    """
    tokenizer = KINDS.get(name, byte_level)() if tokenizer is None else tokenizer
    spec = compose.cell_from([f"model={name}"]).model
    sizes = {key: value for key, value in SMALL.items() if key in spec.config}
    sizes["vocab_size"] = len(tokenizer)
    config = AutoConfig.for_model(spec.model_type, **{**spec.config, **sizes, "initializer_range": 0.3})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForMaskedLM.from_config(config)
        for key, parameter in model.named_parameters():  # not zero, so that what is read is told apart
            if key.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    changed = [f"model.config.{key}={value}" for key, value in sizes.items() if spec.config.get(key) != value]
    return [f"model={name}", f"model.weights={folder}", "model.sha256=null", *changed]
