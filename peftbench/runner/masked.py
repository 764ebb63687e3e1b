"""A backbone with a masked-LM head, trained on text, as a plain folder that model.weights takes and a prompt reads."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save

from peftbench.backbone import low_rank
from peftbench.backbone.low_rank import Source
from peftbench.backbone.model import Model, load_model
from peftbench.backbone.readout import WholeHead
from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256, weights_folder
from peftbench.config.recipes import MaskedLM
from peftbench.config.spec import Cell, ModelSpec
from peftbench.data.tokens import PretrainedTokenizer
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import write_atomically
from peftbench.ground.machine import process_state
from peftbench.runner import texts
from peftbench.training.masked import MaskedTraining, Vocabulary

FACTS_FILE = "masked_lm.json"
FORMAT: Literal["peftbench-masked-lm-1"] = "peftbench-masked-lm-1"


@dataclass(frozen=True)
class MaskedFacts:
    """What lies beside the weights.

    Attributes:
        head: "new" where the source had none: it was drawn, and knows only this text; "kept" where it had one.
        text: hash of all texts; rows: of them that were trained on.
        before, after: mean cross entropy of hidden tokens on text that was held out, before and after training.
    """

    format: Literal["peftbench-masked-lm-1"]
    source: Source
    head: Literal["new", "kept"]
    text: str
    rows: int
    steps: int
    masked: float
    head_only: bool
    seed: int
    before: float
    after: float


def check(source: ModelSpec) -> None:
    """Refuse what cannot be trained, before any cost.

    Raises:
        ConfigError: the source has no weights, is low-rank, or its architecture has no head for masked tokens.
    """
    if source.weights == "random":
        raise ConfigError("model.weights=random: masked-LM training goes on from weights, and there are none")
    if not source.layout.masked_head:
        raise ConfigError(f"make=mlm: the layout of {source.name} names no masked_head")
    if low_rank.ranks_of(source):
        raise ConfigError(f"model.weights={source.weights}: its maps are low-rank; start from the whole one")


def make_masked(cell: Cell, recipe: MaskedLM, folder: Path) -> MaskedFacts:
    """Write the cell's backbone with a masked-LM head, both trained on.

    Args:
        cell: its model is the source, its task's train rows the text where the recipe names none; seed, batch size,
            length and precision are those of the training.
        folder: an empty one.

    Raises:
        ConfigError: there is no text, or the training diverges.
        DataError: text, tokenizer or weights cannot be read.
    """
    text = texts.read(recipe.text, cell.data, cell.task)
    source = weights_folder(cell.model)
    assert source is not None
    tokenizer = PretrainedTokenizer(source)
    special = tokenizer.special()
    parts = texts.cut(text, recipe.steps * cell.protocol.batch_size, cell.seed, recipe.text)
    train, held_out = texts.tokens(parts, tokenizer, cell.protocol.max_length, cell.cache)
    new = not has_head(source, cell.model.layout.masked_head)
    model, _ = load_model(cell.model, cell.task.num_labels, cell.seed, WholeHead(pretrained=not new))
    ids = Vocabulary(special["mask"], {*special.values(), tokenizer.pad_id}, int(cell.model.config["vocab_size"]))
    training = MaskedTraining(model, ids, recipe, cell.protocol, process_state().device)
    before = training.held_out_loss(held_out)
    training.run(train, cell.seed)
    facts = MaskedFacts(
        format=FORMAT,
        source=Source(cell.model.name, file_sha256(source / WEIGHTS_FILE)),
        head="new" if new else "kept",
        text=text.sha256,
        rows=len(train),
        steps=recipe.steps,
        masked=recipe.masked,
        head_only=recipe.head_only,
        seed=cell.seed,
        before=before,
        after=training.held_out_loss(held_out),
    )
    if process_state().is_main_process:
        whole, _ = load_model(cell.model, cell.task.num_labels, cell.seed)
        state = {**dict(_left_over(whole)), **{name: p.detach() for name, p in model.module.named_parameters()}}
        _write(folder, state, source, facts)
    return facts


def has_head(source: Path, places: tuple[str, ...]) -> bool:
    """Whether the weights hold a head for masked tokens, or a part of one; it would lie at these places."""
    with safe_open(source / WEIGHTS_FILE, "pt") as file:
        return any(name.startswith(places) for name in file.keys())  # noqa: SIM118


def _left_over(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """The source's backbone, of which a masked LM lacks some (a pooler): that stays as it was."""
    return ((name, p.detach()) for name, p in model.backbone() if name not in model.drawn)


def _write(folder: Path, state: dict[str, torch.Tensor], source: Path, facts: MaskedFacts) -> None:
    """The folder's files, weights last: without them no run takes it."""
    texts.keep_tokenizer(source, folder)
    write_atomically(folder / "config.json", (source / "config.json").read_bytes())
    write_atomically(folder / FACTS_FILE, (json.dumps(asdict(facts), indent=1) + "\n").encode())
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    write_atomically(folder / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
