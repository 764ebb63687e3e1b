"""AdamW for one flat parameter of chosen entries: some decay and some do not, and each has an age of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ValuesAdamW(torch.optim.AdamW):
    """AdamW that leaves the decay of one flat parameter to somebody who knows which of its entries may.

    Args:
        groups: parameter groups, as for AdamW; one of them holds `values`.
        values: the flat parameter.
        decay: called with the step's learning rate before it, to decay `values`; None: its group decays as a whole.
    """

    def __init__(
        self, groups: Any, values: nn.Parameter, decay: Callable[[float], None] | None, **settings: Any
    ) -> None:
        super().__init__(groups, **settings)
        self._values, self._decay = values, decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Decay what may, then step as AdamW does."""
        if self._decay is not None:
            self._decay(float(self._group()["lr"]))
        return super().step(closure)

    def _group(self) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(p is self._values for p in group["params"]))


class EntryAdamW(ValuesAdamW):
    """AdamW that treats one flat parameter entry by entry.

    With one shared step counter, an entry that joins late has zero moments and a bias correction of about 1: its
    first updates reach 4 times the learning rate. Here entry i, in its n-th step, is corrected by 1 - beta^n.

    Args:
        groups, values, decay: see `ValuesAdamW`.
        ages: gives, per entry, how many steps it has been trained for, the present one included (at least 1).
    """

    def __init__(
        self,
        groups: Any,
        values: nn.Parameter,
        ages: Callable[[], torch.Tensor],
        decay: Callable[[float], None] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(groups, values, decay, **settings)
        self._ages = ages

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step the other parameters as AdamW does, then the flat one."""
        gradient, self._values.grad = self._values.grad, None  # AdamW skips what has no gradient
        result = super().step(closure)
        self._values.grad = gradient
        if gradient is None:
            return result
        group = self._group()
        (beta1, beta2), lr = group["betas"], group["lr"]
        state = self.state[self._values]
        if not state:
            state["step"] = torch.zeros(())  # not used here: torch asks for it when a state is loaded
            state["exp_avg"] = torch.zeros_like(self._values)
            state["exp_avg_sq"] = torch.zeros_like(self._values)
        mean, square, age = state["exp_avg"], state["exp_avg_sq"], self._ages().to(gradient.dtype)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        bottom = (square / (1 - beta2**age)).sqrt_().add_(group["eps"])
        self._values.mul_(1 - lr * group["weight_decay"])
        self._values.addcdiv_(mean / (1 - beta1**age), bottom, value=-lr)
        return result
