"""Importance by threshold: what exceeds it is chosen, the budget is the ceiling, and nothing else changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forgery import Said
from hypothesis import given
from hypothesis import strategies as st
from support import TINY, assemble

from peftbench.backbone.model import load_model
from peftbench.config.spec import Cell, MethodSpec
from peftbench.ground.errors import ConfigError
from peftbench.methods.selective import SelectiveTuner
from peftbench.runner import deltas
from peftbench.runner.counts import count_cell, kept_bounds
from peftbench.runner.recording import delta_facts
from peftbench.runner.run import Outcome
from peftbench.sparse.schedule import unmasked
from peftbench.sparse.scores import SCORES, Best, Score


def oracle(scores: np.ndarray, count: int, threshold: float) -> list[int]:
    """Plainly: those above so many times the mean of what can be chosen, the highest first, then by rising place."""
    free = np.flatnonzero(scores > -np.inf)
    least = threshold * scores[free].astype(np.float64).mean() if free.size else np.inf
    above = [i for i in free.tolist() if scores[i] > least]
    return sorted(above, key=lambda i: (-scores[i], i))[:count]


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 8.0, -np.inf]), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from([1, -1]),
    st.integers(1, 20),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]),
    st.data(),
)
def test_the_best_above_a_threshold_are_those_of_plain_numpy(
    tensors: list[list[float]], sign: int, count: int, threshold: float, data: st.DataObject
) -> None:
    parts = [np.array([s if s == -np.inf else sign * s for s in part], dtype=np.float32) for part in tensors]
    offsets = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    best = Best(count, threshold)
    for i in data.draw(st.permutations(range(len(parts)))):
        best.offer(torch.from_numpy(parts[i]), offsets[i], extra=torch.from_numpy(parts[i]) * 3)
    scores = np.concatenate(parts)
    expected = oracle(scores, count, threshold)
    if not expected and best.ids is not None:
        with pytest.raises(ConfigError, match=r"method\.threshold=.*no score exceeds"):
            best.cut()
        best.cut(required=False)
    else:
        best.cut()
    assert ([] if best.ids is None else best.ids.tolist()) == expected
    assert ([] if best.extra is None else best.extra.tolist()) == [3 * scores[i] for i in expected]


def tuner_of(cell: Cell) -> tuple[SelectiveTuner, Callable[[], object]]:
    _, tuner, trainer = assemble(cell)
    assert isinstance(tuner, SelectiveTuner)
    return tuner, trainer.run


@pytest.mark.parametrize("budget", [50, 20_000])
def test_pafi_takes_the_weights_below_a_share_of_the_mean(tiny: Callable[..., Cell], budget: int) -> None:
    tuner, _ = tuner_of(tiny("method=pafi", f"budget={budget}", "method.threshold=0.02", "protocol.precision=fp32"))
    magnitude = np.concatenate([tensor.detach().abs().float().numpy().ravel() for tensor in tuner.store.tensors])
    expected = oracle(-magnitude, budget, 0.02)
    assert len(expected) == budget if budget == 50 else 50 < len(expected) < budget
    assert tuner.store.ids.tolist() == sorted(expected)


@pytest.mark.parametrize(("threshold", "ceiling"), [(6, True), (20, False)])
@pytest.mark.parametrize("method", ["fish", "d3", "id3"])
def test_a_run_chooses_as_plain_numpy_does(
    tiny: Callable[..., Cell], method: str, threshold: float, ceiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the scores themselves, at the start and step by step, with the budget or the schedule as the ceiling."""
    budget = 4000 if not ceiling else 300
    tuner, run = tuner_of(tiny(f"method={method}", "method.batches=2", f"budget={budget}",
                               f"method.threshold={threshold}"))  # fmt: skip
    place = {id(tensor): i for i, tensor in enumerate(tuner.store.tensors)}
    score, seen, chosen, step_done = SCORES[tuner.method.score], {}, [set()], tuner.after_step

    def spy(gradient: torch.Tensor, weight: torch.Tensor, eps: float, exp: float) -> torch.Tensor:
        scores = score.rank(gradient, weight, eps, exp)
        seen[place[id(weight)]] = scores.detach().float().numpy().ravel().copy()
        return scores

    def after_step(step: int) -> bool:
        if seen:
            flat = np.concatenate([seen[i] for i in range(len(place))])
            flat[list(chosen[-1])] = -np.inf
            due = unmasked(budget, 6, step + 1) if method == "id3" else budget
            expected = oracle(flat, due - len(chosen[-1]), threshold)
            chosen.append(chosen[-1] | set(expected))
            seen.clear()
        assert set(tuner.store.ids.tolist()) == chosen[-1]
        return step_done(step)

    monkeypatch.setitem(SCORES, tuner.method.score, Score(spy, score.gradient))
    monkeypatch.setattr(tuner, "after_step", after_step)
    run()
    assert len(chosen) == (7 if method == "id3" else 2)
    assert (len(chosen[-1]) == budget) == ceiling
    assert chosen[-1]


