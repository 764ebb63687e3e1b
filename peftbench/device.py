"""Where this process computes, and with how many others: accelerate's state, made in one place."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def process_state() -> PartialState:
    """Device, rank and number of processes; a GPU where there is one, unless ACCELERATE_USE_CPU is set."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
