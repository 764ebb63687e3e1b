"""What a GPU would be asked for and waited for; none is needed here."""

import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import assemble

from peftbench.backbone.model import build
from peftbench.config.spec import Cell
from peftbench.runner import deltas

Make = Callable[..., Cell]
GPU = torch.device("cuda", 1)


def test_seconds_of_training_are_those_until_the_gpu_has_done_its_work(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes only while a GPU is waited for: two seconds for each batch."""
    model, _, trainer = assemble(tiny("method=bitfit"))
    now, given, asked = [0.0], [0.0], list[torch.device]()

    def wait(device: torch.device) -> None:
        asked.append(device)
        now[0], given[0] = now[0] + given[0], 0.0

    def give(*_: object) -> None:
        given[0] += 2.0

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    trainer.begin(3)
    model.module.register_forward_hook(give)
    trainer.state = Namespace(device=GPU, num_processes=1, process_index=0)
    for step in range(3):
        trainer.step(step, np.arange(8))
    assert trainer.fit.train_s == 6.0
    assert set(asked) == {GPU}


def test_averages_of_pefts_adalora_come_back_where_its_parameters_lie(tiny: Make) -> None:
    """A checkpoint is read into the CPU's memory."""
    words = ["method=peft", "method.type=adalora", "method.config.init_r=4", "method.config.target_r=2"]
    cell = tiny(*words, "method.config.tinit=1", "method.config.tfinal=1")
    _, tuner, trainer = assemble(cell)
    trainer.begin(6)
    for step in range(3):
        trainer.step(step, np.arange(8))
    kept = tuner.state_dict()["averages"]
    elsewhere = deltas.attach(cell.attachment, build(cell.model, 2, "meta"), cell.seed)
    elsewhere.load_state_dict(tuner.state_dict())
    taken = elsewhere.state_dict()["averages"]
    assert {name: set(values) for name, values in taken.items()} == {name: set(kept[name]) for name in kept}
    assert {tensor.device.type for values in taken.values() for tensor in values.values()} == {"meta"}
