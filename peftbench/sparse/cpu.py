"""The sampled gradient in bf16 on a CPU, compiled by numba: about a third of the time of torch's gathers.

Importing this module loads the kernel, half a second and some memory: LLVM's own, 65 MB, is given back at once.
"""

import ctypes
import mmap
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

SIGNATURE = "void(uint16[:, ::1], uint16[:, ::1], int64[::1], int64[::1], float32[::1], int64)"
TOGETHER = 16  # tokens whose rows stay in the cache while every entry takes its products from them


def sampled_bf16(x: torch.Tensor, dy: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """As `gradients.sampled`; x and dy are bf16 and on a CPU.

    Every entry is summed in fp32 over tokens in their order, whatever the number of threads.
    """
    out = np.empty(rows.numel(), dtype=np.float32)
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    _sum_over_tokens(_words(x), _words(dy), rows.contiguous().numpy(), columns.contiguous().numpy(), out, threads)
    return torch.from_numpy(out)


def _words(tensor: torch.Tensor) -> np.ndarray:
    words: np.ndarray = tensor.contiguous().view(torch.uint16).numpy()
    return words


def _compiled(function: Callable[..., None]) -> Any:
    """Compiled once per machine: the code is kept beside this file or in numba's cache, where either can be written."""
    try:
        return numba.njit(SIGNATURE, parallel=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(SIGNATURE, parallel=True)(function)


@numba.njit(inline="always")
def _float(word: np.uint16) -> np.float32:
    """A bf16 is the upper half of the fp32 of the same value."""
    return np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)


@_compiled
def _sum_over_tokens(
    x: np.ndarray, dy: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: np.ndarray, parts: int
) -> None:
    tokens, count = len(x), len(rows)
    whole = tokens - tokens % TOGETHER
    for part in numba.prange(parts):
        first, last = part * count // parts, (part + 1) * count // parts
        row, column = rows[first:last], columns[first:last]
        total = np.zeros(last - first, dtype=np.float32)
        for start in range(0, whole, TOGETHER):
            for k in range(last - first):
                i, j = row[k], column[k]
                even, odd = np.float32(0), np.float32(0)
                for t in range(start, start + TOGETHER, 2):
                    even += _float(x[t, j]) * _float(dy[t, i])
                    odd += _float(x[t + 1, j]) * _float(dy[t + 1, i])
                total[k] += even + odd
        for t in range(whole, tokens):
            for k in range(last - first):
                total[k] += _float(x[t, column[k]]) * _float(dy[t, row[k]])
        out[first:last] = total


def _give_back_pages(library: str) -> None:
    """Take what was only read of a shared library out of this process's memory; what is called again is read again."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        return
    advise = ctypes.CDLL(None).madvise
    for first, end, facts in re.findall(rf"^(\w+)-(\w+) .*{library}\n((?:\w+:.*\n)*)", maps.read_text(), re.MULTILINE):
        if re.search(r"^Private_Dirty: +0 kB", facts, re.MULTILINE):
            advise(ctypes.c_void_p(int(first, 16)), ctypes.c_size_t(int(end, 16) - int(first, 16)), mmap.MADV_DONTNEED)


_give_back_pages("libllvmlite.so")
