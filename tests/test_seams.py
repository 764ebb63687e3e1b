"""The seams between loop, tuners and objectives: every hook arrives, what trains is what is stepped, nothing is nan."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import assemble, values
from torch import nn
from transformers import AutoModelForMaskedLM

from peftbench.backbone.model import build, load_model
from peftbench.config.spec import Cell, Layout
from peftbench.ground.errors import ConfigError, Diverged
from peftbench.methods.base import ParameterTuner, Training, Tuner
from peftbench.methods.selective import SelectiveTuner
from peftbench.methods.wrapper import WrapperTuner
from peftbench.runner.counts import count_cell
from peftbench.runner.deltas import attach
from peftbench.runner.run import Outcome
from peftbench.training.objective import Objective
from peftbench.training.trainer import Trainer

Run = Callable[..., Outcome]
TRAINING = Training(1, lambda count: iter(()), lambda tensor: tensor)
ARGUMENTS: dict[str, tuple[Any, ...]] = {  # a call of every member of Tuner that is not without arguments
    "optimizer": ([{"params": [nn.Parameter(torch.zeros(1))]}],),
    "decays": ("weight",),
    "check_steps": (1,),
    "prepare": (TRAINING,),
    "before_backward": (0, True),
    "after_backward": (0,),
    "after_step": (0,),
    "load_delta": ({"weight": torch.zeros(2)},),
    "untrained": ({"weight": torch.zeros(2)},),
    "update": ({},),
    "load_state_dict": ({"parts": [{}]},),
}


def members() -> list[str]:
    """Every public member of the protocol."""
    return sorted(name for name, _ in inspect.getmembers(Tuner, inspect.isfunction) if not name.startswith("_"))


class Recorder(ParameterTuner):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__({"weight": nn.Parameter(torch.zeros(2))})
        self.asked: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "asked":
            object.__getattribute__(self, "asked").add(name)
        return super().__getattribute__(name)

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Nothing."""
        yield from ()


@pytest.mark.parametrize("name", members())
def test_a_wrapper_forwards_every_member(name: str) -> None:
    part = Recorder()
    wrapper = WrapperTuner([part])
    part.asked.clear()
    result = getattr(wrapper, name)(*ARGUMENTS.get(name, ()))
    if inspect.isgenerator(result):
        list(result)
    assert name in part.asked


class Spy:
    """A tuner that notes what is asked of it."""

    def __init__(self, part: Tuner) -> None:
        self._part = part
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._part, name)


@pytest.mark.parametrize("method", [("spafit", "method.strata.frozen.last=-1"), ("random_lora", "budget=50")])
def test_what_a_run_asks_of_a_wrapper_reaches_its_parts(tiny: Callable[..., Cell], method: tuple[str, ...]) -> None:
    _, tuner, trainer = assemble(tiny(f"method={method[0]}", *method[1:], "protocol.max_steps=2"))
    assert isinstance(tuner, WrapperTuner)
    spies = [Spy(part) for part in tuner.parts]
    tuner.parts = [*spies]
    trainer.run()
    tuner.facts()
    tuner.load_state_dict(tuner.state_dict())
    tuner.merge()
    hooks = {"prepare", "penalty", "before_backward", "after_backward", "after_step", "facts", "merge"}
    for spy in spies:
        assert hooks | {"state_dict", "load_state_dict"} <= spy.asked


def test_a_wrapper_keeps_facts_and_penalties_of_every_part() -> None:
    class Told(ParameterTuner):
        def __init__(self, name: str, size: float) -> None:
            super().__init__({name: nn.Parameter(torch.full((1,), size))})

        def facts(self) -> dict[str, Any]:
            return {"trains": list(self.trainables())}

        def penalty(self) -> torch.Tensor | None:
            return sum(p.sum() for p in self.trainables().values())  # type: ignore[return-value]

    wrapper = WrapperTuner([Told("a", 1.0), Told("b", 2.0)])
    assert wrapper.facts() == {"parts": [{"trains": ["a"]}, {"trains": ["b"]}]}
    penalty = wrapper.penalty()
    assert penalty is not None
    assert penalty.item() == 3.0
    with pytest.raises(ConfigError, match="two methods train a"):
        WrapperTuner([Told("a", 1.0), Told("a", 2.0)])


