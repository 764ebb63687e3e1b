"""PEFT-Bench's score less soft penalties for what it cost (PSCP), and how far its ranking depends on the constants.

Belanec et al. 2025, "PEFT-Bench" (arXiv:2511.21285), equation 3; the constants are those of its section 4:

    PSCP = P (1 + M_p / C_p)^-beta_p (1 + M_f / C_f)^-beta_f (1 + M_m / C_m)^-beta_m

P is the mean score, M_p the entries that train, M_f the FLOPs that the method adds to one sequence forward through the
backbone, not merged even where it could be (as the authors' script counts it, of 512 tokens; here of the longest row of
train), M_m the mean of the runs' peak memory. The paper's constants are for a backbone of 8 billion entries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
from scipy import stats

from peftbench.ground.errors import ConfigError, near, shown
from peftbench.report.records import Study, tasks_alone
from peftbench.report.sheet import Sheet
from peftbench.report.table import apart

MIB_IN_GB = (1 << 20) / 1e9


@dataclass(frozen=True)
class Constants:
    """What costs are held against.

    Attributes:
        c_p: entries that train; c_f: TFLOPs more a row; c_m: peak memory in GB. At this cost the factor is 2^-beta.
        beta_p, beta_f, beta_m: how much each counts; 0: not at all.
    """

    c_p: float = 5e8
    c_f: float = 10.0
    c_m: float = 94.0
    beta_p: float = 1.0
    beta_f: float = 1.0
    beta_m: float = 1.0


# What is shown of a method, and how.
FORMS = {
    "mean score": "{:.1f}",
    "entries": "{:,.0f}",
    "factor of entries": "{:.3f}",
    "MFLOPs more": "{:.1f}",
    "factor of FLOPs": "{:.3f}",
    "peak GB": "{:.2f}",
    "factor of memory": "{:.3f}",
    "PSCP": "{:.2f}",
    "rank": "{:.0f}",
}
# What each constant is varied over, the others as they are.
GRID: dict[str, tuple[float, ...]] = {
    "c_p": (1e4, 1e5, 1e6, 1e7, 1e8, 1e9),
    "c_f": (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10),
    "c_m": (0.3, 1, 3, 10, 30, 100, 300),
    "beta_p": (0, 0.5, 1, 2, 4),
    "beta_f": (0, 0.5, 1, 2, 4),
    "beta_m": (0, 0.5, 1, 2, 4),
}


def constants(words: Sequence[str]) -> Constants:
    """The constants with those that are given as key=value.

    Raises:
        ConfigError: there is no such constant, or it is not possible.
    """
    known = [field.name for field in fields(Constants)]
    given = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in known:
            raise ConfigError(f"--constants {shown(word)}: there is no such constant; {near(key, known)}")
        try:
            given[key] = float(value)
        except ValueError:
            raise ConfigError(f"--constants {shown(word)}: not a number") from None
        low = 0 if key.startswith("beta") else np.finfo(float).tiny
        if not low <= given[key] <= 1e15:
            raise ConfigError(
                f"--constants {shown(word)}: must be {'at least' if low == 0 else 'above'} 0, at most 1e15"
            )
    return Constants(**given)


def penalty(cost: np.ndarray, constant: float, importance: float) -> np.ndarray:
    """One factor, in (0, 1]."""
    return np.asarray((1 + cost / constant) ** -importance)


@dataclass(frozen=True)
class Costed:
    """Methods with what they cost.

    Attributes:
        names: rows of the study's table.
        scores: mean over tasks, in percent (methods,).
        entries: that train, the head's among them, the largest over tasks (methods,).
        memory: mean of the runs' peaks in GB (methods,).
        flops: TFLOPs more a row, mean over runs, at least 0 (methods,); None: some record does not say, and the factor
            is left out.
    """

    names: list[str]
    scores: np.ndarray
    entries: np.ndarray
    memory: np.ndarray
    flops: np.ndarray | None = None

    def factors(self, at: Constants) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of entries, FLOPs and memory (methods,)."""
        known = np.ones_like(self.scores) if self.flops is None else penalty(self.flops, at.c_f, at.beta_f)
        return penalty(self.entries, at.c_p, at.beta_p), known, penalty(self.memory, at.c_m, at.beta_m)

    def pscp(self, at: Constants) -> np.ndarray:
        """PSCP of every method, in percent."""
        return np.asarray(self.scores * np.prod(self.factors(at), axis=0))

    def varied(self, at: Constants) -> dict[str, np.ndarray]:
        """Constant -> ranks (values of `GRID`, methods) as it varies, the others as they are."""
        return {
            key: np.stack([ranks(self.pscp(replace(at, **{key: value}))) for value in values])
            for key, values in GRID.items()
        }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (methods,), 1 for the highest; equal values share the better one."""
    return np.asarray(stats.rankdata(-values, method="min")).astype(int)


def costed(rows: pd.DataFrame) -> Costed:
    """The rows of a study's table that have every task.

    Args:
        rows: as `table.apart` gives them.
    """
    if rows.empty:
        return Costed([], *(np.empty(0),) * 3)
    rows = rows.dropna(subset=["score", "total"])
    rows = rows[rows["column"].isin(tasks_alone(rows["column"].unique()))]
    means = rows.pivot_table(index="name", columns="column", values="score", sort=False).dropna()
    by_name = rows[rows["name"].isin(means.index)].groupby("name", sort=False)
    names = [str(name) for name in means.index]
    entries, memory = by_name["total"].max()[names], by_name["peak_mb"].mean()[names] * MIB_IN_GB
    told = by_name["more_tflops"].agg(lambda more: more.astype(float).mean(skipna=False))[names].to_numpy(float)
    flops = None if np.isnan(told).any() else told.clip(min=0)
    return Costed(names, means.mean(axis=1).to_numpy(), entries.to_numpy(float), memory.to_numpy(float), flops)


def sheet(study: Study, at: Constants) -> Sheet:
    """PSCP of every row of the study's table, its rank, and its ranks as each constant varies.

    Raises:
        ConfigError: no row has every task.
    """
    costs = costed(apart(study)[0])
    if not costs.names:
        raise ConfigError(f"study {study.name}: no row of its table has a run with every task")
    values, varied = costs.pscp(at), costs.varied(at)
    of_entries, of_flops, of_memory = costs.factors(at)
    more = np.full_like(values, np.nan) if costs.flops is None else 1e6 * costs.flops
    parts = (costs.scores, costs.entries, of_entries, more, of_flops, costs.memory, of_memory, values, ranks(values))
    head = ["method", *FORMS, *(f"rank by {key}" for key in GRID)]
    numbers: list[list[object]] = [
        ["method", *FORMS, *(f"{edge} rank by {key}" for key in GRID for edge in ("best", "worst"))]
    ]
    texts = []
    for i, name in enumerate(costs.names):
        edges = [(int(by[:, i].min()), int(by[:, i].max())) for by in varied.values()]
        figures = [float(part[i]) for part in parts]
        shown_ranks = [str(best) if best == worst else f"{best} to {worst}" for best, worst in edges]
        texts.append(
            [name, *(_text(form, figure) for form, figure in zip(FORMS.values(), figures, strict=True)), *shown_ranks]
        )
        known = [None if np.isnan(figure) else figure for figure in figures[:-1]]
        numbers.append([name, *known, int(figures[-1]), *(edge for both in edges for edge in both)])
    without = " without its factor of FLOPs" if costs.flops is None else ""
    title = f"{study.name}: PSCP (arXiv:2511.21285){without}, at {_in_words(at)}"
    return Sheet(title, head, texts, _notes(costs, at, varied), numbers)


def _notes(costs: Costed, at: Constants, varied: Mapping[str, np.ndarray]) -> list[str]:
    """What the score is made of, and how far its ranking depends on the constants."""
    before = ranks(costs.pscp(at))
    notes = ["MFLOPs more: what the method, not merged, adds to the longest row of train forward through the backbone"]
    if costs.flops is None:
        notes = ["some records count no FLOPs: right for what can be merged into the backbone, too kind to all else"]
    for key, by in varied.items():
        firsts = dict.fromkeys(costs.names[int(place.argmin())] for place in by)
        kept = int((by == before).all(axis=0).sum())
        grid = ", ".join(f"{value:g}" for value in GRID[key])
        notes.append(f"{key} over {grid}: {kept} of {len(before)} ranks stay; first: {' or '.join(firsts)}")
    return notes


def _text(form: str, figure: float) -> str:
    return "–" if np.isnan(figure) else form.format(figure)


def _in_words(at: Constants) -> str:
    return ", ".join(f"{field.name} {getattr(at, field.name):g}" for field in fields(at))
