"""Figures of artefacts: what was made of runs stands beside these runs, and ports gain over their steps."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies import made_study

from peftbench.ground.files import RECORD_FILE
from peftbench.record import Made, read_record, write_record
from peftbench.report import plots
from peftbench.report.figures import made
from peftbench.report.figures.parts import Material

Write = Callable[..., Path]


def make(write: Write, by: str, name: str, parent: Path, seed: int, score: float, **keys: Any) -> None:
    """An artefact of a run of the study "made"."""
    folder = write(name, parent.parent.name.partition("-")[0], seed, score)
    record = read_record(folder / RECORD_FILE)
    hashes = dataclasses.replace(record.hashes, parents={"/".join(parent.parts[-3:]): "0" * 64})
    write_record(dataclasses.replace(record, made=Made(by, keys), hashes=hashes), folder)


def test_artefacts_stand_beside_the_runs_that_they_were_made_of(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        parent = write_run("lora", "mrpc", seed, 0.9)
        make(write_run, "merge", "average of lora", parent, seed, 0.7 + 0.01 * seed)
        make(write_run, "../odd", "something", parent, seed, 0.5)
        write_run("bitfit", "mrpc", seed, 0.8)  # nothing was made of it
    merged, odd = made.artefacts(Material(made_study(tmp_path)))
    assert (merged.word, merged.choice, odd.word) == ("made_merge", "merged", "made__odd")
    (panel,) = merged.panels
    assert {one.name: round(one.x[0], 1) for one in panel.series} == {"lora": 90.0, "average of lora": 71.0}
    written = {path.name for path in plots.save_all(made_study(tmp_path), tmp_path)}
    assert {"made_merge.png", "made__odd.svg"} <= written


def test_a_port_is_drawn_over_the_steps_that_it_was_trained_on(write_run: Write, tmp_path: Path) -> None:
    for seed in range(3):
        parent = write_run("lora", "mrpc", seed, 0.9)
        make(write_run, "port", "backbone of lora, kept head", parent, seed, 0.5, floor=True)
        for steps, score in ((50, 0.8), (0, 0.6), (200, 0.85)):
            name = "port of lora, kept head" + (f", {steps} steps" if steps else "")
            make(write_run, "port", name, parent, seed, score, **({"steps": steps} if steps else {}))
        make(write_run, "port", "anew of lora", parent, seed, 0.9, steps=None, ceiling=True)
    material = Material(made_study(tmp_path))
    (figure,) = made.steps(material)
    (series,) = figure.panels[0].series
    assert series.name == "port of lora, kept head"
    assert list(zip(series.x, [round(y, 1) for y in series.y], strict=True)) == [(0, 60.0), (50, 80.0), (200, 85.0)]
    assert series.notes[1] == "80.00, n=3, after 50 steps"
    (beside,) = made.artefacts(material)
    assert len(beside.panels[0].series) == 6, "every row, the runs' own among them"
