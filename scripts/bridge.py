"""Every type of peft on every architecture that this bench knows: what works, and in one line what does not and why.

    python scripts/bridge.py [--types vera,boft] [--write docs/peft.md]

Small models with random weights, the built-in sample, fp32, three steps. "Works" means: counted without weights as it
trains; trains alone, and everything of it; comes back from its delta; merges, or says that it cannot; is exported, and
peft loads it.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftbench.backbone.model import Model, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.config.validate import make_method
from peftbench.data.rows import rows_of
from peftbench.ground.errors import ConfigError
from peftbench.methods.base import ParameterTuner, Tuner
from peftbench.methods.peft_prompts import Through
from peftbench.methods.peft_types import REFUSED, TYPES
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell
from peftbench.runner.delta import Delta
from peftbench.runner.recording import delta_facts
from peftbench.runner.run import Tokenizing, read_rows, tokenize_rows
from peftbench.training.trainer import Trainer

ARCHITECTURES = {
    "BERT": "bert_base_cased",
    "RoBERTa": "roberta_base",
    "DeBERTa-v2": "deberta_v3_base",
    "ModernBERT": "modernbert_base",
    "DistilBERT": "distilbert",
    "ELECTRA": "electra_small",
    "MPNet": "mpnet_base",
}
SMALL = {
    "vocab_size": 512,
    **dict.fromkeys(("hidden_size", "dim", "embedding_size", "pooler_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "hidden_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_attention_heads", "n_heads"), 2),
}
IDS = {"pad_token_id": 0, "cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
RUN = [
    "method=peft", "model.weights=random", "task=sst2", "data=sample", "data.limit=16", "tracker=none",
    "progress=false", "protocol.precision=fp32", "protocol.lr=0.01", "protocol.max_length=16", "protocol.batch_size=8",
    "protocol.max_steps=3",
]  # fmt: skip
PROMPT = ["method.config.num_virtual_tokens=4"]
# What a type needs beside its name to act on maps of this size, and where it acts if not on linear maps.
NEEDS = {
    "c3a": ["method.config.block_size=32"],
    "ln_tuning": ["method.kinds=[layer_norm]"],
    "p_tuning": [*PROMPT, "method.kinds=[embeddings]", "method.config.encoder_hidden_size=32"],
    "prefix_tuning": [*PROMPT, "method.kinds=[key,value]"],
    "prompt_tuning": [*PROMPT, "method.kinds=[embeddings]"],
    "tinylora": ["method.config.u=16"],
    "vblora": ["method.config.vector_length=32", "method.config.num_vectors=16"],
}
HEAD = """# peft's types on this bench

Use a type with `method=peft method.type=vera method.config.r=256`, or read peft's own file with
`method.adapter_config=FOLDER`. `scripts/bridge.py` made this page, with small models, random weights and three steps in
fp32.

A type *works* if all of this holds: the count without weights is what trains; all of its own parameters train, and
nothing else does; its delta restores it bit for bit; if it can be merged, the logits stay equal; and peft loads the
export with logits equal to 1e-5. Differences between architectures are listed below the table.

Prompts (`prompt_tuning`, `p_tuning`, `prefix_tuning`) act on the row and not on the backbone: scope and kinds can only
take them whole. Their tokens take positions of the backbone. A head that reads the first position reads the first token
of a prompt, in peft as here. A delta holds what makes the prompt, so that training can go on; an export holds the
prompt alone, as peft's own files do.

| column | meaning |
|---|---|
| merges | whether it can be folded into the backbone |
| stored per entry | floats in the delta per trained entry (on the small BERT), with peft's projections and indices |
| starts | how far the logits are from the backbone's before training |
| budget | the key that a budget turns |
| seed | peft's own seed for numbers that ignore torch's generator; it follows the run's seed unless it is given |

