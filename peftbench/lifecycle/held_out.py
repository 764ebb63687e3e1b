"""How far a change of the backbone goes, and how much of it is kept: given, or chosen on held-out rows of train.

Never on dev. The best has the highest mean over tasks of each one's plain headline metric with kept heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from peftbench.config.bounds import Count, Positive
from peftbench.lifecycle.parents import Parent

HELD_OUT = "held_out"


@dataclass(frozen=True)
class Scaled:
    """Keys of a change that is added to a backbone `scale` times; units and sources stand in conf/merge and conf/port.

    Attributes:
        scale: times the change; held_out: the best of `grid`.
        choose_rows: held-out rows of each task that choose, at most.
    """

    scale: Positive | Literal["held_out"]
    grid: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=100)]
    choose_rows: Count

    @property
    def scales(self) -> tuple[float, ...]:
        """Those that are possible."""
        return self.grid if isinstance(self.scale, str) else (self.scale,)


@dataclass(frozen=True, order=True)
class Setting:
    """One that is tried; `keep`: the share of entries that a merge keeps, where one is tried."""

    scale: float
    keep: float | None = None

    def __str__(self) -> str:
        return f"{self.scale:g}" + ("" if self.keep is None else f", keep {self.keep:g}")


Tried = Mapping[Setting, Mapping[str, float]]  # by task, its headline


def best(tried: Tried) -> Setting:
    """The best of what was tried; of equal ones that of the smallest scale, then of the smallest share."""
    return min(tried, key=lambda setting: (-float(np.mean([*tried[setting].values()])), setting))


def facts(tried: Tried, rows: int, runs: Sequence[Parent]) -> dict[str, Any]:
    """What a record says of a choice: every score, on which rows, and which of the runs trained on these, too.

    Args:
        rows: of each task, at most.
    """
    trained_on = [one.record.cell.task for one in runs if one.protocol.selection != HELD_OUT]
    where = f"held-out rows of train, {rows} a task at most"
    return {
        "tried": {str(setting): dict(by_task) for setting, by_task in tried.items()},
        "chosen_on": {"rows": where, "runs_that_trained_on_them": trained_on},
    }
