"""Artefacts: what each command made of finished runs, beside these runs, and how ports gain from training on."""

import re
from collections.abc import Iterator

from peftbench.ground.quantity import quantity
from peftbench.record import Made, Record
from peftbench.report.figures.parts import Figure, Material, Panel, Series, bounds
from peftbench.report.figures.scores import INTERVALS, SCORE, by_row
from peftbench.report.figures.sequences import GROUP as SEQUENCES

GROUP = "Made of finished runs"
LONGEST_WORD = 40  # letters of a command in a file's name
COMMANDS = {
    "merge": "merged",
    "port": "ported",
    "edit": "edited",
    "score": "scored elsewhere",
    "sequence": "after the last stage",
}  # others by their own name


def artefacts(material: Material) -> Iterator[Figure]:
    """Every artefact of a command, a panel per task, and the runs of this study that they were made of."""
    folders = [folder for folder, record in zip(material.study.folders, material.study.records, strict=True)
               if record.status == "done"]  # fmt: skip
    runs = {"/".join(folder.parts[-3:]): place for place, folder in enumerate(folders)}
    names = dict(zip(material.rows["record"], material.rows["name"], strict=True))
    for by in dict.fromkeys(record.made.by for record in material.records if record.made):
        made = {place: record for place, record in enumerate(material.records) if record.made and record.made.by == by}
        # a run trained anew is a row of the command's own already
        others = [record for record in made.values() if not (record.made and record.made.keys.get("ceiling"))]
        parents = {runs[parent] for record in others for parent in record.hashes.parents if parent in runs}
        shown = {names[place] for place in {*parents, *made} if place in names}
        panels = []
        for column in material.columns:
            rows = {name: material.summaries[name, column] for name, _ in material.of(column) if name in shown}
            panels += [by_row(column, column, SCORE, rows)] if rows else []
        if panels:
            word = re.sub(r"[^a-z0-9]+", "_", by.lower())[:LONGEST_WORD]  # a stranger's record may say anything
            group = SEQUENCES if by == "sequence" else GROUP  # which is made of no run
            yield Figure(f"made_{word}", group, COMMANDS.get(by, by), "rows", panels, INTERVALS)


def steps(material: Material) -> Iterator[Figure]:
    """Score of ports over the steps that they were trained on, and of as many steps from nothing."""
    panels = []
    for column in material.columns:
        points: dict[str, dict[float, str]] = {}  # name of a line -> steps -> row
        for name, same in material.of(column):
            trained = _trained(material.records[int(same["record"].iloc[0])])
            if trained is not None:
                points.setdefault(name.removesuffix(f", {trained} steps"), {})[float(trained)] = name
        gains = any(len(line) > 1 for line in points.values())
        series = [_line(material, column, name, line) for name, line in points.items()] if gains else []
        if series:
            panels.append(Panel(column, "optimizer steps", SCORE, column, series=series))
    if panels:
        note = "band: 95% t-interval of the mean over seeds"
        yield Figure("port_steps", GROUP, "ports over steps", "lines", panels, note)


def _trained(record: Record) -> int | None:
    """For how many steps a port was trained on; None where it is none, or was trained to the end."""
    made: Made | None = record.made
    if made is None or made.by != "port" or made.keys.get("floor"):
        return None
    number = made.keys.get("steps", 0)
    return number if isinstance(number, int) else None


def _line(material: Material, column: str, name: str, by_steps: dict[float, str]) -> Series:
    """The rows of one port, by the steps that each was trained on; it is drawn as a method of its own."""
    rows = dict(sorted(by_steps.items()))
    every = [material.summaries[row, column] for row in rows.values()]
    notes = [f"{one.words()}, after {quantity(int(x), 'step')}" for x, one in zip(rows, every, strict=True)]
    middle = [one.mean for one in every]
    return Series(name, list(rows), middle, *bounds(every), notes, rows=tuple(rows.values()), method=name)