"""


@dataclass
class Tried:
    """One type on one architecture.

    Attributes:
        problem: what does not work; None: all of it does.
        entries: that train.
        stored: floats in the delta for each of them.
        start: the largest change of a logit that attaching made.
    """

    problem: str | None = None
    entries: int = 0
    stored: float = 0.0
    start: float = 0.0
    notes: list[str] = field(default_factory=list)


def cell(kind: str, model: str, folder: Path) -> Cell:
    """A small cell."""
    config = compose.cell_from([f"model={model}"]).model.config
    changed = SMALL | {key: value for key, value in IDS.items() if config.get(key, 0) >= SMALL["vocab_size"]}
    sizes = [f"model.config.{key}={value}" for key, value in changed.items() if config.get(key, value) != value]
    paths = [f"outputs={folder}", f"cache={folder / 'cache'}"]
    return compose.cell_from([f"model={model}", *RUN, f"method.type={kind}", *NEEDS.get(kind, []), *sizes, *paths])


def attempt(kind: str, model: str, folder: Path) -> Tried:
    """Take a type through everything that can be done with it on one architecture."""
    tried = Tried()
    try:
        _attempt(cell(kind, model, folder), folder, tried)
    except ConfigError as error:
        tried.problem = error.problems[0]
    except AssertionError as error:
        tried.problem = str(error)
    return tried


def _attempt(small: Cell, folder: Path, tried: Tried) -> None:
    how = Tokenizing(small.model, None, small.protocol.max_length, small.cache)
    tokens = tokenize_rows(read_rows(rows_of(small)), how)
    plain, _ = load_model(small.model, 2, small.seed)
    names = [name for name, _ in plain.module.named_parameters()]
    model, _ = load_model(small.model, 2, small.seed)
    tuner = deltas.attach(small.attachment, model, small.seed)
    tried.entries = sum(p.numel() for p in tuner.trainables().values())
    planned = count_cell(small).backbone
    assert planned == tried.entries, f"{planned:,} entries are planned, {tried.entries:,} train"

    def trainer(model: Model, tuner: Tuner) -> Trainer:
        scored = {"dev": tokens["dev"]}
        return Trainer(model, tuner, small.protocol, small.task, tokens["train"], scored, "accuracy", small.seed)

    def logits(model: Model, tuner: Tuner) -> np.ndarray:
        return trainer(model, tuner).evaluator.predict(tokens["dev"])

    tried.start = float(np.abs(logits(model, tuner) - logits(plain, ParameterTuner({}))).max())
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    trainer(model, tuner).run()
    after = {name: p.detach() for name, p in model.module.named_parameters() if not model.is_head(name)}
    moved = {name for name, p in after.items() if not torch.equal(before[name], p)}
    assert moved <= set(tuner.trainables()), f"{min(moved - set(tuner.trainables()))} is frozen and changes"
    if still := sorted(set(tuner.trainables()) - moved):
        inside, every = ".".join(still[0].split(".")[-3:]), len(tuner.trainables())
        tried.notes.append(f"{len(still)} of {every} tensors get no gradient here, {inside} among them")
    expected = logits(model, tuner)

    delta = deltas.learned(delta_facts(small, model), model, tuner)
    head = sum(p.numel() for _, p in model.head())
    tried.stored = (delta.stored_bytes / 4 - head) / tried.entries
    delta.save(folder / "delta.safetensors")
    fresh, _ = load_model(small.model, 2, seed=99)
    restored = deltas.restore(Delta.load(folder / "delta.safetensors"), fresh)
    away = float(np.abs(logits(fresh, restored) - expected).max())
    assert away == 0, f"its delta gives other logits ({away:.0e})"
    _export(small, fresh, restored, expected, folder, logits)
    if TYPES[str(small.method.arguments["type"])].merges:
        restored.merge()
        away = float(np.abs(logits(fresh, restored) - expected).max())
        assert away < 1e-5, f"merged, it gives other logits ({away:.0e})"
        assert [name for name, _ in fresh.module.named_parameters()] == names, "merged, its parameters have other names"


def _export(small: Cell, model: Model, tuner: Tuner, expected: np.ndarray, folder: Path, logits: Any) -> None:
    """Write peft's form, and let peft load it into the plain model."""
    from peft import PeftModel

    make_method(small.method).export_peft(tuner, model, folder / "adapter")
    base, _ = load_model(small.model, 2, small.seed)
    try:
        with warnings.catch_warnings(action="ignore"):
            loaded = PeftModel.from_pretrained(base.module, folder / "adapter")
    except Exception as error:  # whatever peft raises is the answer
        raise AssertionError(f"peft does not load what was exported ({type(error).__name__}: {error})"[:200]) from None
    base.readout = Through(base.readout, loaded.eval())
    away = float(np.abs(logits(base, ParameterTuner({})) - expected).max())
    assert away < 1e-5, f"peft loads what was exported to other logits ({away:.0e})"


def rows(kinds: Iterable[str], folder: Path) -> Iterator[tuple[str, Mapping[str, Tried]]]:
    """Every type with what came of it on every architecture."""
    for kind in kinds:
        yield kind, {name: attempt(kind, model, folder) for name, model in ARCHITECTURES.items()}


def line(kind: str, tried: Mapping[str, Tried]) -> str:
    """A type's row of the table."""
    facts, bert = TYPES[kind], tried["BERT"]
    marks = ["works" if one.problem is None else "**no**" for one in tried.values()]
    start = "same" if bert.start < 1e-6 else f"{bert.start:.0e}"
    cells = [f"`{kind}`", *marks, "yes" if facts.merges else "no", f"{bert.stored:.1f}", start]
    cells += [f"`{facts.dial}`" if facts.dial else "", f"`{facts.seed}`" if facts.seed else ""]
    return "| " + " | ".join(cells) + " |"


def problems(kind: str, tried: Mapping[str, Tried]) -> list[str]:
    """What does not work, and what is worth knowing: one line each, architectures with the same line together."""
    remarks: dict[str, list[str]] = {}
    for name, one in tried.items():
        for text in [*([one.problem] if one.problem else []), *one.notes]:
            remarks.setdefault(text, []).append(name)
    return [f"- `{kind}`, {', '.join(names)}: {text}" for text, names in remarks.items()]


def page(results: Mapping[str, Mapping[str, Tried]]) -> str:
    """The page of docs."""
    columns = ["type", *ARCHITECTURES, "merges", "stored per entry", "starts", "budget", "seed"]
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    table += [line(kind, tried) for kind, tried in results.items()]
    notes = [text for kind, tried in results.items() for text in problems(kind, tried)]
    refused = [f"- `{kind}` {reason}" for kind, reason in REFUSED.items()]
    parts = ["\n".join(table), "\n".join(notes), "Not bridged:", "\n".join(refused)]
    return HEAD + "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    """Try, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", default=",".join(TYPES), help="which, separated by commas; all unless given")
    parser.add_argument("--write", type=Path, help="the page to write")
    asked = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, tried in rows(asked.types.split(","), Path(folder)):
            results[kind] = tried
            print(line(kind, tried), *problems(kind, tried), sep="\n", flush=True)
    if asked.write:
        asked.write.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
