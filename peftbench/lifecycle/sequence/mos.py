"""MOS: task-specific adapters that are merged into each other, classes replayed as Gaussians, and self-refined
retrieval (Sun et al., AAAI 2025, arXiv 2412.09441), by its equations."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn import functional

from peftbench.data.tokens import Tokens
from peftbench.lifecycle.sequence.adapter_steps import ensemble, mean_of, orthogonality, pull, refined
from peftbench.lifecycle.sequence.classes import Stage
from peftbench.lifecycle.sequence.fitting import MOMENTUM, Fitting, LinearHead, cosine_share
from peftbench.lifecycle.sequence.keys import MosKeys
from peftbench.lifecycle.sequence.learners import Answer, add_prototypes, fresh_adapters, on, side_adapters
from peftbench.lifecycle.sequence.prototypes import cosines, gaussian, root, samples


class Mos:
    """Adapters A_b of every task b, each going on from the one before it and pulled towards the mean of all earlier
    ones; one head W, aligned after each task on draws from every class's Gaussian; prototypes of A_1's features.

    Nothing of a task but these is kept: no row is seen again.
    """

    together: ClassVar[bool] = False

    def __init__(self, fitting: Fitting, keys: MosKeys) -> None:
        encoder, classes = fitting.encoder, fitting.classes.count
        self._fitting, self._keys, self._encoder = fitting, keys, encoder
        self._head = LinearHead(classes, encoder.size, fitting.seed)
        self._adapters: list[dict[str, torch.Tensor]] = []
        self._tasks: list[int] = []  # by stage
        self._prototypes = torch.full((classes, encoder.size), torch.nan)
        self._gaussians: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # class -> mean and covariance
        self.trained = sum(one.numel() for one in fresh_adapters(fitting).values())

    def learn(self, stage: Stage) -> None:
        """See `Learner`."""
        keys, (task,) = self._keys, stage.tasks
        before = mean_of(self._adapters) if self._adapters else None
        current = on(self._encoder.device, self._adapters[-1]) if self._adapters else fresh_adapters(self._fitting)
        merge = None if before is None else functools.partial(pull, current, before, keys.pull)
        means = [mean for mean, _ in self._gaussians.values()]
        known = torch.stack(means) if means else torch.empty(0, self._encoder.size)
        known = known.to(self._encoder.device)

        def penalty(features: torch.Tensor) -> torch.Tensor:
            return keys.orthogonality * orthogonality(known, features, keys.temperature)

        self._adapters.append(current)
        self._tasks.append(task)
        self._pull_in_forward(stage.number)
        self._fitting.fit(stage, self._head, current, current, penalty, merge)
        features = self._features(stage.tokens, stage.number)
        for label in np.unique(stage.labels).tolist():
            rows = features[torch.from_numpy(stage.labels == label)]
            self._gaussians[label] = gaussian(rows, keys.ridge, keys.covariance == "full")
        if stage.number > 0:
            self._align(stage.number)
        add_prototypes(self._prototypes, self._features(stage.tokens, 0), stage)

    def answer(self, tokens: Tokens, task: int) -> Answer:
        """See `Learner`: with retrieval=oracle it looks at the task."""
        keys, stages = self._keys, len(self._adapters)
        features = [self._features(tokens, stage) for stage in range(stages)]
        to_prototypes = cosines(features[0], self._prototypes)
        logits = torch.stack([self._head.logits(one) for one in features])
        stage_of = self._stage_of()
        first = stage_of[to_prototypes.argmax(1).numpy()]
        at = {
            "first": lambda: first,
            "refined": lambda: refined(first, logits.numpy(), stage_of, keys.rounds),
            "oracle": lambda: np.full(len(tokens), self._tasks.index(task)),
        }[keys.retrieval]()
        scores = logits[torch.from_numpy(at), torch.arange(len(tokens))]
        if keys.ensemble:
            scores = ensemble(scores, to_prototypes, stages)
        return Answer(scores.numpy(), np.array(self._tasks)[at])

    def state_dict(self) -> dict[str, Any]:
        """See `Learner`."""
        return {
            "adapters": self._adapters,
            "tasks": self._tasks,
            "head": self._head.state_dict(),
            "prototypes": self._prototypes,
            "gaussians": self._gaussians,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Learner`."""
        self._adapters = [on(self._encoder.device, one) for one in state["adapters"]]
        self._tasks = list(state["tasks"])
        self._head.load_state_dict(state["head"])
        self._prototypes = state["prototypes"].clone()
        self._gaussians = {label: (mean.clone(), of.clone()) for label, (mean, of) in state["gaussians"].items()}

    def _stage_of(self) -> np.ndarray:
        """The stage in which each class was learned (classes,); of classes that were not it says nothing true."""
        places = {task: stage for stage, task in enumerate(self._tasks)}
        return np.array([places.get(int(task), 0) for task in self._fitting.classes.tasks])

    def _features(self, tokens: Tokens, stage: int) -> torch.Tensor:
        """Features (rows, d) with the adapters of a stage."""
        self._pull_in_forward(stage)
        return self._encoder.features(tokens, self._adapters[stage])

    def _pull_in_forward(self, stage: int) -> None:
        """The released code's behaviour, where it is asked for: every forward pass, in training and in evaluation,
        pulls the adapters that it runs with once for each layer, all layers' at once."""
        if not self._keys.merge_per_forward:
            return
        adapters = self._adapters[stage]
        if stage == 0:
            side_adapters(self._encoder).before_layer = None
            return
        before, share = mean_of(self._adapters[:stage]), self._keys.pull

        def pulled() -> None:
            for name, parameter in adapters.items():
                parameter.data = (1 - share) * parameter.data + share * before[name]  # past autograd, as there

        side_adapters(self._encoder).before_layer = pulled

    def _align(self, stage: int) -> None:
        """Train the head alone on draws from the Gaussian of every class seen, all classes competing.

        An epoch draws align_samples * batch_size features of each class, and takes a step on as many at a time as one
        class has, in random order; how the draws are cut into steps is our choice.
        """
        keys, per_class = self._keys, self._keys.align_samples * self._keys.batch_size
        labels = sorted(self._gaussians)
        means = [self._gaussians[label][0] for label in labels]
        roots = [root(self._gaussians[label][1]) for label in labels]
        random = torch.Generator().manual_seed(self._fitting.seed_of("sequence") + stage)
        weight, bias = self._head.rows(np.array(labels), torch.device("cpu"))
        optimizer = torch.optim.SGD(
            [weight, bias], lr=keys.align_lr, momentum=MOMENTUM, weight_decay=keys.align_weight_decay
        )
        targets = torch.arange(len(labels)).repeat_interleave(per_class)
        for epoch in range(keys.align_epochs):
            optimizer.param_groups[0]["lr"] = keys.align_lr * cosine_share(epoch, keys.align_epochs)
            drawn = [samples(mean, of, per_class, random) for mean, of in zip(means, roots, strict=True)]
            features = torch.cat(drawn)
            for rows in torch.randperm(len(features), generator=random).split(per_class):
                loss = functional.cross_entropy(functional.linear(features[rows], weight, bias), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self._head.put(np.array(labels), (weight, bias))
