"""All tasks put together: aggregates with their intervals, and performance profiles (Agarwal et al. 2021)."""

from collections.abc import Iterator

import numpy as np

from peftbench.report.aggregates import AGGREGATES, Bounded, aggregate, in_words, profile
from peftbench.report.figures.parts import Figure, Material, Panel, Series, Summary
from peftbench.report.figures.scores import limits_of

THRESHOLDS = 51  # points of a profile
LOWEST = 0.1  # share of all runs that lie below the first of them: the tail of a weak method would fill the axis
GROUP = "All tasks together"
RUNS = "95% interval, runs drawn anew within each task (from 3 runs on); these tasks and dev rows"


def profiles(material: Material) -> Iterator[Figure]:
    """Which share of its runs a method has above every score; where there are several tasks."""
    together = material.together
    if len(together.columns) < 2 or not together.scores:
        return
    every = np.concatenate([scores.ravel() for scores in together.scores.values()])
    thresholds = np.linspace(np.quantile(every, LOWEST), every.max(), THRESHOLDS).tolist()
    series = []
    for name, scores in together.scores.items():
        percents = [_in_percent(share) for share in profile(scores, thresholds)]
        notes = [
            f"{in_words(share, False)}% of runs above {at:.1f}" for at, share in zip(thresholds, percents, strict=True)
        ]
        series.append(Series(name, thresholds, [share.value for share in percents], *_edges(percents), notes))
    title = f"{len(together.columns)} tasks"
    panel = Panel(title, together.scale, "runs that score above (%)", series=series)
    yield Figure("profiles", GROUP, "performance profiles", "lines", [panel], f"higher is better; band: {RUNS}")


def aggregates(material: Material) -> Iterator[Figure]:
    """Interquartile mean, median and mean of every row, a panel each; where there are several tasks."""
    together = material.together
    if len(together.columns) < 2 or not together.scores:
        return
    panels = []
    for word, function in AGGREGATES.items():
        figures = {name: aggregate(scores, function) for name, scores in together.scores.items()}
        series = [
            Series(name, [one.value], [0.0], *_edges([one]), [in_words(one, together.relative)])
            for name, one in figures.items()
        ]
        limits, below = limits_of({name: _whole(one) for name, one in figures.items()})
        title = f"{word} of {len(together.columns)} tasks"
        panels.append(Panel(title, together.scale, "", series=series, limits=limits, below=below))
    note = f"IQM: mean of the middle half of all runs; median, mean: of the tasks' means; bars: {RUNS}"
    yield Figure("aggregates", GROUP, "IQM, median, mean", "rows", panels, note)


def _in_percent(share: Bounded) -> Bounded:
    low, high = share.low, share.high
    return Bounded(100 * share.value, None if low is None else 100 * low, None if high is None else 100 * high)


def _whole(one: Bounded) -> Summary:
    """The figure and its interval, all of which an axis has to show."""
    return Summary(one.value, one.low, one.high, [edge for edge in (one.low, one.value, one.high) if edge is not None])


def _edges(points: list[Bounded]) -> tuple[list[float], list[float]]:
    """Low and high of every point; nothing where none is known."""
    low, high = [one.low for one in points if one.low is not None], [one.high for one in points if one.high is not None]
    return low, high
