"""Distillation of hidden states: low-rank maps are trained until the backbone computes what the whole one does."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from peftbench.backbone.low_rank import LowRankLinear
from peftbench.backbone.model import Model
from peftbench.config.recipes import LowRank
from peftbench.config.spec import Protocol
from peftbench.data.batches import Batch, evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError
from peftbench.training import on_text
from peftbench.training.forward import Forward


class Distillation:
    """A student with low-rank maps beside its teacher, which has the whole ones, is frozen and never drops anything.

    The loss is kappa * (mean over hidden states of the mean squared difference, padding left out) + lambda * residual,
    where residual is the mean over low-rank maps of (max |W2 W1 - W| - epsilon)^2 (section 3 of the paper).
    The layers' parameters train; embeddings, pooler and head are the teacher's own.
    """

    def __init__(
        self, student: Model, teacher: Model, recipe: LowRank, protocol: Protocol, device: torch.device
    ) -> None:
        self.student, self.teacher, self.recipe, self.protocol = student, teacher, recipe, protocol
        self._forward = Forward(student, protocol.precision, device)
        teacher.module.to(device).requires_grad_(False)
        for model in (student, teacher):
            model.module.eval()  # the student, too: it could not learn what dropout adds
        layers = {name: p for name, p in student.backbone() if student.place(name).layer is not None}
        student.module.requires_grad_(False)
        self._trained = {name: p.requires_grad_(True) for name, p in layers.items()}
        whole = dict(teacher.module.named_parameters())
        maps = student.module.named_modules()
        self._maps = [(m, whole[f"{name}.weight"]) for name, m in maps if isinstance(m, LowRankLinear)]

    def run(self, tokens: Tokens, seed: int) -> None:
        """Train for the recipe's steps on these rows, in the order of the seed's stream, again and again.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        recipe = self.recipe
        optimizer = on_text.adamw(self._trained, recipe.lr, recipe.weight_decay)
        for step, rows in zip(range(recipe.steps), on_text.endless(tokens, self.protocol, seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = self._rate(step)
            loss = recipe.distil_weight * self.difference(self._forward.batch(tokens, rows))
            if recipe.residual_weight:
                loss = loss + recipe.residual_weight * self.residual()
            if not math.isfinite(float(loss.detach())):
                raise ConfigError(f"make.lr={recipe.lr:g}: the distillation diverged at step {step}")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def difference(self, batch: Batch) -> torch.Tensor:
        """Mean squared difference of student's and teacher's hidden states, over tokens and states: a scalar, fp32."""
        with torch.no_grad():
            wanted = self._states(self.teacher, batch)
        kept = batch.inputs["attention_mask"].bool()
        pairs = zip(self._states(self.student, batch), wanted, strict=True)
        return torch.stack(
            [(ours[kept].float() - theirs[kept].float()).square().mean() for ours, theirs in pairs]
        ).mean()

    def residual(self) -> torch.Tensor:
        """Mean over low-rank maps of (max |W2 W1 - W| - epsilon)^2: a scalar."""
        margin = self.recipe.residual_margin
        parts = [((m.product() - weight).abs().max() - margin).square() for m, weight in self._maps]
        return torch.stack(parts).mean()

    @torch.no_grad()
    def loss(self, tokens: Tokens) -> float:
        """`difference` over all rows, each batch by its number of tokens."""
        total = 0.0
        for rows in evaluation_order(tokens.lengths, self.protocol.eval_batch_size):
            total += float(self.difference(self._forward.batch(tokens, rows))) * int(tokens.lengths[rows].sum())
        return total / int(tokens.lengths.sum())

    def _states(self, model: Model, batch: Batch) -> Sequence[torch.Tensor]:
        """Embedding output and every layer's, each (rows, tokens, hidden)."""
        base: nn.Module = model.module.base_model  # type: ignore[assignment]
        with self._forward.autocast():
            states: Sequence[torch.Tensor] = base(**batch.inputs, output_hidden_states=True).hidden_states
        return states

    def _rate(self, step: int) -> float:
        first, last = self.recipe.lr, self.recipe.last_lr
        return last + (first - last) * (1 + math.cos(math.pi * step / self.recipe.steps)) / 2
