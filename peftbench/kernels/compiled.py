"""What the kernels share. numba does not see a change here in what it has compiled before: touch the kernels' files."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import overload

from peftbench.ground.files import private_folder

CACHE = "~/.cache/peftbench"  # unless NUMBA_CACHE_DIR names another folder


def compiled(*signatures: str, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Decorate a loop: its code is kept for the next process, in a folder that nobody but us may write.

    LLVM's own memory, 65 MB, is given back once the code is there. numba starts its threads meanwhile; where these are
    OpenMP's, it sets the number for all who use it, so torch's is set again.
    """

    def compile_once(function: Callable[..., None]) -> Any:
        count = torch.get_num_threads()
        made = _kept(function, signatures, options)
        torch.set_num_threads(count)
        return made

    return compile_once


def _kept(function: Callable[..., None], signatures: Sequence[str], options: Mapping[str, Any]) -> Any:
    """The compiled loop, from the folder of kept code where it can be; what is damaged there is compiled again.

    What numba keeps is a pickle, and so code of whoever can write it.
    """
    set_before = numba.config.CACHE_DIR
    try:
        folder = private_folder(Path(set_before or CACHE).expanduser() / f"kernels-{os.geteuid()}")
        numba.config.CACHE_DIR = str(folder)
        try:
            return numba.njit(list(signatures), cache=True, **options)(function)
        except Exception:  # a pickle that is damaged raises anything
            for path in folder.rglob("*.nb?"):
                path.unlink(missing_ok=True)
        return numba.njit(list(signatures), cache=True, **options)(function)
    except (OSError, RuntimeError):  # no home, nobody's folder or somebody else's, no room
        return numba.njit(list(signatures), **options)(function)
    finally:
        numba.config.CACHE_DIR = set_before


def as_float(word: Any) -> np.float32:
    """In a kernel: the value of a bf16, the upper half of the fp32 of the same value, or an fp32 itself."""
    raise TypeError("as_float is for kernels: numba compiles what stands below")


def like(value: np.float32, word: Any) -> Any:
    """In a kernel: the nearest bf16, the even one of two, where `word` is one; or the fp32 itself."""
    raise TypeError("like is for kernels: numba compiles what stands below")


@overload(as_float, inline="always", strict=False)
def _as_float(word: Any) -> Callable[..., Any]:
    if word == numba.uint16:
        return lambda word: np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)
    return lambda word: word


@overload(like, inline="always", strict=False)
def _like(value: Any, word: Any) -> Callable[..., Any]:
    def nearest(value: np.float32, word: np.uint16) -> np.uint16:
        bits = np.float32(value).view(np.uint32)  # what is not a number remains so
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return nearest if word == numba.uint16 else lambda value, word: value


def elements(tensor: torch.Tensor) -> np.ndarray:
    """The elements of a contiguous tensor in one row: fp32 as they are, bf16 as their bits.

    Raises:
        TypeError: it has another precision.
    """
    if tensor.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"{tensor.dtype}: kernels take bf16 and fp32 only")
    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.reshape(-1)


def threads() -> int:
    """As many as torch uses, for the next call of a kernel that shares its work out."""
    number = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(number)
    return int(number)
