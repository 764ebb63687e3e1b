"""How many entries a growing selection holds after each step."""

import math
from fractions import Fraction
from typing import Literal

Shape = Literal["uniform", "cosine", "front"]


def unmasked(budget: int, steps: int, done: int, shape: Shape = "uniform", every: int = 1) -> int:
    """Entries chosen once `done` of `steps` steps are done; exactly the budget from the last on.

    uniform: round(budget * t / steps), the paper's. cosine: slow at both ends, budget * (1 - cos(pi t / steps)) / 2.
    front: early, budget * (1 - (1 - t / steps)^2). `every` lets the number change only at its multiples.
    """
    if done >= steps:
        return budget
    t = done - done % every
    if shape == "uniform":
        return round(Fraction(budget * t, steps))
    share = (1 - math.cos(math.pi * t / steps)) / 2 if shape == "cosine" else 1 - (1 - t / steps) ** 2
    return min(budget, round(budget * share))
