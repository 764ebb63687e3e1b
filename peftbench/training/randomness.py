"""The random numbers that training draws: where they begin, and their state in a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object

from peftbench.backbone.model import Model
from peftbench.ground.machine import process_state
from peftbench.ground.seeds import stream


def begin(model: Model, seed: int) -> None:
    """Begin the seed's stream of dropout, of each process its own."""
    number = stream(seed, "dropout") + process_state().process_index
    torch.manual_seed(number)
    model.noise.seed(number)


def state_dict(model: Model) -> dict[str, tuple[Any, ...]]:
    """The state in every process, in their order; all processes must ask for it together."""
    state = process_state()
    on_gpu = torch.cuda.get_rng_state() if state.device.type == "cuda" else None
    mine = [(model.noise.state_dict(), torch.get_rng_state(), on_gpu)]
    everyones = gather_object(mine) if state.num_processes > 1 else mine
    return dict(zip(("noise", "random", "cuda"), zip(*everyones, strict=True), strict=True))


def load_state_dict(model: Model, kept: Mapping[str, Any]) -> None:
    """Take up such a state."""
    state = process_state()
    model.noise.load_state_dict(kept["noise"][state.process_index])
    torch.set_rng_state(kept["random"][state.process_index])
    if state.device.type == "cuda":
        torch.cuda.set_rng_state(kept["cuda"][state.process_index])
