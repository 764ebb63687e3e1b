"""The learning rate, chosen before a cell runs: the tries are ordinary cells, kept in a study of their own."""

import math
import time
from collections.abc import Callable

from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.record import SEARCH_SUFFIX, Record, Search


def rates(cell: Cell) -> list[float]:
    """The learning rates to try, rising; none where nothing is searched."""
    return sorted({float(f"{cell.protocol.lr * factor:.6g}") for factor in cell.select.factors or ()})


def tries(cell: Cell) -> list[list[str]]:
    """For every learning rate, the overrides that turn the cell's own into that try's, from the smallest rate on."""
    return [[*of_every_try(cell), f"protocol.lr={rate}"] for rate in rates(cell)]


def of_every_try(cell: Cell) -> list[str]:
    """The overrides that turn the cell's own into any try's."""
    fixed = [
        "select.factors=null",
        "select.trials=null",
        f"seed={cell.select.seed}",
        f"study={cell.study}{SEARCH_SUFFIX}",
        f"protocol.selection={'best_dev' if cell.select.rows == 'dev' else 'held_out'}",
        "predict_test=false",
    ]
    if cell.select.max_steps is not None:
        fixed.append(f"protocol.max_steps={cell.select.max_steps}")
    return fixed


def try_rates(cell: Cell, run_try: Callable[[list[str]], tuple[Record, str] | None]) -> Search:
    """Run every try that has no record yet, and choose. Those that another runner has are waited for at the end.

    Args:
        cell: the cell whose learning rate is wanted; `cell.select.factors` is not None.
        run_try: runs a try by its overrides, or finds its record; gives the record and its folder, or None where
            another runner has it.

    Raises:
        ConfigError: no try has a score.
    """
    left = dict(zip(rates(cell), tries(cell), strict=True))
    tried: dict[float, tuple[Record, str]] = {}
    while left:
        before = len(tried)
        tried |= {rate: done for rate, words in left.items() if (done := run_try(words)) is not None}
        left = {rate: words for rate, words in left.items() if rate not in tried}
        if left and len(tried) == before:
            time.sleep(1)
    results = [(rate, *tried[rate]) for rate in rates(cell)]
    scores = {rate: score(record, last=cell.protocol.selection == "last") for rate, record, _ in results}
    known = {rate: value for rate, value in scores.items() if value is not None}
    if not known:
        raise ConfigError(f"select: none of the learning rates {[rate for rate, _, _ in results]} has a score")
    return Search(
        chosen=max(known, key=lambda rate: (known[rate], -abs(math.log(rate / cell.protocol.lr)))),
        rows=cell.select.rows,
        scores={f"{rate:g}": value for rate, value in scores.items()},
        folders=[folder for _, _, folder in results],
        seconds=round(math.fsum(record.time.total_s for _, record, _ in results), 3),
    )


def score(record: Record, last: bool) -> float | None:
    """The number that a try is judged by: of its last evaluation, or of the best one where the cell keeps the best."""
    if record.status != "done" or not record.metrics.evaluations:
        return None
    evaluation = record.metrics.evaluations[-1] if last else record.metrics.selected
    value = None if evaluation is None else evaluation.chosen_by
    return None if value is None or not math.isfinite(value) else float(value)