def test_no_entry_joins_after_the_steps_that_unmask(tiny: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, run = tuner_of(tiny("method=id3", "budget=4000", "method.threshold=20", "method.steps=3"))
    used, dense, step_done = [], [], tuner.after_step

    def after_step(step: int) -> bool:
        used.append(tuner.store.used)
        dense.append(any(tensor.requires_grad for tensor in tuner.store.tensors))
        return step_done(step)

    monkeypatch.setattr(tuner, "after_step", after_step)
    run()
    assert 0 < used[0] < used[2] == used[5] < 4000
    assert dense == [True, True, False, False, False, False], "nothing is scored any more"


@pytest.mark.parametrize("method", ["d3", "id3"])
def test_counts_say_at_most_before_and_kept_after(
    tiny: Callable[..., Cell], run_tiny: Callable[..., Outcome], method: str
) -> None:
    words = [f"method={method}", "method.batches=2", "budget=4000", "method.threshold=20"]
    planned = count_cell(tiny(*words))
    assert (planned.backbone, planned.kept, kept_bounds(tiny(*words))) == (4000, 4000, (method == "d3", 4000))
    record = run_tiny(*words).record
    assert record.counts is not None
    assert record.counts.backbone == 4000
    assert 0 < record.counts.kept == record.budget["chosen"] < 4000
    assert record.counts.stored_bytes == 8 * record.counts.kept + 4 * (2 * 128 + 2)


def test_what_was_chosen_is_used_again(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    cell = tiny("method=id3", "budget=4000", "method.threshold=20", "protocol.precision=fp32", "protocol.lr=0.01")
    model, tuner, trainer = assemble(cell)
    trainer.run()
    fresh, _ = load_model(cell.model, 2, seed=99)
    restored = deltas.restore(deltas.learned(delta_facts(cell, model), model, tuner), fresh)
    assert isinstance(restored, SelectiveTuner)
    for ours, theirs in zip(tuner.store.tensors, restored.store.tensors, strict=True):
        assert torch.equal(ours, theirs)


def test_a_cell_without_a_threshold_is_the_cell_that_it_was(tiny: Callable[..., Cell]) -> None:
    def before_the_key(spec: MethodSpec) -> MethodSpec:
        return replace(spec, arguments={k: v for k, v in spec.arguments.items() if k != "threshold"})

    cell = tiny("method=id3", "budget=50")
    assert cell.fingerprint == replace(cell, method=before_the_key(cell.method)).fingerprint
    assert cell.fingerprint != tiny("method=id3", "budget=50", "method.threshold=0").fingerprint
    like = tiny("method=lora", "budget.like=id3")
    assert like.budget.like is not None
    older = replace(like, budget=replace(like.budget, like=before_the_key(like.budget.like)))
    assert like.fingerprint == older.fingerprint


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method=id3", "method.threshold=-1"], "method.threshold=-1"),
        (["method=id3", "method.threshold=high"], "method.threshold=high"),
        (["method=random_masking", "method.threshold=2"], "random has none"),
        (["method=pafi", "method.threshold=0"], "method.threshold=0: no score exceeds"),
        (["method=fish", "method.threshold=1e8"], "method.threshold=1e+08: no score exceeds"),
        (["method=id3", "method.threshold=1e8"], "method.threshold=1e+08: no score exceeds"),
    ],
)
def test_a_threshold_that_nothing_exceeds_is_one_line(
    words: list[str], line: str, command: Callable[..., Said], tmp_path: Path
) -> None:
    code, _, err = command("run", *TINY, *words, "budget=50", f"outputs={tmp_path / 'outputs'}")
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("result.json"))
