"""How held-out scores depended on the rates that were tried, and what a table hangs on where a rate was fixed."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from peftbench.record import Record
from peftbench.report.records import Study

Key = Literal["lr", "head_lr"]
RATE = re.compile(r"\d+(\.\d+)?(e[+-]?\d{1,2})?")  # of a stranger's record, which may say anything
FACTORS: dict[Key, str] = {"lr": "select.factors", "head_lr": "select.head_factors"}
SEARCHES: dict[Key, str] = {"lr": "select=lr", "head_lr": "select.head_factors"}
MOST_NAMED = 6  # searches that a line names


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

    One for each rate, of the head or the backbone, that several methods were given although their own differ, or a
    search of any method chose another; and one for each end of the rates tried at which a search ended. All of it
    follows from the records.

    Args:
        rows: as of `tried`.
    """
    trained = [record for record in study.done() if record.made is None]
    searched = tried(study, rows)
    return [*_fixed("head_lr", trained, searched), *_fixed("lr", trained, searched), *_at_an_end(searched)]


def _percent(scores: Mapping[str, float | None]) -> dict[float, float | None]:
    rates = {word: float(word) for word in scores if RATE.fullmatch(word) and float(word) > 0}
    known = {rate: None if (score := scores[word]) is None else 100 * score for word, rate in rates.items()}
    return dict(sorted(known.items()))


def _fixed(key: Key, runs: Sequence[Record], searched: Iterable[Tried]) -> Iterator[str]:
    """A line for every rate that several methods were given, where their own rates differ or a search chose another."""
    given: dict[float, dict[str, set[float]]] = {}
    for run in runs:
        if (fixed := _given(key, run)) is not None:
            rate, own = fixed
            given.setdefault(rate, {}).setdefault(run.cell.method, set()).update(own)
    methods = list(dict.fromkeys(run.cell.method for run in runs))
    for rate, group in given.items():
        other = [one for one in searched if one.key == key and one.chosen != rate]
        reasons = [_differing(key, group)] if len(set().union(*group.values())) > 1 else []
        reasons += [f"while a search chose {_chosen(other)}"] if other else []
        if len(group) > 1 and reasons:
            fixed_for = f"{key}={rate:g} was fixed for {_who(list(group), methods)}, {', and '.join(reasons)}"
            yield f"{fixed_for}: a method that would have chosen another is shown too low; {SEARCHES[key]} searches it"


def _given(key: Key, run: Record) -> tuple[float, set[float]] | None:
    """The rate that a run was given, and those it may have had instead; None: it was searched, or there is none."""
    search = run.search if run.search and not run.search.strata else None
    if key == "lr":
        default = run.config["method"].get("default_lr")
        return None if search else (run.lr, {float(default)} if isinstance(default, (int, float)) else set())
    head_lr = run.config["protocol"].get("head_lr")
    if head_lr is None or (search and search.chosen_head is not None):
        return None
    return head_lr, set(_percent(search.scores)) if search else {run.lr}  # without a rate of its own it follows lr


def _differing(key: Key, group: Mapping[str, set[float]]) -> str:
    if key == "head_lr":
        return "while lr differs or was searched"
    own = ", ".join(f"{method} {min(rates):g}" for method, rates in group.items() if rates)
    return f"whose own defaults differ ({own})"


def _chosen(other: Sequence[Tried]) -> str:
    more = f" and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
    return ", ".join(f"{one.chosen:g} for {one.name} on {one.column}" for one in other[:MOST_NAMED]) + more


def _who(group: Sequence[str], methods: Sequence[str]) -> str:
    others = [method for method in methods if method not in group]
    if len(others) >= len(group):
        return ", ".join(group)
    return "all methods" + (f" but {', '.join(others)}" if others else "")


def _at_an_end(searched: Iterable[Tried]) -> Iterator[str]:
    ends: dict[tuple[Key, str], dict[tuple[str, float], list[str]]] = {}
    for one in searched:
        if one.edge:
            ends.setdefault((one.key, one.edge), {}).setdefault((one.name, one.chosen), []).append(one.column)
    for (key, edge), rows in ends.items():
        where = ", ".join(f"{name} {rate:g} ({', '.join(columns)})" for (name, rate), columns in rows.items())
        end, beyond = ("largest", "larger") if edge == "upper" else ("smallest", "smaller")
        yield f"the {end} {key} tried was chosen, a {beyond} one may be better ({FACTORS[key]}): {where}"
