"""Runs on small checkpoints, and the logits of every use that can be made of one."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from peftbench.config import compose
from peftbench.data.rows import rows_of
from peftbench.runner import apply, deltas
from peftbench.runner.run import Outcome, read_rows

POOLERS = {"bert_base_cased": "bert.pooler", "minilm_l6": "bert.pooler", "deberta_v3_base": "pooler"}
MODELS = [*POOLERS, "roberta_base", "electra_small", "distilbert", "modernbert_base", "mpnet_base"]
LENGTH = 24  # tokens, as in the runs
CLOSE = 1e-5 + 5e-6  # and what five decimals round off


def words_of(checkpoint: list[str], *others: str) -> list[str]:
    return ["protocol.precision=fp32", "protocol.max_steps=3", "protocol.lr=0.01", *checkpoint, *others]


def done(outcome: Outcome) -> Path:
    """The folder of a run that came to its end."""
    assert outcome.error is None, outcome.error
    return outcome.path.parent


def written(run: Path) -> np.ndarray:
    """The logits that a run wrote of its dev rows, (rows, 2), with five decimals."""
    return table((run / "predictions" / "dev.tsv").read_text(encoding="utf-8").splitlines())


def table(lines: list[str]) -> np.ndarray:
    """The logits in the last two columns of a table of predictions, (rows, 2)."""
    return np.array([[float(cell) for cell in line.split("\t")[-2:]] for line in lines[1:]])


@functools.cache
def dev_texts() -> list[str]:
    return list(read_rows(rows_of(compose.cell_from(["task=sst2", "data=sample", "data.limit=48"])))["dev"].texts[0])


def labelled(run: Path, tmp_path: Path) -> np.ndarray:
    """What `predict` says of the dev rows when they come in a file, (rows, 2)."""
    file = tmp_path / "new.tsv"
    file.write_text("\n".join(["sentence", *dev_texts()]) + "\n", encoding="utf-8")
    return table(apply.label(run, file, tmp_path / "cache"))


def logits(module: Any, folder: Path) -> np.ndarray:
    """What a plain transformers model makes of the dev rows with the tokenizer in a folder, (rows, 2)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(dev_texts(), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        return np.asarray(module.eval()(**batch).logits)


def exported(run: Path, encoder: Path, folder: Path) -> np.ndarray:
    """What PEFT makes of an exported run on the checkpoint, (rows, 2)."""
    import peft

    deltas.export_peft(run, folder)
    torch.manual_seed(7)  # what the checkpoint lacks is drawn anew here, and must come from the export
    base = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    return logits(peft.PeftModel.from_pretrained(base, folder), encoder)
