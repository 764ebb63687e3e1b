"""Masked-LM training: some tokens of a text are hidden, and the head guesses them (BERT, Devlin et al. 2019)."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model
from peftbench.config.recipes import MaskedLM
from peftbench.config.spec import Protocol
from peftbench.data.batches import evaluation_order
from peftbench.data.tokens import Tokens
from peftbench.ground.errors import ConfigError
from peftbench.ground.seeds import stream
from peftbench.training import on_text
from peftbench.training.forward import Forward
from peftbench.training.optimization import lr_factor

CLIP = 1.0  # of the gradients' norm, as in the protocol
EVALUATED = 0  # number of the draw of masks with which held-out text is measured; steps count from 1


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs of a tokenizer: the mask's id, the ids that are never hidden, and how many ids there are."""

    mask: int
    special: Collection[int]
    size: int


class MaskedLoss:
    """The mean cross entropy over hidden tokens of a model with a whole masked-LM head, which runs on these alone."""

    def __init__(self, model: Model, vocabulary: Vocabulary, share: float, forward: Forward) -> None:
        """Args:
        share: of the tokens that are hidden.
        """
        self.model, self._vocabulary, self._share, self._forward = model, vocabulary, share, forward
        self._hidden: torch.Tensor | None = None
        decoder = model.module.get_output_embeddings()  # type: ignore[operator]
        decoder.register_forward_pre_hook(self._at_hidden)

    def of(self, tokens: Tokens, rows: np.ndarray, draw: tuple[int, int]) -> torch.Tensor:
        """The loss of these rows, of which `draw` decides what is hidden: a scalar."""
        batch = self._forward.batch(tokens, rows)
        ids = batch.inputs["input_ids"]
        shown, hidden = hide(ids.cpu().numpy(), self._vocabulary, self._share, draw)
        self._hidden = torch.from_numpy(hidden).to(ids.device)
        batch.inputs["input_ids"] = torch.from_numpy(shown).to(ids.device)
        with self._forward.autocast():
            logits = self.model.module(**batch.inputs).logits
        return functional.cross_entropy(logits.float(), ids[self._hidden])

    @torch.no_grad()
    def held_out(self, tokens: Tokens, size: int) -> float:
        """The loss on rows that no step sees, without dropout, mean over batches of `size` rows; the same tokens are
        hidden every time."""
        self.model.module.eval()
        batches = enumerate(evaluation_order(tokens.lengths, size))
        return float(np.mean([float(self.of(tokens, rows, (stream(i, "mask"), EVALUATED))) for i, rows in batches]))

    def _at_hidden(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Of the states (rows, tokens, hidden) that reach the head's last map those of hidden tokens (n, hidden)."""
        return (arguments[0][self._hidden],)


class MaskedTraining:
    """A model with a whole masked-LM head, and text."""

    def __init__(
        self, model: Model, vocabulary: Vocabulary, recipe: MaskedLM, protocol: Protocol, device: torch.device
    ) -> None:
        self.model, self.recipe, self.protocol = model, recipe, protocol
        self.loss = MaskedLoss(model, vocabulary, recipe.masked, Forward(model, protocol.precision, device))
        trained = model.head() if recipe.head_only else model.module.named_parameters()
        model.module.requires_grad_(False)
        self._trained = {name: p.requires_grad_(True) for name, p in trained}

    def run(self, tokens: Tokens, seed: int) -> None:
        """Train for the recipe's steps on these rows, in the order of the seed's stream, again and again.

        Raises:
            ConfigError: the loss is no longer a finite number.
        """
        recipe = self.recipe
        optimizer = on_text.adamw(self._trained, recipe.lr, recipe.weight_decay)
        self.model.noise.seed(stream(seed, "dropout"))
        torch.manual_seed(stream(seed, "dropout"))
        self.model.module.train()
        for step, rows in zip(range(recipe.steps), on_text.endless(tokens, self.protocol, seed), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * lr_factor(step, recipe.steps, recipe.warmup, "linear")
            loss = self.loss.of(tokens, rows, (stream(seed, "mask"), step + 1))
            if not math.isfinite(float(loss.detach())):
                raise ConfigError(f"make.lr={recipe.lr:g}: the training diverged at step {step}")
            loss.backward()
            nn.utils.clip_grad_norm_(self._trained.values(), CLIP)
            optimizer.step()
            optimizer.zero_grad()

    def held_out_loss(self, tokens: Tokens) -> float:
        """The loss on rows that no step sees: see `MaskedLoss.held_out`."""
        return self.loss.held_out(tokens, self.protocol.eval_batch_size)


def hide(ids: np.ndarray, vocabulary: Vocabulary, share: float, draw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as the model sees them, and which of them it is to guess: (rows, tokens) int64 and bool.

    Of each token that is hidden (a share of them, one at least; no special token) the model sees the mask with 80%,
    any token with 10%, itself with 10%.
    """
    random = np.random.default_rng(draw)
    possible = ~np.isin(ids, list(vocabulary.special))
    numbers = np.where(possible, random.random(ids.shape), 2.0)
    hidden = numbers < share
    hidden.flat[int(numbers.argmin())] = True
    shown, fate = ids.copy(), random.random(ids.shape)
    shown[hidden & (fate < 0.8)] = vocabulary.mask
    others = random.integers(0, vocabulary.size, ids.shape)
    replaced = hidden & (fate >= 0.9)
    shown[replaced] = others[replaced]
    return shown, hidden
