"""A finished run folded into its backbone, as a plain folder that model.weights takes: a newer backbone."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save

from peftbench.backbone.low_rank import Source
from peftbench.backbone.model import Model, load_model
from peftbench.backbone.weights import WEIGHTS_FILE, file_sha256, weights_folder
from peftbench.config.recipes import Merged
from peftbench.config.spec import ModelSpec
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import DELTA_FILE, RECORD_FILE, write_atomically
from peftbench.ground.machine import process_state
from peftbench.record import Record, read_record
from peftbench.runner import readouts, texts
from peftbench.runner.deltas import model_spec, reload

FACTS_FILE = "merged.json"
FORMAT: Literal["peftbench-merged-1"] = "peftbench-merged-1"


@dataclass(frozen=True)
class MergedFacts:
    """What lies beside the weights.

    Attributes:
        delta: hash of what the run learned; method, task, seed: the run's.
        scale: of its change.
        distance: length of the change of all weights that the source has; length: of these weights themselves.
    """

    format: Literal["peftbench-merged-1"]
    source: Source
    delta: str
    method: str
    task: str
    seed: int
    scale: float
    distance: float
    length: float


@dataclass(frozen=True)
class Folded:
    """A run's backbone with its change, not written yet.

    Attributes:
        model: its specification: whose words the folder is used with.
        source: the folder of the weights that the run started from.
        state: every weight by name, fp32.
    """

    model: ModelSpec
    source: Path
    state: dict[str, torch.Tensor]
    facts: MergedFacts


def fold(recipe: Merged, known: Collection[str] = ()) -> Folded:
    """Add a finished run's change to its backbone, `scale` times.

    Args:
        known: classes outside this package that the run's delta may name.

    Raises:
        ConfigError: no run is named, its method is no change of weights (adapters), or its backbone is random,
            low-rank or read by a prompt.
        DataError: the run cannot be read.
    """
    if recipe.run is None:
        raise ConfigError("make.run: must be given, the folder of a finished run")
    run = Path(recipe.run).expanduser()
    record = read_record(run / RECORD_FILE)
    spec = model_spec(record)
    if spec.weights == "random":
        raise ConfigError(f"make.run={run}: its backbone is random; there is no folder to be like")
    if readouts.readout_spec(record).kind == "prompt":
        raise ConfigError(f"make.run={run}: its readout is a prompt; a newer backbone is made of a classifier's run")
    model, tuner, _ = reload(run, known, readouts.task_of(record).parts[0].name)  # of several, whichever head
    if model.ranks:
        raise ConfigError(f"make.run={run}: its backbone is low-rank; factors are not weights that can be added to")
    before = _before(spec, record, model)
    try:
        tuner.merge()
    except ConfigError as error:
        raise ConfigError(f"make.run={run}: {error.every[0]}") from None
    state = _state(model, before, recipe.scale)
    source = weights_folder(spec)
    assert source is not None
    own = [name for name in state if name not in model.drawn]
    return Folded(
        spec,
        source,
        state,
        MergedFacts(
            format=FORMAT,
            source=Source(spec.name, file_sha256(source / WEIGHTS_FILE)),
            delta=file_sha256(run / DELTA_FILE),
            method=record.cell.method,
            task=record.cell.task,
            seed=record.cell.seed,
            scale=recipe.scale,
            distance=_length([state[name] - before[name] for name in own]),
            length=_length([before[name] for name in own]),
        ),
    )


def write(folded: Folded, folder: Path) -> None:
    """The folder's files, weights last: without them no run takes it.

    Args:
        folder: an empty one.
    """
    if not process_state().is_main_process:
        return
    texts.keep_tokenizer(folded.source, folder)
    write_atomically(folder / "config.json", (folded.source / "config.json").read_bytes())
    write_atomically(folder / FACTS_FILE, (json.dumps(asdict(folded.facts), indent=1) + "\n").encode())
    write_atomically(folder / WEIGHTS_FILE, save(folded.state, metadata={"format": "pt"}))


def _before(spec: ModelSpec, record: Record, model: Model) -> dict[str, torch.Tensor]:
    """The weights that the run started from; what they lacked as the run drew it."""
    source = load_model(spec, 1, record.cell.seed)[0]
    return {name: model.drawn.get(name, parameter.detach()).float() for name, parameter in source.backbone()}


def _state(model: Model, before: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Every weight with its change; of what the weights lacked (a pooler) all of it where the run trained any."""
    after = {name: parameter.detach().float() for name, parameter in model.backbone()}
    if {name: one.shape for name, one in after.items()} != {name: one.shape for name, one in before.items()}:
        raise ConfigError("the run's method leaves a smaller backbone (peftbench apply writes it)")
    trained = any(not torch.equal(after[name], before[name]) for name in model.drawn)
    kept = [name for name in after if trained or name not in model.drawn]
    return {name: torch.lerp(before[name], after[name], scale).contiguous().clone() for name in kept}  # exact at 1


def _length(tensors: list[torch.Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
