"""What the kernels share. numba does not see a change here in what it has compiled before: touch the kernels' files."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from peftbench.device import give_back_pages


def compiled(signature: str, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Decorate a loop: its code is kept beside its file or in numba's cache, where either can be written.

    LLVM's own memory, 65 MB, is given back once the code is there. numba starts its threads meanwhile; where these are
    OpenMP's, it sets the number for all who use it, so torch's is set again.
    """

    def compile_once(function: Callable[..., None]) -> Any:
        count = torch.get_num_threads()
        try:
            made = numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:
            made = numba.njit(signature, **options)(function)
        torch.set_num_threads(count)
        give_back_pages("libllvmlite.so")
        return made

    return compile_once


@numba.njit(inline="always")
def as_float(word: np.uint16) -> np.float32:
    """A bf16 is the upper half of the fp32 of the same value."""
    return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)


@numba.njit(inline="always")
def as_bf16(value: np.float32) -> np.uint16:
    """The nearest bf16, the even one of two; what is not a number remains so."""
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


def words(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a bf16 tensor."""
    found: np.ndarray = tensor.view(torch.uint16).numpy()
    return found


def threads() -> int:
    """As many as torch uses, for the next call of a kernel that shares its work out."""
    count = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    return int(count)