def test_an_inner_method_that_opens_later_is_refused(tiny: Callable[..., Cell]) -> None:
    inner = "{_target_: peftbench.methods.gradual.GradualUnfreeze, every: 2}"
    with pytest.raises(ConfigError, match=r"method\.inner: .* joins during training"):
        assemble(tiny("method=id3", "budget=50", f"method.inner={inner}"))


@pytest.mark.parametrize("method", ["id3", "random_masking"])
def test_weight_decay_leaves_norms_and_biases_among_chosen_entries_alone(
    tiny: Callable[..., Cell], method: str
) -> None:
    """With gradients of zero only decay could change an entry."""
    cases = (("[layer_norm]", 200, False), ("[query]", 200, True), ("[query,layer_norm]", 2000, True))
    for kinds, budget, changes in cases:
        cell = tiny(
            f"method={method}", f"budget={budget}", f"method.kinds={kinds}", "method.steps=1", "protocol.lr=1e-2",
            "protocol.weight_decay=0.5", "protocol.precision=fp32", "protocol.schedule=constant", "protocol.warmup=0",
        )  # fmt: skip
        model, tuner, trainer = assemble(cell)
        trainer.begin(total=3)
        trainer.step(0, trainer.order(0)[0])  # entries are chosen
        before = values(model)
        assert isinstance(tuner, SelectiveTuner)
        store = tuner.store
        trainer.optimizer.state[store.values] = {}
        for group in trainer.optimizer.param_groups:
            group["betas"] = (0.0, 0.0)
        store.values.grad = torch.zeros_like(store.values)
        trainer.optimizer.step()
        store.write_back()
        after = values(model)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert not any("LayerNorm" in name or name.endswith(".bias") for name in moved)
        assert any("query.weight" in name for name in moved) == changes


class Replacing(ParameterTuner):
    """Halves its parameter after the second step, and says so or not."""

    def __init__(self, model: Any, name: str, says_so: bool) -> None:
        self._owner, self._name, self._says_so = model.module.get_submodule(name), name, says_so
        super().__init__({f"{name}.bias": self._owner.bias})

    def after_step(self, step: int) -> bool:
        """Another parameter in the place of the first."""
        if step != 1:
            return False
        self._owner.bias = nn.Parameter(self._owner.bias.detach() / 2)
        self._trainables = {f"{self._name}.bias": self._owner.bias}
        return self._says_so


@pytest.mark.parametrize("says_so", [True, False])
def test_a_tuner_that_replaces_parameters_says_so_or_the_run_ends(tiny: Callable[..., Cell], says_so: bool) -> None:
    cell = tiny("method=head", "protocol.lr=0.01")
    model, _, trainer = assemble(cell)
    tuner = Replacing(model, "bert.pooler.dense", says_so)
    tokens = trainer.train, trainer.scored
    trainer = Trainer(model, tuner, cell.protocol, cell.task, *tokens, "accuracy", cell.seed)
    if not says_so:
        with pytest.raises(RuntimeError, match=r"pooler\.dense\.bias was replaced"):
            trainer.run()
        return
    trainer.begin(total=6)
    kept = trainer.parameters["classifier.weight"]
    batches = trainer.order(0)
    trainer.step(0, batches[0])
    trainer.step(1, batches[1])
    assert int(trainer.optimizer.state[kept]["step"]) == 2, "what stays keeps its moments"
    halved = tuner.trainables()["bert.pooler.dense.bias"]
    before = halved.detach().clone()
    trainer.step(2, batches[2])
    assert not torch.equal(before, halved), "the new parameter trains"


class Dropping(ParameterTuner):
    """Gives up its second parameter after the second step, and says so or not."""

    def __init__(self, kept: nn.Parameter, dropped: nn.Parameter, says_so: bool) -> None:
        super().__init__({"kept": kept, "dropped": dropped})
        self._says_so = says_so

    def trainables(self) -> Mapping[str, nn.Parameter]:
        """All, then the first alone."""
        return {name: p for name, p in self._trainables.items() if p.requires_grad}

    def after_step(self, step: int) -> bool:
        """Freeze the second."""
        if step != 1:
            return False
        self._trainables["dropped"].requires_grad_(False)
        return self._says_so


