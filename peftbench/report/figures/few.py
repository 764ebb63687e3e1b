"""Few labels: score against the number of labelled rows, a figure for each of the two ways of counting them."""

from collections.abc import Iterator

from peftbench.report.few import LABELS, Convention, counted, without_shots
from peftbench.report.figures.parts import Figure, Material, Panel, Series, Summary


def shots(material: Material) -> Iterator[Figure]:
    """Score over the shots: mean and interval over splits and seeds; at the right what all rows give."""
    for convention, label in LABELS.items():
        panels = [panel for column in material.columns if (panel := _panel(material, column, convention, label)).series]
        if panels:
            note = "mean and 95% interval over splits (means of their seeds); at the right all of train, not to scale"
            yield Figure(f"shots_{convention}", "Few labels", label, "lines", panels, note)


def _panel(material: Material, column: str, convention: Convention, label: str) -> Panel:
    points: dict[str, dict[float, Summary]] = {}
    whole: dict[str, Summary] = {}
    joined: dict[str, list[str]] = {}  # name of a line -> the rows that it joins
    for name, same in material.of(column):
        few = material.records[int(same["record"].iloc[0])].few
        summed = material.summaries[name, column]
        joined.setdefault(without_shots(name, few), []).append(name)
        if few is None:
            whole[name] = summed
        elif counted(few)[0] == convention:
            points.setdefault(without_shots(name, few), {})[float(counted(few)[1])] = summed
    right = 2 * max((x for by_shots in points.values() for x in by_shots), default=0.0)
    series = []
    for name, by_shots in points.items():
        every = dict(sorted(by_shots.items())) | ({right: whole[name]} if name in whole else {})
        middle = [one.mean for one in every.values()]
        low = [one.mean if one.low is None else one.low for one in every.values()]
        high = [one.mean if one.high is None else one.high for one in every.values()]
        notes = [f"{'all rows' if x == right else f'{x:g}'}: {one.words()}" for x, one in every.items()]
        rows = tuple(joined[name])
        method = material.methods[rows[0]]
        series.append(Series(name, list(every), middle, low, high, notes, rows=rows, method=method))
    numbers = sorted({x for by_shots in points.values() for x in by_shots})
    ticks = [(x, f"{x:g}") for x in numbers] + ([(right, "all")] if whole.keys() & points.keys() else [])
    return Panel(column, label, "dev score (%)", column, log=True, series=series, ticks=ticks)
