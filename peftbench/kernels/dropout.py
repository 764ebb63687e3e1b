"""Dropout in one pass over memory: whether an element is kept is a function of a key and of its place.

So nothing need be remembered for the way back, and the result does not depend on the number of threads. An element's
random number is its place and the two halves of the key mixed into 32 bits by multiplications and shifts, as in
C. Wellons, "Prospecting for hash functions" (2018): his triple32, with half of the key before each of the first two
multiplications.
"""

import numba
import numpy as np
import torch

from peftbench.kernels.compiled import as_float, compiled, elements, like, threads


def dropped(x: torch.Tensor, key: int, p: float) -> torch.Tensor:
    """x with every element zero with probability p, or else divided by the probability of being kept.

    Args:
        x: bf16 or fp32, on a CPU.
        key: 64 bits; the same key drops the same elements of every tensor of this number of elements.
        p: met to 2^-17.

    Raises:
        TypeError: x has another precision.
    """
    threshold = min(round(p * 2**16), 2**16 - 1)
    scale = 2**16 / (2**16 - threshold)
    x = x.contiguous()
    out = torch.empty_like(x)
    numbers = (np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32), np.uint32(threshold), np.float32(scale), threads())
    _drop(elements(x), elements(out), *numbers)
    return out


@numba.njit(inline="always")
def _random(place: int, low: np.uint32, high: np.uint32) -> np.uint32:
    x = np.uint32(np.uint32(place) + low)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(17)))
    x = np.uint32(np.uint32(x * np.uint32(0xED5AD4BB)) ^ high)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(11)))
    x = np.uint32(x * np.uint32(0xAC4C1B51))
    x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
    x = np.uint32(x * np.uint32(0x31848BAB))
    return np.uint32(x ^ np.uint32(x >> np.uint32(14)))


ARGUMENTS = "{0}[::1], {0}[::1], uint32, uint32, uint32, float32, int64"


@compiled(f"void({ARGUMENTS.format('uint16')})", f"void({ARGUMENTS.format('float32')})", parallel=True)
def _drop(
    x: np.ndarray, out: np.ndarray, low: np.uint32, high: np.uint32, threshold: np.uint32, scale: np.float32, parts: int
) -> None:
    half, zero = len(x) // 2, np.float32(0)
    first, second, first_out, second_out = x[:half], x[half:], out[:half], out[half:]
    for part in numba.prange(parts):
        start, end = part * half // parts, (part + 1) * half // parts
        a, b, a_out, b_out = first[start:end], second[start:end], first_out[start:end], second_out[start:end]
        for i in range(end - start):  # slices from 0 on, or this is not vectorised
            one, other = like(as_float(a[i]) * scale, a[i]), like(as_float(b[i]) * scale, b[i])
            random, nothing = _random(start + i, low, high), like(zero, a[i])
            a_out[i] = one if np.uint32(random & np.uint32(0xFFFF)) >= threshold else nothing
            b_out[i] = other if np.uint32(random >> np.uint32(16)) >= threshold else nothing
    if half + half < len(x):
        kept = np.uint32(_random(half, low, high) & np.uint32(0xFFFF)) >= threshold
        out[-1] = like(as_float(x[-1]) * scale if kept else zero, x[-1])
