"""Learners of a sequence that MOS is compared with: finetune, joint, oracle, simplecil and aper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from peftbench.data.tokens import Tokens
from peftbench.ground.seeds import drawn_by
from peftbench.lifecycle.sequence.classes import Stage
from peftbench.lifecycle.sequence.encoder import Encoder
from peftbench.lifecycle.sequence.fitting import Fitting, LinearHead
from peftbench.lifecycle.sequence.keys import AdaptersKeys, WholeKeys
from peftbench.lifecycle.sequence.prototypes import UNSEEN, class_means, cosines
from peftbench.lifecycle.sequence.side_adapters import SideAdapters


@dataclass(frozen=True)
class Answer:
    """What a learner says of rows.

    Attributes:
        scores: (rows, classes) fp32, -inf for classes that it has not seen.
        retrieved: number of the task whose adapters each row went through (rows,); None: it has no choice.
    """

    scores: np.ndarray
    retrieved: np.ndarray | None = None


class Learner(Protocol):
    """Learns one stage after another, and never sees the rows of an earlier one again.

    Attributes:
        together: all tasks are one stage.
        trained: entries that train beside the head at one time.
    """

    together: ClassVar[bool]
    trained: int

    def learn(self, stage: Stage) -> None:
        """Learn a stage.

        Raises:
            ConfigError: training diverges.
        """
        ...

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """Score rows of a task; only learners that are told the task by definition (oracle) look at it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it has learned, all of it: nested dicts and lists of tensors, and what is stored."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        ...


def fresh_adapters(fitting: Fitting, stage: int = 0) -> dict[str, torch.Tensor]:
    """New adapters of the learner's width, drawn from the seed's stream and the stage."""
    adapters = side_adapters(fitting.encoder)
    with drawn_by(fitting.seed_of("fresh") + stage), torch.no_grad():
        return adapters.fresh(fitting.keys.width)


def side_adapters(encoder: Encoder) -> SideAdapters:
    """The encoder's, which are there where a learner trains some."""
    assert encoder.adapters is not None
    return encoder.adapters


class Finetune:
    """One set of weights that goes on from task to task under a growing head: what is forgotten without any care."""

    together: ClassVar[bool] = False

    def __init__(self, fitting: Fitting) -> None:
        keys = fitting.keys
        assert isinstance(keys, WholeKeys)
        self._fitting = fitting
        self._head = LinearHead(fitting.classes.count, fitting.encoder.size, fitting.seed)
        self._adapters = fresh_adapters(fitting) if keys.trains == "adapters" else None
        self._weights = dict(fitting.encoder.model.backbone()) if self._adapters is None else self._adapters
        self.trained = sum(weight.numel() for weight in self._weights.values())

    def learn(self, stage: Stage) -> None:
        """See `Learner`."""
        self._fitting.fit(stage, self._head, self._weights, self._adapters)

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """See `Learner`."""
        return Answer(self._head.logits(self._fitting.encoder.features(tokens, self._adapters)).numpy())

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"weights": {name: w.detach() for name, w in self._weights.items()}, "head": self._head.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Learner`."""
        for name, weight in self._weights.items():
            weight.copy_(state["weights"][name])
        self._head.load_state_dict(state["head"])


class Joint(Finetune):
    """The same on the rows of all tasks at once: a ceiling."""

    together: ClassVar[bool] = True


class Oracle:
    """Adapters and a head for each task by itself, and the task is given: a ceiling of retrieval."""

    together: ClassVar[bool] = False

    def __init__(self, fitting: Fitting) -> None:
        assert isinstance(fitting.keys, AdaptersKeys)
        self._fitting = fitting
        self._head = LinearHead(fitting.classes.count, fitting.encoder.size, fitting.seed)
        self._adapters: dict[int, dict[str, torch.Tensor]] = {}
        self.trained = sum(one.numel() for one in fresh_adapters(fitting).values())

    def learn(self, stage: Stage) -> None:
        """See `Learner`."""
        (task,) = stage.tasks
        self._adapters[task] = fresh_adapters(self._fitting, stage.number)
        self._fitting.fit(stage, self._head, self._adapters[task], self._adapters[task])

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """See `Learner`: it looks at the task."""
        scores = self._head.logits(self._fitting.encoder.features(tokens, self._adapters[task])).numpy()
        scores[:, self._fitting.classes.tasks != task] = UNSEEN
        return Answer(scores)

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"adapters": self._adapters, "head": self._head.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Learner`."""
        device = self._fitting.encoder.device
        self._adapters = {task: on(device, one) for task, one in state["adapters"].items()}
        self._head.load_state_dict(state["head"])


class SimpleCil:
    """Prototypes of the untouched encoder's features, and cosines: nothing trains (Zhou et al. 2023, arXiv
    2303.07338)."""

    together: ClassVar[bool] = False
    trained = 0

    def __init__(self, encoder: Encoder, classes: int) -> None:
        self._encoder = encoder
        self._prototypes = torch.full((classes, encoder.size), torch.nan)

    def learn(self, stage: Stage) -> None:
        """See `Learner`."""
        add_prototypes(self._prototypes, self._encoder.features(stage.tokens), stage)

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """See `Learner`."""
        return Answer(cosines(self._encoder.features(tokens), self._prototypes).numpy())

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"prototypes": self._prototypes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Learner`."""
        self._prototypes = state["prototypes"].clone()


class Aper:
    """Adapters trained on the first task alone; then prototypes of [phi(x); phi(x; A_1)] and cosines (APER, Zhou et al.
    2023, arXiv 2303.07338, with adapters)."""

    together: ClassVar[bool] = False

    def __init__(self, fitting: Fitting) -> None:
        assert isinstance(fitting.keys, AdaptersKeys)
        self._fitting = fitting
        self._adapters = fresh_adapters(fitting)
        self._prototypes = torch.full((fitting.classes.count, 2 * fitting.encoder.size), torch.nan)
        self.trained = sum(one.numel() for one in self._adapters.values())

    def learn(self, stage: Stage) -> None:
        """See `Learner`."""
        if stage.number == 0:
            head = LinearHead(self._fitting.classes.count, self._fitting.encoder.size, self._fitting.seed)
            self._fitting.fit(stage, head, self._adapters, self._adapters)  # the head has no further use
        add_prototypes(self._prototypes, self._features(stage.tokens), stage)

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """See `Learner`."""
        return Answer(cosines(self._features(tokens), self._prototypes).numpy())

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {"adapters": self._adapters, "prototypes": self._prototypes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Learner`."""
        self._adapters = on(self._fitting.encoder.device, state["adapters"])
        self._prototypes = state["prototypes"].clone()

    def _features(self, tokens: Tokens) -> torch.Tensor:
        encoder = self._fitting.encoder
        return torch.cat([encoder.features(tokens), encoder.features(tokens, self._adapters)], 1)


def add_prototypes(prototypes: torch.Tensor, features: torch.Tensor, stage: Stage) -> None:
    """Put the mean features of a stage's classes in their rows (classes, d), as far as they have rows."""
    present = torch.from_numpy(np.unique(stage.labels))
    prototypes[present] = class_means(features, torch.from_numpy(stage.labels), len(prototypes))[present]


def on(device: torch.device, adapters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of adapters on a device."""
    return {name: tensor.to(device, copy=True) for name, tensor in adapters.items()}
