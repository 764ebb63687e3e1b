"""Gradients at chosen entries, with as little of the dense gradient as possible.

Two routes. *Sampled*: for a linear map y = W x the gradient at (i, j) is the sum over tokens of dY[t, i] X[t, j];
autograd keeps X and shows it beside dY, and W itself needs no gradient. *Dense*: autograd makes the whole gradient of
one tensor, a hook takes what is chosen and frees it before the next tensor's arrives.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Share of a matrix's entries above which one dense product beats sampling; measured by scripts/bench_selective.py
# on a CPU: 0.0037 to 0.0065 in bf16 with matrix instructions, 0.003 to 0.005 in fp32.
DENSE_ABOVE = 0.004
TOKENS = 2048  # sampled at a time: what is picked is copied, and the copies of all tokens would not fit a cache

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Receive = Callable[[torch.Tensor], None]
Index = Callable[[], torch.Tensor]


def sampled(x: torch.Tensor, dy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """sum_t dy[t, index // in] * x[t, index % in], in fp32.

    Args:
        x: (tokens, in), input of the linear map; it is rounded to dy's precision, as the map itself does.
        dy: (tokens, out), gradient of its output.
        index: (n,) int32, flat positions of the chosen entries in the weight (out, in).
    """
    return _route(dy)(x.to(dy.dtype), dy, index)


def _route(output: torch.Tensor) -> Product:
    """The sampled product for a linear map whose output is like this one."""
    if output.dtype == torch.bfloat16 and output.device.type == "cpu":
        from peftbench.kernels.sampled import sampled_bf16  # numba and its kernel take half a second

        return sampled_bf16
    return _gathered


def _gathered(x: torch.Tensor, dy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(index.numel(), device=x.device)
    rows, columns = (index // x.shape[1]).long(), (index % x.shape[1]).long()
    for some_dy, some_x in zip(dy.split(TOKENS), x.split(TOKENS), strict=True):
        left = some_dy.gather(1, rows.expand(len(some_dy), -1))
        right = some_x.gather(1, columns.expand(len(some_x), -1))
        total += (left.float() * right).sum(0)
    return total


def dense(x: torch.Tensor, dy: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The same numbers, gathered from the dense product dy^T x."""
    return (dy.t() @ x.to(dy.dtype)).view(-1)[index].float()


def watch_weight(module: nn.Module, index: Index, receive: Receive) -> RemovableHandle:
    """Call `receive` with the gradient at the chosen entries of a linear map's weight, once per use in a pass.

    Args:
        module: the linear map; its weight needs no gradient and its forward is left as it is.
        index: gives the flat positions (n,) int32 of the chosen entries; asked anew each time, so that nothing is
            kept beside the store's positions.
        receive: gets their gradient (n,) fp32.
    """

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return output
        x = inputs[0].detach()
        # chosen now: a kernel is then loaded before the other layers fill the memory
        product = dense if index().numel() > DENSE_ABOVE * x.shape[-1] * output.shape[-1] else _route(output)

        def show(dy: torch.Tensor, x: torch.Tensor) -> None:
            receive(product(x.flatten(0, -2).to(dy.dtype), dy.flatten(0, -2), index()))

        return _watched(output, show, x)

    return module.register_forward_hook(hook)


def watch_bias(module: nn.Module, index: Index, receive: Receive) -> RemovableHandle:
    """The same for a linear map's bias: sum_t dy[t, index], in fp32."""

    def show(dy: torch.Tensor) -> None:
        receive(dy.flatten(0, -2)[:, index()].float().sum(0))

    def hook(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return _watched(output, show) if torch.is_grad_enabled() else output

    return module.register_forward_hook(hook)


def _watched(output: torch.Tensor, show: Callable[..., None], *others: torch.Tensor) -> torch.Tensor:
    """What a map gives in a pass, whose gradient is shown."""
    if not output.requires_grad:
        output.requires_grad_(True)  # nothing below trains, and yet this map's own gradient is wanted
    watched: torch.Tensor = _Watched.apply(output, show, *others)
    return watched


class _Watched(torch.autograd.Function):
    """A tensor as it is; its gradient is shown on the way back, with others that autograd keeps until then."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, show: Callable[..., None], *others: torch.Tensor) -> torch.Tensor:
        """(...) -> the same."""
        context.show = show
        context.save_for_backward(*others)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient as it comes."""
        others = context.saved_tensors
        context.show(gradients[0], *others)
        return gradients[0], None, *(None for _ in others)


def watch_dense(parameter: nn.Parameter, receive: Receive, hold: Callable[[], bool]) -> RemovableHandle:
    """Call `receive` with a parameter's whole gradient as soon as a backward pass has made it, then free it.

    While `hold()` is true the gradient stays and accumulates: a score needs the sum over the parts of a batch.
    """
    parameter.requires_grad_(True)

    def hook(made: torch.Tensor) -> None:
        if hold():
            return
        assert made.grad is not None
        receive(made.grad)
        made.grad = None

    return parameter.register_post_accumulate_grad_hook(hook)
