"""A task on a backbone that is not the one its head was trained on: rows, scores, a head fitted anew, statistics."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.backbone.weights import weights_folder
from peftbench.data.batches import Batch, evaluation_order
from peftbench.data.rows import Rows
from peftbench.data.split import Split
from peftbench.data.tokens import Tokens, tokenize, tokenizer_for
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import cache_folder
from peftbench.ground.machine import process_state
from peftbench.lifecycle.parents import Parent
from peftbench.runner.deltas import reload
from peftbench.runner.run import read_rows
from peftbench.training.evaluation import Evaluator
from peftbench.training.fit import Scores
from peftbench.training.forward import Forward

Head = Literal["kept", "refitted"]  # as its run left it, or fitted anew to the backbone that it reads now
HEADS: dict[str, tuple[Head, ...]] = {"kept": ("kept",), "refit": ("refitted",), "both": ("kept", "refitted")}
RIDGE = 1e-3  # weight of the refitted map's squared entries beside the mean loss: features of few rows are collinear


class TaskModel:
    """A model on the task of a finished run, which reads rows as the run did."""

    def __init__(self, parent: Parent, model: Model, cache: str) -> None:
        """Args:
        parent: the run.
        model: of the run's backbone or another of its shapes, with a head for its task.
        cache: the folder of tokenised rows.
        """
        self.parent, self.task, self.model, self._cache = parent, parent.one_task(), model, cache
        protocol = parent.protocol
        self._forward = Forward(model, protocol.precision, process_state().device)
        self._evaluator = Evaluator(self._forward, self.task, protocol.eval_batch_size)

    @functools.cached_property
    def rows(self) -> dict[str, Split]:
        """Train, held-out rows of train (those of the protocol's own cut), and dev."""
        task = replace(self.task, test=())
        return dict(read_rows(Rows(self.parent.data, task, self.parent.protocol.held_out, tested=False)))

    def tokens(self, split: str, most: int | None = None) -> Tokens:
        """Rows of a split, at most so many, tokenised."""
        return self.tokenized(self.rows[split].some(most))

    def tokenized(self, rows: Split) -> Tokens:
        """Token ids of rows, as the run would read them."""
        model = self.parent.model
        tokenizer = tokenizer_for(model, weights_folder(model))
        return tokenize(rows, tokenizer, self.parent.protocol.max_length, cache_folder(self._cache))

    def predict(self, tokens: Tokens) -> np.ndarray:
        """Logits (rows, labels) with the weights that are in."""
        return self._evaluator.predict(tokens)

    def score(self, tokens: Mapping[str, Tokens], logits: Mapping[str, np.ndarray]) -> Scores:
        """Every metric of these splits."""
        return self._evaluator.score(tokens, logits, 0, 0.0, self.task.headline)

    def headline(self, tokens: Tokens) -> float:
        """The task's plain headline metric on rows of any split, with the weights that are in."""
        scores = self.score({tokens.name: tokens}, {tokens.name: self.predict(tokens)})
        return scores.metrics[f"{self.task.plain_headline}_{tokens.name}"]

    @torch.no_grad()
    def refit(self, tokens: Tokens) -> None:
        """Fit the head's last linear map anew on these rows, the rest as it is.

        Its cross-entropy (squared error for a regression) plus a ridge is convex: L-BFGS from zero, or a closed form,
        in float64. Nothing is drawn.
        """
        last = self.last
        features = torch.zeros(len(tokens), last.in_features, dtype=torch.float64)

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            features[batch.rows] = inputs[0].double().cpu()

        with last.register_forward_pre_hook(keep):
            for batch in self._batches(tokens, self.parent.protocol.eval_batch_size):
                self._forward.logits(batch)
        assert tokens.labels is not None
        solution = fit_head(features, torch.from_numpy(tokens.labels), last.out_features)
        last.weight.copy_(solution[:-1].T)
        if last.bias is not None:
            last.bias.copy_(solution[-1])

    @property
    def last(self) -> nn.Linear:
        """The head's last linear map."""
        modules = self.model.module.named_modules()
        return [module for name, module in modules if isinstance(module, nn.Linear) and self.model.is_head(name)][-1]

    def _batches(self, tokens: Tokens, size: int) -> Iterator[Batch]:
        for rows in evaluation_order(tokens.lengths, size):
            yield self._forward.batch(tokens, rows)


class FoldedModel(TaskModel):
    """A finished run's model, its change folded in, into which other backbones are put.

    Attributes:
        own: the backbone's weights as the run left them, fp32.
    """

    def __init__(self, parent: Parent, cache: str, known: Collection[str] = ()) -> None:
        """Args:
        parent: the run.
        cache: the folder of tokenised rows.
        known: classes outside this package that its delta may name.

        Raises:
            ConfigError: its method is no change of weights (adapters), or its backbone is low-rank.
            DataError: the run cannot be read.
        """
        model, tuner, _ = reload(parent.folder, known)
        if model.ranks:
            raise ConfigError(f"{parent.folder}: its backbone is low-rank; factors are not weights that can be added")
        try:
            tuner.merge()
        except ConfigError as error:
            raise ConfigError(f"{parent.folder}: {error.every[0]}") from None
        model.module.float().requires_grad_(False).eval()
        super().__init__(parent, model, cache)
        self.own = self.weights()
        self._head = {name: parameter.detach().clone() for name, parameter in self.model.head()}

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the backbone's weights, on the CPU in fp32."""
        return backbone_of(self.model)

    @torch.no_grad()
    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Put weights in, what they leave out as the run left it; the head is the run's own."""
        for name, parameter in self.model.backbone():
            parameter.copy_(weights.get(name, self.own[name]))
        for name, parameter in self.model.head():
            parameter.copy_(self._head[name])

    def curvature(self, tokens: Tokens, names: Collection[str]) -> dict[str, torch.Tensor]:
        """The diagonal of the Fisher information of these weights, mean over rows, in fp32 and without dropout.

        Sum over classes y of p(y | x) (d log p(y | x) / d theta)^2; of a regression of unit variance (d y / d theta)^2.
        """
        weights = {name: parameter for name, parameter in self.model.backbone() if name in names}
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in self._batches(tokens, 1):
            outputs = self.model.forward(batch.inputs)[0]
            terms = outputs if self.task.labels is None else functional.log_softmax(outputs, 0)
            shares = torch.ones_like(terms) if self.task.labels is None else terms.detach().exp()
            for term, share in zip(terms, shares, strict=True):
                grads = torch.autograd.grad(term, [*weights.values()], retain_graph=True, allow_unused=True)
                for name, grad in zip(weights, grads, strict=True):
                    if grad is not None:
                        total[name] += share * grad**2 / len(tokens)
        for weight in weights.values():
            weight.requires_grad_(False)
        return {name: one.cpu() for name, one in total.items()}

    @torch.no_grad()
    def input_products(self, tokens: Tokens, names: Collection[str]) -> dict[str, torch.Tensor]:
        """X'X of the inputs of linear maps, (in, in), by the names of their weights: means over tokens, no padding.

        So tasks with long rows weigh no more than others, as in the authors' code.
        """
        products: dict[str, torch.Tensor] = {}
        self._tokens = dict.fromkeys(names, 0)
        hooks = []
        for path, module in self.model.module.named_modules():
            name = f"{path}.weight"
            if isinstance(module, nn.Linear) and name in names:
                products[name] = torch.zeros(module.in_features, module.in_features, dtype=torch.float64)
                hooks.append(
                    module.register_forward_pre_hook(functools.partial(self._add_product, name, products[name]))
                )
        for batch in self._batches(tokens, self.parent.protocol.eval_batch_size):
            self._mask = batch.inputs["attention_mask"].bool()
            self._forward.logits(batch)
        for hook in hooks:
            hook.remove()
        return {name: total / self._tokens[name] for name, total in products.items()}

    @torch.no_grad()
    def token_means(self, tokens: Tokens, modules: Sequence[str] = ()) -> torch.Tensor:
        """Hidden states as means over a row's tokens, padding left out: (rows, places, hidden) fp32, on the CPU.

        Args:
            modules: dotted names of linear maps, whose inputs are read; none: the last hidden layer, one place.
        """
        means: list[list[torch.Tensor]] = []
        base = self.model.module.base_model
        assert isinstance(base, nn.Module)

        def keep(hidden: torch.Tensor) -> None:
            mask = batch.inputs["attention_mask"][..., None].to(hidden.device)
            means[-1].append(((hidden.float() * mask).sum(1) / mask.sum(1)).cpu())

        if modules:
            named = [self.model.module.get_submodule(name) for name in modules]
            hooks = [module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0])) for module in named]
        else:
            hooks = [base.register_forward_hook(lambda _, inputs, outputs: keep(outputs[0]))]
        order = []
        for batch in self._batches(tokens, self.parent.protocol.eval_batch_size):
            means.append([])
            order.append(torch.from_numpy(batch.rows))
            self._forward.logits(batch)
        for hook in hooks:
            hook.remove()
        every = torch.cat([torch.stack(places, 1) for places in means])
        return every[torch.argsort(torch.cat(order))]

    def _add_product(self, name: str, total: torch.Tensor, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        if x.shape[:-1] == self._mask.shape:
            x = x[self._mask]
        x = x.double().reshape(-1, x.shape[-1])
        total += (x.T @ x).cpu()
        self._tokens[name] += len(x)


def backbone_of(model: Model) -> dict[str, torch.Tensor]:
    """A copy of a fresh model's weights, on the CPU in fp32."""
    return {name: parameter.detach().float().cpu().clone() for name, parameter in model.backbone()}


def fit_head(features: torch.Tensor, labels: torch.Tensor, outputs: int) -> torch.Tensor:
    """Weights and, last, biases, (features + 1, outputs) fp64, of a head's regularised fit to its own inputs.

    Args:
        features: what the head reads of every row (rows, features) fp64.
        labels: class ids or, of one output, scores (rows,).
    """
    rows = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    ridge = torch.full((rows.shape[1],), RIDGE, dtype=rows.dtype)
    ridge[-1] = 0
    if outputs == 1:
        gram = rows.T @ rows / len(rows) + torch.diag(ridge)
        return torch.linalg.solve(gram, rows.T @ labels.double()[:, None] / len(rows))
    with torch.enable_grad():
        weights = torch.zeros(rows.shape[1], outputs, dtype=rows.dtype, requires_grad=True)
        steps = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            steps.zero_grad()
            value = functional.cross_entropy(rows @ weights, labels) + (ridge[:, None] * weights**2).sum() / 2
            value.backward()
            return value

        steps.step(loss)
    return weights.detach()
