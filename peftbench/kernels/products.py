"""bf16 products on a CPU that has no instructions for them: in fp32, of the same operands.

torch multiplies bf16 there four (AVX-512) to eight times (AVX2) as slowly as fp32. Instructions for bf16 sum in fp32
and round once at the end, and so do these products.
"""

import platform
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")  # what every linear map and every product of attention comes down to


@cache
def widen_products() -> None:
    """Let torch multiply bf16 in fp32 in this process, where that is faster: on a CPU without bf16 instructions."""
    if multiplies_bf16():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel of torch's is replaced is what we want
        for name in PRODUCTS:
            _LIBRARY.impl(name, _widened(f"aten::{name}"), "CPU", with_keyset=True, allow_override=True)


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN calls bf16 supported on all of AVX-512, where it widens blocks by itself: four times as slow as fp32
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_LIBRARY = torch.library.Library("aten", "IMPL")  # its kernels are in force as long as it lives


def _widened(name: str) -> Callable[..., torch.Tensor]:
    own = torch.library.get_kernel(name, "CPU")

    def product(keys: torch.DispatchKeySet, *args: Any, **scales: Any) -> torch.Tensor:
        if any(tensor.dtype != torch.bfloat16 for tensor in args):  # torch refuses what is of several
            return own.call_boxed(keys, *args, **scales)
        return own.call_boxed(keys, *(tensor.float() for tensor in args), **scales).bfloat16()

    return product
