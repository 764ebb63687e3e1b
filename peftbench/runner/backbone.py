"""A backbone made from another, as a plain folder that model.weights takes."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from peftbench.backbone import low_rank
from peftbench.backbone.low_rank import Distilled, LowRankFacts, Source
from peftbench.backbone.model import Model, build, load_model
from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256, weights_folder
from peftbench.config.recipes import LowRank
from peftbench.config.spec import Cell, Kind, ModelSpec, Scope
from peftbench.data.tokens import Tokens, tokenizer_for
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import write_atomically
from peftbench.ground.machine import process_state
from peftbench.methods.base import narrowed, require
from peftbench.runner import texts
from peftbench.training.distil import Distillation

MAPS: tuple[Kind, ...] = ("query", "key", "value", "attention_output", "intermediate", "output")


def plan(source: ModelSpec, scope: Scope, recipe: LowRank) -> dict[str, int]:
    """Name -> rank of the layers' linear maps that the scope covers; found without weights.

    Raises:
        ConfigError: the source has no weights, is low-rank already, or the ratio leaves a map no rank.
    """
    if source.weights == "random":
        raise ConfigError("model.weights=random: there is nothing in random weights to keep")
    model, inside = build(source, 1, device="meta"), narrowed(scope, MAPS)
    if model.ranks:
        raise ConfigError(f"model.weights={source.weights}: its maps are low-rank already; start from the whole one")
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
    text = texts.read(recipe.text, cell.data, cell.task) if recipe.variant == "svd_distil" else None
    source = weights_folder(cell.model)
    assert source is not None
    tokens = None
    if text is not None:
        parts = texts.cut(text, recipe.steps * cell.protocol.batch_size, cell.seed, recipe.text)
        tokens = texts.tokens(parts, tokenizer_for(cell.model, source), cell.protocol.max_length, cell.cache)
    model, _ = load_model(cell.model, cell.task.num_labels, cell.seed)
    before = _entries(model)
    teacher = copy.deepcopy(model)
    for name, rank in ranks.items():
        whole = model.module.get_submodule(name)
        assert isinstance(whole, torch.nn.Linear)
        model.module.set_submodule(name, low_rank.factored(whole, rank))
    distilled = None
    if text is not None and tokens is not None:
        distillation = Distillation(model, teacher, recipe, cell.protocol, process_state().device)
        distilled = _distil(distillation, text.sha256, tokens, cell.seed)
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


def words_for(model: ModelSpec, folder: Path) -> list[str]:
    """The words of a cell that uses what was written there in the place of this backbone's own weights."""
    sha256 = file_sha256(folder / WEIGHTS_FILE)
    return [f"model={model.name}", f"model.weights={folder.absolute()}", f"model.sha256={sha256}"]


def _entries(model: Model) -> int:
    return sum(parameter.numel() for _, parameter in model.backbone())


def _distil(distillation: Distillation, text: str, tokens: tuple[Tokens, Tokens], seed: int) -> Distilled:
    """Train on a text of this hash; `tokens` are those of the rows to train on and of those held out."""
    train, held_out = tokens
    before = distillation.loss(held_out)
    distillation.run(train, seed)
    return Distilled(text, len(train), distillation.recipe.steps, before, distillation.loss(held_out))


def _write(folder: Path, model: Model, source: Path, facts: LowRankFacts) -> None:
    """The folder's files, weights last: without them no run takes it."""
    texts.keep_tokenizer(source, folder)
    write_atomically(folder / "config.json", (source / "config.json").read_bytes())
    write_atomically(folder / low_rank.FACTS_FILE, (json.dumps(asdict(facts), indent=1) + "\n").encode())
    state = {name: p.detach().cpu().contiguous().clone() for name, p in model.backbone() if name not in model.drawn}
    write_atomically(folder / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
