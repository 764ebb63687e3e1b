"""A backbone made from another, as a plain folder that model.weights takes."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from peftbench.backbone import low_rank
from peftbench.backbone.low_rank import Distilled, LowRankFacts, Source
from peftbench.backbone.model import Model, build, load_model
from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256, weights_folder
from peftbench.config.recipes import LowRank
from peftbench.config.spec import Cell, Kind
from peftbench.data.rows import Rows
from peftbench.data.split import Split, make_split
from peftbench.data.tokens import Tokens, tokenize, tokenizer_for
from peftbench.ground import strangers
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import write_atomically
from peftbench.ground.machine import process_state
from peftbench.ground.seeds import stream
from peftbench.methods.base import narrowed, require
from peftbench.training.distil import Distillation

MAPS: tuple[Kind, ...] = ("query", "key", "value", "attention_output", "intermediate", "output")
MOST_TEXT = 1 << 30  # bytes of one file
HELD_OUT = 256  # rows of text at most, and a tenth of all, that measure the distillation


def plan(cell: Cell, recipe: LowRank) -> dict[str, int]:
    """Name -> rank of the layers' linear maps that the cell's scope covers; found without weights.

    Raises:
        ConfigError: the source has no weights, is low-rank already, or the ratio leaves a map no rank.
    """
    if cell.model.weights == "random":
        raise ConfigError("model.weights=random: there is nothing in random weights to keep")
    model, inside = build(cell.model, cell.task.num_labels, device="meta"), narrowed(cell.scope, MAPS)
    if model.ranks:
        raise ConfigError(
            f"model.weights={cell.model.weights}: its maps are low-rank already; start from the whole one"
        )
    linears = [(name, linear) for name, linear in model.linears(inside) if model.place(name).layer is not None]
    require(linears, "no linear map", inside)
    ranks = {}
    for name, linear in linears:
        ranks[name] = low_rank.rank_for(linear.in_features, linear.out_features, recipe.ratio)
        if ranks[name] == 0:
            sides = f"{linear.out_features} x {linear.in_features}"
            raise ConfigError(f"make.ratio={recipe.ratio:g}: leaves {name} ({sides}) no rank")
    return ranks


def make_low_rank(cell: Cell, recipe: LowRank, ranks: dict[str, int], folder: Path) -> LowRankFacts:
    """Write a backbone some of whose linear maps are low-rank.

    Args:
        cell: its model is the source, its task's train rows the text where the recipe names none; seed, batch size,
            length and precision are those of the distillation.
        ranks: see `plan`.
        folder: an empty one.

    Raises:
        ConfigError: there is no text to distil with, or the distillation diverges.
        DataError: text or weights cannot be read.
    """
    text = _text(cell, recipe) if recipe.variant == "svd_distil" else None
    source = weights_folder(cell.model)
    assert source is not None
    tokens = None if text is None else _tokens(cell, recipe, text, source)
    model, _ = load_model(cell.model, cell.task.num_labels, cell.seed)
    before = _entries(model)
    teacher = copy.deepcopy(model)
    for name, rank in ranks.items():
        whole = model.module.get_submodule(name)
        assert isinstance(whole, torch.nn.Linear)
        model.module.set_submodule(name, low_rank.factored(whole, rank))
    distilled = None if text is None or tokens is None else _distil(cell, recipe, model, teacher, text, tokens)
    facts = LowRankFacts(
        format=low_rank.FORMAT,
        ranks=ranks,
        source=Source(cell.model.name, file_sha256(source / WEIGHTS_FILE)),
        variant=recipe.variant,
        ratio=recipe.ratio,
        seed=cell.seed,
        entries=(before, _entries(model)),
        distilled=distilled,
    )
    if process_state().is_main_process:
        _write(folder, model, source, facts)
    return facts


def words_for(cell: Cell, folder: Path) -> list[str]:
    """The words of a cell that uses what was written there in the place of its own backbone."""
    sha256 = file_sha256(folder / WEIGHTS_FILE)
    return [f"model={cell.model.name}", f"model.weights={folder.absolute()}", f"model.sha256={sha256}"]


def _entries(model: Model) -> int:
    return sum(parameter.numel() for _, parameter in model.backbone())


def _text(cell: Cell, recipe: LowRank) -> Split:
    """The text, without labels, as rows."""
    if recipe.text is None:
        if cell.task.train is None:
            raise ConfigError(f"task={cell.task.name}: has no training rows; give make.text")
        return make_split("text", Rows(cell.data, cell.task, None, False).read()[cell.task.train].texts, None)
    path = Path(recipe.text).expanduser()
    paths = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    lines: list[str] = []
    for one in paths:
        try:
            content = strangers.read_bytes(one, MOST_TEXT).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"make.text={one}: not UTF-8 at byte {error.start}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"make.text={one}: {getattr(error, 'strerror', None) or error}") from None
        lines += [line.strip() for line in content.splitlines() if line.strip()]
    return make_split("text", (tuple(lines),), None)


def _tokens(cell: Cell, recipe: LowRank, text: Split, source: Path) -> tuple[Tokens, Tokens]:
    """Token ids of as many rows as are needed, chosen by the seed: those to train on, and those held out."""
    if len(text) < 2:
        raise DataError(f"make.text={recipe.text or 'null'}: no two rows of text, one to train on and one to hold out")
    order = np.random.default_rng(stream(cell.seed, "held_out")).permutation(len(text))
    kept = max(1, min(HELD_OUT, len(text) // 10))
    needed = order[kept:][: recipe.steps * cell.protocol.batch_size]
    tokenizer, cache = tokenizer_for(cell.model, source), Path(cell.cache).expanduser()
    train, held_out = text.rows(needed, "text"), text.rows(order[:kept], "held_out")
    return tuple(tokenize(part, tokenizer, cell.protocol.max_length, cache) for part in (train, held_out))  # type: ignore[return-value]


def _distil(
    cell: Cell, recipe: LowRank, model: Model, teacher: Model, text: Split, tokens: tuple[Tokens, Tokens]
) -> Distilled:
    train, held_out = tokens
    distillation = Distillation(model, teacher, recipe, cell.protocol, process_state().device)
    before = distillation.loss(held_out)
    distillation.run(train, cell.seed)
    return Distilled(text.sha256, len(train), recipe.steps, before, distillation.loss(held_out))


def _write(folder: Path, model: Model, source: Path, facts: LowRankFacts) -> None:
    """The folder's files, weights last: without them no run takes it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    write_atomically(folder / "config.json", (source / "config.json").read_bytes())
    write_atomically(folder / low_rank.FACTS_FILE, (json.dumps(asdict(facts), indent=1) + "\n").encode())
    state = {name: p.detach().cpu().contiguous().clone() for name, p in model.backbone() if name not in model.drawn}
    write_atomically(folder / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
