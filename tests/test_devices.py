"""What a GPU would be asked for and waited for; none is needed here."""

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import assemble
from test_models import small
from torch.utils._python_dispatch import TorchDispatchMode

from peftbench.backbone.model import build
from peftbench.config.spec import Cell
from peftbench.ground.seeds import drawn_from
from peftbench.runner import deltas, provenance

Make = Callable[..., Cell]
GPU = torch.device("cuda", 1)


def test_seconds_of_training_are_those_until_the_gpu_has_done_its_work(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes only while a GPU is waited for: two seconds for each batch."""
    model, _, trainer = assemble(tiny("method=bitfit", "tracker.log_every=100"))
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
        assert not asked, "a step that nobody looks at is not waited for"
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


@pytest.mark.parametrize("training", [False, True])
def test_deberta_reads_nothing_back_on_its_way_forward(training: bool) -> None:
    """On the device "meta", from which nothing can be read."""
    model = build(small("deberta_v3_base"), 2, "meta")
    model.module.train(training)
    ids = torch.zeros(2, 11, dtype=torch.long, device="meta")
    assert model.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).shape == (2, 2)


class Choices(TorchDispatchMode):
    """Counts choices by a mask, of which a GPU must first say how many elements they are."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = args[1] if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) else []
        self.count += sum(part is not None and part.dtype == torch.bool for part in chosen)
        return func(*args, **(kwargs or {}))


def test_kept_hidden_states_are_taken_up_without_a_choice_by_a_mask(tiny: Make) -> None:
    _, _, trainer = assemble(tiny("method=full", "scope.layers=1", "protocol.keep_prefix=true"))
    trainer.begin(1)
    assert trainer.train is not None
    assert trainer.forward.prefix is not None
    batch = trainer.forward.batch(trainer.train, np.arange(len(trainer.train)))
    assert not bool(batch.inputs["attention_mask"].all()), "some rows are padded"
    with Choices() as choices, trainer.forward.prefix.standing_in(batch):
        pass
    assert choices.count == 0


def test_what_is_drawn_from_a_stream_asks_no_gpu_for_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a GPU was asked, and took memory for that")

    with drawn_from(0, "head"):
        expected = torch.rand(3)
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    with drawn_from(0, "head"):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("device", "reset"), [(GPU, [GPU]), (torch.device("cpu"), [])])
def test_the_peak_that_is_reset_is_that_of_the_runs_own_device(
    device: torch.device, reset: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *given: asked.extend(given or ["whichever"]))
    monkeypatch.setattr(provenance, "process_state", lambda: Namespace(device=device))
    provenance.reset_peak_memory()
    assert asked == reset