@pytest.mark.parametrize("says_so", [True, False])
def test_a_tuner_that_drops_a_parameter_says_so_or_the_run_ends(tiny: Callable[..., Cell], says_so: bool) -> None:
    cell = tiny("method=head", "protocol.lr=0.01")
    model, _, plain = assemble(cell)
    biases = [p for name, p in model.backbone() if name.endswith("LayerNorm.bias")][-2:]
    tuner = Dropping(*biases, says_so)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, plain.train, {}, "accuracy", cell.seed)
    trainer.begin(total=6)
    batches = trainer.order(0)
    trainer.step(0, batches[0])
    if not says_so:
        with pytest.raises(RuntimeError, match="dropped was dropped during training: after_step must return True"):
            trainer.step(1, batches[1])
        return
    trainer.step(1, batches[1])
    before = [bias.detach().clone() for bias in biases]
    trainer.step(2, batches[2])
    assert [torch.equal(*pair) for pair in zip(before, biases, strict=True)] == [False, True]
    assert set(trainer.parameters) == {"kept", "classifier.weight", "classifier.bias"}


def test_a_penalty_is_added_once_a_step_and_logged_by_itself(tiny: Callable[..., Cell]) -> None:
    class Pulled(ParameterTuner):
        def penalty(self) -> torch.Tensor | None:
            return 3.0 * next(iter(self.trainables().values())).sum()

    cell = tiny("method=head", "protocol.accumulation=4", "protocol.clip=null")
    model, _, trainer = assemble(cell)
    bias = model.module.get_parameter("bert.encoder.layer.1.output.LayerNorm.bias")
    gradients, lines = [], []

    class Watching(Pulled):
        def after_backward(self, step: int) -> None:
            assert bias.grad is not None
            gradients.append(bias.grad.clone())

    class Watcher:
        def begin(self, steps: int, done: int) -> None: ...
        def step(self, step: int, facts: Mapping[str, float]) -> None:
            lines.append(facts)

        def evaluation(self, evaluation: Any) -> None: ...
        def end(self, summary: Mapping[str, Any]) -> None: ...

    def grown(kind: type[ParameterTuner]) -> None:
        with torch.no_grad():
            bias.zero_()
        tuner = kind({"bias": bias})
        made = Trainer(
            model, tuner, cell.protocol, cell.task, trainer.train, {}, "accuracy", 0, watchers=[Watcher()], log_every=1
        )
        made.begin(total=6)
        made.step(0, made.order(0)[0])

    grown(Watching)
    with_penalty = gradients.pop()

    class Plain(Watching):
        def penalty(self) -> torch.Tensor | None:
            return None

    for name, p in model.head():  # as they were before that one step
        p.data = dict(assemble(cell)[0].head())[name].data
    grown(Plain)
    torch.testing.assert_close(with_penalty - gradients.pop(), torch.full_like(bias, 3.0), atol=2e-2, rtol=0)
    assert "penalty" in lines[0]
    assert "penalty" not in lines[1]


@pytest.mark.parametrize(
    "words", [("protocol.max_steps=1", "protocol.warmup=0"), ("protocol.max_steps=3", "tracker.log_every=100")]
)
def test_a_run_that_diverges_in_its_last_step_is_not_done(run_tiny: Run, words: tuple[str, ...]) -> None:
    outcome = run_tiny("method=full", "protocol.lr=1e9", "protocol.schedule=constant", *words)
    assert outcome.record.status == "diverged"
    assert isinstance(outcome.error, Diverged)
    assert not (outcome.path.parent / "delta.safetensors").exists()


def test_an_objective_of_ones_own_sees_the_numbers_of_its_rows(tiny: Callable[..., Cell]) -> None:
    seen: list[int] = []

    class Doubled(Objective):
        def loss(self, logits: torch.Tensor, labels: torch.Tensor | None, rows: np.ndarray) -> torch.Tensor:
            seen.extend(rows.tolist())
            return 2 * nn.functional.cross_entropy(logits, labels, reduction="sum")

    cell = tiny("method=bitfit", "protocol.precision=fp32")
    model, tuner, plain = assemble(cell)
    trainer = Trainer(
        model, tuner, cell.protocol, cell.task, plain.train, {}, "accuracy", cell.seed, objective=Doubled()
    )
    rows = plain.order(0)[0]
    model.module.eval()
    torch.testing.assert_close(trainer.loss(rows), 2 * plain.loss(rows))
    assert seen == rows.tolist()


