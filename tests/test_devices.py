"""What a GPU would be asked for and waited for; none is needed here."""

import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import assemble

from peftbench.config.spec import Cell

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
