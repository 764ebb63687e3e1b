"""How held-out scores depended on the rates that were tried, and what a table hangs on where a rate was fixed."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from peftbench.record import Record
from peftbench.report.records import Study

Key = Literal["lr", "head_lr"]
RATE = re.compile(r"\d+(\.\d+)?(e[+-]?\d{1,2})?")  # of a stranger's record, which may say anything
FACTORS: dict[Key, str] = {"lr": "select.factors", "head_lr": "select.head_factors"}


@dataclass(frozen=True)
class Tried:
    """The rates that a search tried for one row of the table in one column.

    Attributes:
        key: whose rates; those of the head were tried at the learning rate that was chosen before.
        scores: of every rate, rising, in percent; None where that try failed or diverged.
        chosen: the rate that all seeds use.
    """

    name: str
    column: str
    key: Key
    scores: dict[float, float | None]
    chosen: float

    @property
    def known(self) -> dict[float, float]:
        """The rates that have a score."""
        return {rate: score for rate, score in self.scores.items() if score is not None}

    @property
    def edge(self) -> Literal["upper", "lower"] | None:
        """Which end of the rates tried was chosen, so that the best one may lie beyond; a rate that failed counts."""
        if len(self.scores) < 2 or self.chosen not in (min(self.scores), max(self.scores)):
            return None
        return "upper" if self.chosen == max(self.scores) else "lower"


def tried(study: Study, rows: pd.DataFrame) -> list[Tried]:
    """What every row of the table tried in every column; nothing of those that searched no rates.

    Args:
        rows: the study's finished runs, as `table.apart` gives them.
    """
    tries, records = [], study.done()
    for (name, column), same in rows.groupby(["name", "column"], sort=False) if len(rows) else []:
        search = records[int(same["record"].iloc[0])].search  # one for all seeds
        if search is None or search.strata:
            continue
        tries.append(Tried(str(name), str(column), "lr", _percent(search.scores), search.chosen))
        if search.chosen_head is not None:
            tries.append(Tried(str(name), str(column), "head_lr", _percent(search.head_scores), search.chosen_head))
    return tries


def notes(study: Study, rows: pd.DataFrame) -> list[str]:
    """Footnotes of a table whose order may be one of rates.

    One for a rate of the head that all methods were given while their learning rates were searched; one for a learning
    rate that all methods were given although their own defaults differ; and one for each end of the rates tried at
    which a search ended. All of it follows from the records.

    Args:
        rows: as of `tried`.
    """
    trained = [record for record in study.done() if record.made is None]
    searched = tried(study, rows)
    return [*_fixed_head(trained, searched), *_fixed_lr(trained), *_at_an_end(searched)]


def _percent(scores: Mapping[str, float | None]) -> dict[float, float | None]:
    rates = {word: float(word) for word in scores if RATE.fullmatch(word) and float(word) > 0}
    known = {rate: None if (score := scores[word]) is None else 100 * score for word, rate in rates.items()}
    return dict(sorted(known.items()))


def _fixed_head(runs: Iterable[Record], searched: Iterable[Tried]) -> Iterator[str]:
    given: dict[float, set[str]] = {}
    methods: dict[str, None] = {}
    lr_was_searched = False
    for run in runs:
        methods[run.cell.method] = None
        of_lr = run.search if run.search and not run.search.strata else None
        head_lr = run.config["protocol"].get("head_lr")
        if head_lr is not None and not (of_lr and of_lr.chosen_head):
            given.setdefault(head_lr, set()).add(run.cell.method)
            lr_was_searched = lr_was_searched or of_lr is not None
    if not lr_was_searched or len(given) != 1:
        return
    ((rate, same),) = given.items()
    if len(same) < 2:
        return
    others = [method for method in methods if method not in same]
    who = "all methods" + (f" but {', '.join(others)}" if others else "")
    otherwise = [f"{one.name} chose {one.chosen:g} on {one.column}" for one in searched if one.key == "head_lr"]
    shown = f" ({', '.join(otherwise)})" if otherwise else ""
    yield (
        f"head_lr={rate:g} was fixed for {who}, while lr was searched{shown}: a method that would have chosen another "
        f"is shown too low; {FACTORS['head_lr']} searches it"
    )


def _fixed_lr(runs: Iterable[Record]) -> Iterator[str]:
    defaults: dict[str, float] = {}
    given = set()
    for run in runs:
        if run.search is not None and not run.search.strata:
            return
        given.add(run.lr)
        default = run.config["method"].get("default_lr")
        if isinstance(default, (int, float)):
            defaults[run.cell.method] = float(default)
    if len(given) != 1 or len(set(defaults.values())) < 2:
        return
    own = ", ".join(f"{method} {default:g}" for method, default in defaults.items())
    yield (
        f"lr={given.pop():g} was fixed for all methods, whose own defaults differ ({own}): a method that would have "
        f"chosen another is shown too low; select=lr searches it"
    )


def _at_an_end(searched: Iterable[Tried]) -> Iterator[str]:
    ends: dict[tuple[Key, str], dict[tuple[str, float], list[str]]] = {}
    for one in searched:
        if one.edge:
            ends.setdefault((one.key, one.edge), {}).setdefault((one.name, one.chosen), []).append(one.column)
    for (key, edge), rows in ends.items():
        where = ", ".join(f"{name} {rate:g} ({', '.join(columns)})" for (name, rate), columns in rows.items())
        end, beyond = ("largest", "larger") if edge == "upper" else ("smallest", "smaller")
        yield f"the {end} {key} tried was chosen, a {beyond} one may be better ({FACTORS[key]}): {where}"
