"""The learning rates, chosen before a cell runs: the tries are ordinary cells, kept in a study of their own."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from peftbench.config.spec import Cell
from peftbench.config.tasks import TaskSpec
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import expanded
from peftbench.record import SEARCH_SUFFIX, Evaluation, Record, Search

RunTry = Callable[[list[str]], tuple[Record, str] | None]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Tried:
    """The tries of one rate, the backbone's or the head's.

    Attributes:
        chosen: the rate that the rule takes.
        scores, losses: of every rate tried; None where that try failed or diverged.
        folders: the tries' folders under `outputs`.
        seconds: what each took.
        error: standard error of the best score; None where it has no part in the choice.
    """

    chosen: float
    scores: dict[str, float | None]
    losses: dict[str, float | None]
    folders: list[str]
    seconds: list[float]
    error: float | None = None


def rates(usual: float, factors: Iterable[float] | None) -> list[float]:
    """The rates to try, rising; none where nothing is searched."""
    return sorted({float(f"{usual * factor:.6g}") for factor in factors or ()})


def tries(cell: Cell) -> list[list[str]]:
    """For every learning rate, the overrides that turn the cell's own into that try's, from the smallest rate on."""
    return list(_words(cell, "lr", rates(cell.protocol.lr, cell.select.factors)).values())


def of_every_try(cell: Cell) -> list[str]:
    """The overrides that turn the cell's own into any try's."""
    fixed = [
        "select.factors=null",
        "select.head_factors=null",
        "select.trials=null",
        f"seed={cell.select.seed}",
        f"study={cell.study}{SEARCH_SUFFIX}",
        f"protocol.selection={'best_dev' if cell.select.rows == 'dev' else 'held_out'}",
        "predict_test=false",
    ]
    if cell.select.max_steps is not None:
        fixed.append(f"protocol.max_steps={cell.select.max_steps}")
    return fixed


def try_rates(cell: Cell, run_try: RunTry) -> Search:
    """Try every learning rate, then every rate of the head at the one that was chosen, and choose.

    Args:
        cell: the cell whose rates are wanted; `cell.select.factors` is not None.
        run_try: runs a try by its overrides, or finds its record; gives the record and its folder, or None where
            another runner has it.

    Raises:
        ConfigError: no try has a score.
    """
    usual = cell.protocol
    of_lr = _try(cell, usual.lr, _words(cell, "lr", rates(usual.lr, cell.select.factors)), run_try)
    parts, of_head = [of_lr], None
    if usual.head_lr is not None and cell.select.head_factors is not None:
        at_lr = [f"protocol.lr={of_lr.chosen}"]
        words = _words(cell, "head_lr", rates(usual.head_lr, cell.select.head_factors), at_lr)
        of_head = _try(cell, usual.head_lr, words, run_try)
        parts.append(of_head)
    seconds = {folder: took for part in parts for folder, took in zip(part.folders, part.seconds, strict=True)}
    return Search(
        chosen=of_lr.chosen,
        rows=cell.select.rows,
        scores=of_lr.scores,
        losses=of_lr.losses,
        folders=list(seconds),
        seconds=round(math.fsum(seconds.values()), 3),
        chosen_head=None if of_head is None else of_head.chosen,
        head_scores={} if of_head is None else of_head.scores,
        head_losses={} if of_head is None else of_head.losses,
        rule=cell.select.rule,
        error=of_lr.error,
        head_error=None if of_head is None else of_head.error,
    )


def score(record: Record, last: bool) -> float | None:
    """The number that a try is judged by; None: it has none."""
    evaluation = judged_by(record, last)
    return None if evaluation is None else _finite(evaluation.chosen_by)


def best(judged: Mapping[Key, Evaluation | None]) -> Key | None:
    """The try of the highest score; of equal ones that of the least loss, then the first.

    Where all tries predict one class, a score says no more than which class that is: the least loss chooses, then the
    score. None: no try has a score.
    """
    known = {key: one for key, one in judged.items() if one is not None and _finite(one.chosen_by) is not None}
    collapsed = all(one.collapsed for one in known.values())

    def merit(key: Key) -> tuple[float, float]:
        score, loss = known[key].chosen_by, _finite(known[key].loss)
        assert score is not None
        by_loss = -math.inf if loss is None else -loss
        return (by_loss, score) if collapsed else (score, by_loss)

    return max(known, key=merit, default=None)


def smallest_within(scores: Mapping[float, float | None], top: float, error: float) -> float:
    """The smallest rate whose score is within one standard error of the best one's.

    The one-standard-error rule (Breiman, Friedman, Olshen and Stone 1984, section 3.4.3; Hastie, Tibshirani and
    Friedman 2009, section 7.10) takes the simplest of the models that the rows cannot tell from the best. Of rates that
    is the smallest: it changes the backbone least, and short tries favour large ones.

    Args:
        scores: of every rate tried; None where it has none.
        top: the best rate; error: the standard error of its score.
    """
    highest = scores[top]
    assert highest is not None
    return min(rate for rate, score in scores.items() if score is not None and score >= highest - error)


def _words(cell: Cell, key: str, tried: Iterable[float], fixed: Iterable[str] = ()) -> dict[float, list[str]]:
    return {rate: [*of_every_try(cell), *fixed, f"protocol.{key}={rate}"] for rate in tried}


def _try(cell: Cell, usual: float, words: Mapping[float, list[str]], run_try: RunTry) -> Tried:
    """Run every try that has no record yet, and choose. Those that another runner has are waited for at the end."""
    left, tried = dict(words), dict[float, tuple[Record, str]]()
    while left:
        before = len(tried)
        tried |= {rate: done for rate, try_words in left.items() if (done := run_try(try_words)) is not None}
        left = {rate: try_words for rate, try_words in left.items() if rate not in tried}
        if left and len(tried) == before:
            time.sleep(1)
    last = cell.protocol.selection == "last"
    judged = {rate: judged_by(tried[rate][0], last) for rate in words}
    scores = {rate: None if one is None else _finite(one.chosen_by) for rate, one in judged.items()}
    losses = {rate: None if one is None else _finite(one.loss) for rate, one in judged.items()}
    top = best({rate: judged[rate] for rate in sorted(judged, key=lambda rate: abs(math.log(rate / usual)))})
    if top is None:
        raise ConfigError(f"select: none of the learning rates {list(words)} has a score")
    error = _error(cell, judged[top], tried[top][1])
    chosen = top if error is None else smallest_within(scores, top, error)
    return Tried(
        chosen,
        {f"{rate:g}": value for rate, value in scores.items()},
        {f"{rate:g}": value for rate, value in losses.items()},
        [tried[rate][1] for rate in words],
        [tried[rate][0].time.total_s for rate in words],
        error,
    )


def _error(cell: Cell, judged: Evaluation | None, folder: str) -> float | None:
    """The standard error of the best try's score; None where the rule does not ask for it, or that try predicts one
    class: its rows then tell nothing apart, and the best rate stays.
    """
    if cell.select.rule != "one_se" or judged is None or judged.collapsed or judged.chosen_by is None:
        return None
    from peftbench.runner.row_noise import error_of

    assert isinstance(cell.task, TaskSpec)  # a joint one is refused
    return error_of(expanded(cell.outputs) / folder, cell.task, cell.select.rows, judged.chosen_by)


def judged_by(record: Record, last: bool) -> Evaluation | None:
    """The evaluation that a try is judged by: the last one, or the best where the cell keeps that; None: it failed."""
    if record.status != "done" or not record.metrics.evaluations:
        return None
    return record.metrics.evaluations[-1] if last else record.metrics.selected


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
