"""How fast this machine multiplies matrices in bf16: the rate that every other time is read beside.

python scripts/products.py     prints GFLOP/s of 2048 x 384 by 384 x 1536, over and over, for about half a second
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch

from peftbench.kernels.products import widen_products

TOKENS, HIDDEN, INNER = 2048, 384, 1536  # MiniLM's feed-forward map, of 32 rows of 64 tokens
REPEATS, ROUNDS = 5, 9


def rate() -> float:
    """GFLOP/s of one product whose operands do not change, as our runs multiply them: the median of some rounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        widen_products()
    one, other = (torch.randn(*size, device=device).bfloat16() for size in ((TOKENS, HIDDEN), (HIDDEN, INNER)))
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(REPEATS):
            one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(REPEATS * 2 * TOKENS * HIDDEN * INNER / (time.perf_counter() - started) / 1e9)
    return round(statistics.median(rates[1:]), 1)


def products(
    maps: Sequence[tuple[int, int, int]], attention: Sequence[tuple[int, int, int, int]], passes: int, device: Any
) -> Callable[[], None]:
    """All products of one step and nothing else, every one with operands of its own in bf16.

    Args:
        maps: (tokens, in, out) of the linear maps: y = x W^T, dx = dy W, and with three passes dW = dy^T x.
        attention: (batch, n, k, m) of its products, which are three in any case: c = a b, da = dc b^T, db = a^T dc.
    """

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device=device).bfloat16()

    linear = [(drawn(tokens, width), drawn(out, width), drawn(tokens, out)) for tokens, width, out in maps]
    batched = [(drawn(b, n, k), drawn(b, k, m), drawn(b, n, m)) for b, n, k, m in attention]

    def run() -> None:
        for x, weight, _ in linear:
            x @ weight.t()
        for a, b, _ in batched:
            a @ b
        for x, weight, dy in linear:
            dy @ weight
            if passes == 3:
                dy.t() @ x
        for a, b, dc in batched:
            dc @ b.transpose(1, 2)
            a.transpose(1, 2) @ dc

    return run


if __name__ == "__main__":
    print(json.dumps(rate()))