def test_the_change_of_the_backbone_is_what_merging_makes_of_it(tiny: Callable[..., Cell]) -> None:
    for words in (
        ["method=lora"],
        ["method=bitfit"],
        ["method=id3", "budget=300"],
        ["method=id3_lora", "budget=300"],
        ["method=adalora", "method.initial=0", "method.final=1"],
        ["method=linear_adapter", "method.std=0.1"],
        ["method=hut", "method.rank=3"],
        ["method=light_peft", "method.estimation=3"],
    ):
        model, tuner, trainer = assemble(tiny(*words, "protocol.precision=fp32", "protocol.lr=0.01"))
        before = {name: p.detach().clone() for name, p in model.backbone() if "lora_" not in name}
        trainer.run()
        changes = dict(tuner.update(before))
        tuner.merge()
        for name, p in model.backbone():
            expected = before[name] + changes[name] if name in changes else before[name]
            torch.testing.assert_close(p, expected, atol=1e-6, rtol=1e-6)
        assert any(change.abs().max() > 0 for change in changes.values())
    json.dumps(tuner.facts())


PRUNING = '''
from dataclasses import dataclass
from typing import ClassVar

from peftbench.methods.base import ParameterTuner


@dataclass(frozen=True)
class Pruned:
    """Biases, of which half are given up on the way."""

    dial: ClassVar[None] = None

    def attach(self, model, scope):
        return PrunedTuner({name: p for name, p in model.within(scope) if name.endswith("key.bias")})


class PrunedTuner(ParameterTuner):
    def after_step(self, step):
        if step == 1:
            self._trainables = dict(list(self._trainables.items())[:1])
        return step == 1

    def kept(self):
        return next(iter(self._trainables.values())).numel()
'''


def test_a_record_tells_what_trained_at_most_and_what_was_kept(
    run_tiny: Run, tiny: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pruned_method.py").write_text(PRUNING)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "pruned.yaml").write_text("_target_: pruned_method.Pruned\ndefault_lr: 1.0e-3\n")
    words = ["method=pruned", f"hydra.searchpath=[file://{tmp_path}]"]
    planned = count_cell(tiny(*words))
    counts = run_tiny(*words).record.counts
    assert counts is not None
    width = 128
    assert (planned.backbone, planned.kept) == (counts.backbone, counts.kept) == (2 * width, width)
    assert counts.stored_bytes == 4 * (width + counts.head)


@dataclass(frozen=True)
class MaskedWords:
    """Logits of some words at the first token, by the head for masked tokens that the weights came with."""

    words: tuple[int, ...]
    architecture: Any = AutoModelForMaskedLM
    pretrained: bool = True

    def modules(self, layout: Layout) -> tuple[str, ...]:
        """Of BERT."""
        return ("cls",)

    def attach(self, module: nn.Module) -> None:
        """As it is."""

    def trains(self, name: str) -> bool:
        """All of it."""
        return True

    def logits(self, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Readout`."""
        logits: torch.Tensor = module(**inputs).logits[:, 0, list(self.words)]
        return logits


def test_a_readout_of_ones_own_is_trained_as_a_classifier_is(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    cell = tiny("method=bitfit", "protocol.lr=0.01")
    readout = MaskedWords((11, 12))
    spec = replace(cell.model, weights=str(tmp_path / "weights"))
    written = build(cell.model, 2, readout=readout).module
    written.save_pretrained(spec.weights)
    model, _ = load_model(spec, 2, cell.seed, readout)
    assert model.readout is readout
    assert {name.partition(".")[0] for name, _ in model.head()} == {"cls"}
    bias = "cls.predictions.transform.dense.weight"
    assert torch.equal(model.module.get_parameter(bias), written.get_parameter(bias)), "of the weights, not drawn"

    _, _, trainer = assemble(cell)
    tuner = attach(cell.attachment, model, cell.seed)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, trainer.train, trainer.scored, "accuracy", cell.seed)
    fit = trainer.run()
    assert fit.steps == 6
    assert fit.logits["dev"].shape == (48, 2)
    assert not torch.equal(model.module.get_parameter(bias), written.get_parameter(bias)), "the head trains"

    del written.cls.predictions.transform
    written.save_pretrained(spec.weights)
    with pytest.raises(ConfigError, match="tensors of the head"):
        load_model(spec, 2, cell.seed, readout)
