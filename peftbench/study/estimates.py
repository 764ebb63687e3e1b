"""What cells may take, by what others took: an order in which the longest come first, and the time that is left."""

import statistics
from collections.abc import Iterable

from peftbench.study.index import kind_of


class Estimates:
    """The median of finished cells that are most alike: but for the seed, else of the task and the method, else of the
    task, else of all."""

    def __init__(self, took: Iterable[tuple[str, float]]) -> None:
        """Args:
        took: folder and seconds of every finished cell.
        """
        known: dict[tuple[str, ...], list[float]] = {}
        for folder, seconds in took:
            for likeness in _likenesses(folder):
                known.setdefault(likeness, []).append(seconds)
        self._medians = {likeness: statistics.median(values) for likeness, values in known.items()}

    def seconds(self, folder: str) -> float | None:
        """What a cell may take; None: nothing is known."""
        return next((self._medians[one] for one in _likenesses(folder) if one in self._medians), None)

    def total(self, folders: Iterable[str]) -> float | None:
        """What so many cells may take together, one after the other; None: nothing is known."""
        estimates = list(map(self.seconds, folders))
        return None if None in estimates else sum(one for one in estimates if one is not None)


def _likenesses(folder: str) -> list[tuple[str, ...]]:
    """What a cell has in common with others, the closest first; its folder begins with task and method."""
    words = kind_of(folder).split("-")
    return list(dict.fromkeys([tuple(words), tuple(words[:2]), tuple(words[:1]), ()]))
