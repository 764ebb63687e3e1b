"""LST, ladder side-tuning: a narrow network beside the frozen backbone (Sung et al. 2022, arXiv 2206.06522)."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from peftbench.backbone.dropout import Dropout
from peftbench.backbone.model import Model, empty_copy
from peftbench.config.bounds import Count, Positive
from peftbench.config.spec import Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.quantity import quantity
from peftbench.methods.base import ParameterTuner, Training, decays_by_name, require
from peftbench.methods.narrow import Narrow, reductions
from peftbench.methods.narrow_start import Heads, check_known, fisher, magnitude, prune

LADDER = "ladder"  # its name in the model
GATES = f"{LADDER}.gates"


class Ladder(nn.Module):
    """The side network: z = Down_0(drop(h_0)); at every rung z = Layer_i(mu_i z + (1 - mu_i) Down_i(h_i)); y = Up(z).

    h_0 is what the backbone's first layer reads, h_i what layer i gives, mu_i = sigmoid(gate_i / temperature) (section
    3.2). y stands in the place of the last layer's output: pooler and head read it.

    Attributes:
        rungs: numbers of the backbone's layers, rising.
    """

    def __init__(self, model: Model, rungs: list[int], reduction: int, temperature: float) -> None:
        super().__init__()
        self.rungs, self._temperature = rungs, temperature
        config: Any = model.module.config
        wide, device = int(config.hidden_size), next(model.module.parameters()).device
        self.side = Narrow(model, rungs, reduction)
        self.downs = nn.ModuleList(nn.Linear(wide, self.side.width, device=device) for _ in range(len(rungs) + 1))
        self.up = nn.Linear(self.side.width, wide, device=device)
        self.gates = nn.Parameter(torch.zeros(len(rungs), device=device))
        self.drop = Dropout(_embeddings_dropout(model), model.noise)
        for down in self.downs:
            assert isinstance(down, nn.Linear)
            nn.init.normal_(down.weight, std=float(getattr(config, "initializer_range", 0.02)))
            nn.init.zeros_(down.bias)
        self._reached: list[torch.Tensor] = []  # h_0 and those of the rungs, in the pass that runs
        self._mask: torch.Tensor | None = None
        self.aside = False  # the backbone then runs alone
        for rung, layer in enumerate(self.side.layers):
            layer.register_forward_pre_hook(self._entering(rung))
        self._beside(model)

    def mu(self) -> torch.Tensor:
        """How much of what comes from below every rung keeps (rungs,)."""
        return torch.sigmoid(self.gates / self._temperature)

    def forward(self) -> torch.Tensor:
        """y (rows, tokens, hidden), of the hidden states that the backbone has just come by."""
        y: torch.Tensor = self.up(self.side(self.downs[0](self.drop(self._reached[0])), self._mask))
        self._reached = []
        return y

    def _entering(self, rung: int) -> Any:
        """What a side layer reads, for its place among the rungs."""

        def mixed(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            mu = self.mu()[rung]
            return mu * inputs[0] + (1 - mu) * self.downs[rung + 1](self._reached[rung + 1]), *inputs[1:]

        return mixed

    def _beside(self, model: Model) -> None:
        """Hang the ladder beside the backbone, by hooks on what it reads.

        The backbone runs as at rest, without dropout, in training too: what it gives is a function of the row alone.
        """
        layers = model.module.get_submodule(model.layout.layers)
        assert isinstance(layers, nn.ModuleList)
        model.module.register_forward_pre_hook(self._begun, with_kwargs=True)
        for module in (*model.embeddings(), *layers):
            module.register_forward_pre_hook(_at_rest)
        layers[0].register_forward_pre_hook(self._entered)
        for rung in self.rungs:
            layers[rung].register_forward_hook(self._came_by)
        layers[-1].register_forward_hook(self._left)

    def _begun(self, _: nn.Module, __: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        self._reached, self._mask = [], inputs.get("attention_mask")

    def _entered(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._reached = [] if self.aside else [inputs[0].detach()]

    def _came_by(self, _: nn.Module, __: Any, output: Any) -> None:
        if not self.aside:
            self._reached.append(_hidden(output).detach())

    def _left(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.aside:
            return output
        y = self().to(_hidden(output).dtype)
        return (y, *output[1:]) if isinstance(output, tuple) else y


def _at_rest(module: nn.Module, _: Any) -> None:
    if module.training:
        module.eval()


def _hidden(output: Any) -> torch.Tensor:
    """What a layer hands on: some architectures' give a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _embeddings_dropout(model: Model) -> float:
    """The rate of the backbone's own dropout of embeddings."""
    inside = (module for embeddings in model.embeddings() for module in embeddings.modules())
    return next((float(module.p) for module in inside if isinstance(module, Dropout)), 0.0)


