"""Where strata end and what trains in each, chosen before a cell runs, by Optuna (TPE) from tries on held-out rows.

Every try is an ordinary cell of the study "<study>.search". Optuna's journal lies beside them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError
from peftbench.record import SEARCH_SUFFIX, Evaluation, Record, Search, Taken
from peftbench.study import journal
from peftbench.study.search import best, judged_by, of_every_try, score

RunTry = Callable[[list[str]], tuple[Record, str] | None]
Strata = dict[str, Taken]


def try_strata(cell: Cell, run_try: RunTry) -> Search:
    """Let Optuna propose strata, run every try that has no record yet, and choose.

    Args:
        cell: the cell whose strata are wanted; `cell.select.trials` is not None.
        run_try: as of `search.try_rates`.

    Raises:
        ConfigError: the method has no named strata, Optuna is absent, or no try has a score.
        DataError: the journal of an earlier search cannot be read.
    """
    names = _names(cell)
    journal.check("select.trials")
    folder = Path(cell.outputs).expanduser() / f"{cell.study}{SEARCH_SUFFIX}" / f"boundaries-{cell.fingerprint}"
    with journal.alone(folder, cell.outputs):
        return _chosen(cell, list(_tries(cell, names, journal.opened(folder / journal.FILE, "strata"), run_try)))


def in_words(strata: Mapping[str, Taken]) -> str:
    """Strata in one line: what trains up to which layer."""
    return ", ".join(f"{one.like} to {'top' if one.last is None else one.last}" for one in strata.values())


def _names(cell: Cell) -> list[str]:
    strata = cell.method.arguments.get("strata")
    if not isinstance(strata, Mapping) or len(strata) < 2:
        raise ConfigError(f"select.trials: method={cell.method.name} has no named strata to search; spafit has")
    return list(strata)


def _tries(cell: Cell, names: list[str], study: Any, run_try: RunTry) -> Iterator[tuple[Strata, Record | None, str]]:
    """Every try's strata, record and folder: those in the journal, then new ones; no record: it was not possible."""
    from optuna.trial import TrialState

    space, seen, number = _space(cell.model.depth, names), 0, 0
    while seen < (cell.select.trials or 0):
        trials = study.get_trials(deepcopy=False)
        trial = trials[number] if number < len(trials) else journal.asked(study, space, cell.select.seed + number)
        number += 1
        strata = _strata(trial.params, names) if set(trial.params) == set(space) else None
        record, place = (None, "") if strata is None else _run(cell, strata, run_try)
        value = None if record is None else score(record, last=cell.protocol.selection == "last")
        if number > len(trials) or not trials[number - 1].state.is_finished():
            study.tell(number - 1, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
        if strata is not None:  # a runner that was killed while it asked left none
            seen += 1
            yield strata, record, place


def _space(depth: int, names: list[str]) -> dict[str, Any]:
    """A layer for every boundary, in any order, and whose methods train in every stratum."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    lasts = {f"last {i}": IntDistribution(-1, depth - 1) for i in range(len(names) - 1)}
    return {**lasts, **{f"like {i}": CategoricalDistribution(names) for i in range(len(names))}}


def _strata(values: Mapping[str, Any], names: list[str]) -> Strata:
    lasts = [*sorted(int(values[f"last {i}"]) for i in range(len(names) - 1)), None]
    return {name: Taken(lasts[i], str(values[f"like {i}"])) for i, name in enumerate(names)}


def _run(cell: Cell, strata: Strata, run_try: RunTry) -> tuple[Record | None, str]:
    words = of_every_try(cell)
    for name, one in strata.items():
        last = "null" if one.last is None else one.last
        words += [f"++method.strata.{name}.last={last}", f"++method.strata.{name}.like={one.like}"]
    try:
        while (done := run_try(words)) is None:
            time.sleep(1)
    except ConfigError:  # nothing trains, or the budget is too small for it
        return None, ""
    return done


def _chosen(cell: Cell, tries: list[tuple[Strata, Record | None, str]]) -> Search:
    scores: dict[str, float | None] = {}
    judged: dict[str, Evaluation | None] = {}
    by_words: dict[str, Strata] = {}
    last = cell.protocol.selection == "last"
    for strata, record, _ in tries:
        words = in_words(strata)[:200]
        by_words.setdefault(words, strata)
        scores[words] = None if record is None else score(record, last)
        judged[words] = None if record is None else judged_by(record, last)
    top = best(judged)
    if top is None:
        raise ConfigError(f"select: none of {len(tries)} strata tried has a score")
    records = {folder: record for _, record, folder in tries if record is not None}
    return Search(
        chosen=cell.protocol.lr,
        rows=cell.select.rows,
        scores=scores,
        folders=list(records),
        seconds=round(math.fsum(record.time.total_s for record in records.values()), 3),
        strata=by_words[top],
    )
