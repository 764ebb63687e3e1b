"""What a log line says: loss, penalty, speed and gradient norm since the last one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from peftbench.data.batches import Batch
from peftbench.ground.errors import Diverged
from peftbench.ground.machine import settled_clock
from peftbench.training.fit import Fit


class Meter:
    """Sums of what happened since the last log line.

    Attributes:
        norm: norm of the last step's gradients before they were clipped.
    """

    def __init__(self, fit: Fit, device: torch.device) -> None:
        """`fit` gets the tokens that were computed."""
        self._fit, self._device = fit, device
        self._losses, self._penalties = torch.zeros((), device=device), torch.zeros((), device=device)
        self._parts: dict[str, torch.Tensor] = {}
        self._penalised = False
        self._since, self._logged_at, self._seen_tokens = settled_clock(self._device), 0, 0
        self.norm = torch.zeros(())

    def saw(self, batch: Batch) -> None:
        """A batch is trained on."""
        real = int(batch.split.lengths[batch.rows].sum())
        self._fit.tokens += real
        self._fit.padded += batch.inputs["input_ids"].numel() - real

    def add(self, loss: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> None:
        """A part of a step's loss, and what it is made of by name, as a share of the whole batch."""
        self._losses += loss.detach()
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + value

    def add_penalty(self, penalty: torch.Tensor) -> None:
        """A step's penalty."""
        self._penalties += penalty.detach()
        self._penalised = True

    def restart(self) -> None:
        """Seconds until now are no training."""
        self._since = settled_clock(self._device)

    def facts(self, step: int, lr: float, total: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means per step since the last call; the sums start anew.

        Args:
            step: optimizer steps done.
            lr: the learning rate of the last one.
            total: sums over processes.

        Raises:
            Diverged: the loss is not finite.
        """
        count = step - self._logged_at
        loss = total(self._losses).item() / count
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} after step {step}")
        seconds = max(settled_clock(self._device) - self._since, 1e-9)
        facts = {
            "loss": loss,
            **{name: total(value).item() / count for name, value in self._parts.items()},
            "lr": lr,
            "grad_norm": float(self.norm),
            "tokens_per_s": (self._fit.tokens - self._seen_tokens) / seconds,
        }
        if self._penalised:
            facts["penalty"] = self._penalties.item() / count
        self._losses.zero_()
        self._parts = {}
        self._penalties.zero_()
        self._since, self._logged_at, self._seen_tokens = settled_clock(self._device), step, self._fit.tokens
        return facts

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        sums = {"losses": self._losses, "penalties": self._penalties, "norm": self.norm, "parts": self._parts}
        return {**sums, "penalised": self._penalised, "logged_at": self._logged_at, "tokens": self._seen_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self._losses, self._penalties = (state[key].to(self._losses.device) for key in ("losses", "penalties"))
        self._parts = {name: value.to(self._losses.device) for name, value in state.get("parts", {}).items()}
        self.norm, self._penalised = state["norm"], state["penalised"]
        self._logged_at, self._seen_tokens = state["logged_at"], state["tokens"]