class LSTTuner(ParameterTuner):
    """The ladder: gates, maps down and up, narrow layers."""

    def __init__(self, method: "LST", model: Model, ladder: Ladder) -> None:
        own = {name: p for name, p in ladder.named_parameters(prefix=LADDER) if p.requires_grad}
        super().__init__(own)
        self._method, self._model, self._ladder = method, model, ladder
        self._begun = method.init == "random"  # the side network has the weights that training begins with

    def touched(self) -> Iterable[str]:
        """Nothing: the ladder stands beside the backbone."""
        return ()

    def reads(self) -> Iterable[str]:
        """The embeddings and the layers that have a rung."""
        layout = self._model.layout
        return [*layout.kinds["embeddings"], *(f"{layout.layers}.{rung}" for rung in self._ladder.rungs)]

    def decays(self, name: str) -> bool:
        """Matrices; gates would be drawn back to a half."""
        return name != GATES and decays_by_name(name)

    def check_steps(self, steps: int) -> None:
        """Any number will do.

        Raises:
            ConfigError: something in the backbone trains, or another method steps single entries of the ladder.
        """
        if trained := [n for n, p in self._model.backbone() if p.requires_grad and not n.startswith(f"{LADDER}.")]:
            raise ConfigError(f"{trained[0]} trains beside LST, which lets no gradient into the backbone")
        if not all(parameter.requires_grad for parameter in self.trainables().values()):
            raise ConfigError("method.inner: LST draws its weights anew when training begins; it must train alone")

    def prepare(self, training: Training) -> None:
        """Prune the side layers from the backbone's, unless that was done when training began."""
        if self._begun:
            return
        method, rungs = self._method, self._ladder.rungs
        self._ladder.aside = True
        try:
            if method.init == "magnitude":
                importance = magnitude(self._model, rungs)
            else:
                assert method.init != "random"
                importance = fisher(self._model, rungs, method.examples, training, method.init)
        finally:
            self._ladder.aside = False
        prune(self._model, self._ladder.side, rungs, importance, method.heads)
        self._begun = True

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        super().load_delta(tensors)
        self._begun = True

    def merge(self) -> None:
        """Refused: no weight of the backbone can stand for a network beside it."""
        raise ConfigError("LST cannot be merged into the backbone's weights: the ladder is a network beside it")

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """Refused for the same reason."""
        raise ConfigError("LST is no change of the backbone's weights: the ladder is a network beside it")

    def facts(self) -> dict[str, Any]:
        """The rungs, the side network's sizes, and what every gate came to: the share of what comes from below."""
        side, gates = self._ladder.side, self._ladder.mu()
        return {"rungs": self._ladder.rungs, "width": side.width, "inner": side.inner, "mu": gates.tolist()}

    def state_dict(self) -> dict[str, Any]:
        """Whether the side layers were pruned."""
        return {"begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self._begun = bool(state["begun"])


@dataclass(frozen=True)
class LST:
    """A ladder beside the backbone; the scope's layers are those that may have a rung.

    Attributes:
        reduction: how many times narrower the side network is.
        every: rungs are at every so manieth layer, counted down from the last.
        temperature: of the gates.
        init: where the side layers' weights come from: see `narrow_start.Importance`; random: drawn.
        examples: how many training rows the Fisher information sums over.
        heads: which rows of a pruned attention stay: see `narrow_start.prune`.
    """

    reduction: Count = 8
    every: Count = 1
    temperature: Positive = 0.1
    init: Literal["fisher", "log_fisher", "magnitude", "random"] = "fisher"
    examples: Count = 1024
    heads: Heads = "within"
    dial: ClassVar[str | None] = "reduction"
    alone: ClassVar[bool] = True

    def within(self, model: Model, scope: Scope, entries: int) -> "LST":
        """The widest side network within a budget; where none is, with fewer rungs, down to the last one alone.

        Raises:
            ConfigError: even that one trains more.
        """
        possible, empty = reductions(model.module.config), empty_copy(model)
        least = 0
        for further in range(1, len(self._rungs(model, scope)) + 1):
            thinned = replace(self, every=self.every * further)
            sizes = ((size, thinned._entries(empty, scope, size)) for size in possible)
            least = thinned._entries(empty, scope, possible[-1])
            if least <= entries:
                return replace(thinned, reduction=next(size for size, trained in sizes if trained <= entries))
        raise ConfigError(
            f"budget: {quantity(entries, 'entry')}; LST here needs at least {least:,} "
            f"(reduction {possible[-1]}, the last rung alone)"
        )

    def _entries(self, empty: Model, scope: Scope, reduction: int) -> int:
        """How many would train at a reduction; on a model without values."""
        ladder = Ladder(empty, self._rungs(empty, scope), reduction, self.temperature)
        return sum(parameter.numel() for parameter in ladder.parameters() if parameter.requires_grad)

    def attach(self, model: Model, scope: Scope) -> LSTTuner:
        """See `Method`.

        Raises:
            ConfigError: the side network cannot be made so narrow, or the scope names kinds.
        """
        if scope.kinds is not None:
            raise ConfigError(
                f"scope.kinds={list(scope.kinds)}: LST trains whole layers beside the backbone; leave it out"
            )
        if self.init != "random":
            check_known(model)
        ladder = Ladder(model, self._rungs(model, scope), self.reduction, self.temperature)
        model.module.add_module(LADDER, ladder)
        return LSTTuner(self, model, ladder)

    def _rungs(self, model: Model, scope: Scope) -> list[int]:
        covered = [layer for layer in range(model.depth) if scope.layers is None or layer in scope.layers]
        require(covered, "no layer", scope)
        return covered[::-1][:: self.every][::-1]
