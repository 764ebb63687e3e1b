"""Figures of artefacts: what was made of runs stands beside these runs, ports gain over steps, sequences forget."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies import made_study

from peftbench.ground.files import RECORD_FILE
from peftbench.record import Evaluation, Made, Metrics, read_record, write_record
from peftbench.report import plots
from peftbench.report.figures import made, sequences, training
from peftbench.report.figures.every import figures
from peftbench.report.figures.parts import Material, Series

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


def learn(write: Write, row: str, tasks: list[str], seed: int, accuracies: list[list[float]]) -> None:
    """A sequence of the study "made": after every stage the accuracy of each task seen, in the order of learning."""
    folder = write(row, "mrpc", seed, 0.5)
    stages = [{f"{task}_accuracy": one for task, one in zip(tasks, stage, strict=False)} for stage in accuracies]
    every = [
        Evaluation(number, float(number), {"last": sum(one.values()) / len(one), **one}, False, 0.5)
        for number, one in enumerate(stages, 1)
    ]
    record = read_record(folder / RECORD_FILE)
    keys = {"learner": row.partition(",")[0], "tasks": tasks}
    metrics = Metrics(every[-1], every, "last", collapsed=False)
    write_record(dataclasses.replace(record, metrics=metrics, made=Made("sequence", keys)), folder)


def points(series: Series) -> list[tuple[float, float]]:
    return [(x, round(y, 1)) for x, y in zip(series.x, series.y, strict=True)]


def test_sequences_are_drawn_stage_by_stage_and_not_as_learning_curves(write_run: Write, tmp_path: Path) -> None:
    orders = {"0": ["rte", "cola", "sst2"], "1": ["sst2", "rte", "cola"]}
    for (order, tasks), seed in itertools.product(orders.items(), range(3)):
        more = 0.01 * seed
        learn(write_run, f"mos, order {order}", tasks, seed, [[0.9], [0.7 + more, 0.8], [0.6, 0.9, 0.6]])
        learn(write_run, f"aper, order {order}", tasks, seed, [[0.9], [0.9, 0.7], [0.9, 0.7, 0.5]])
        if order == "0":
            learn(write_run, "joint, order 0", tasks, seed, [[0.9, 0.9, 0.9]])
    write_run("lora", "mrpc", 0, 0.8)
    material = Material(made_study(tmp_path))
    (seen,), (lost,) = sequences.stages(material), sequences.forgotten(material)
    assert [panel.title for panel in seen.panels] == ["order 0", "order 1"]
    assert [panel.ticks for panel in seen.panels] == [list(enumerate(tasks, 1)) for tasks in orders.values()]
    for panel in seen.panels:
        lines = {one.name: one for one in panel.series}
        assert points(lines["mos"]) == [(1, 90), (2, 75.5), (3, 70)]
        assert lines["mos"].low[1] < 75.5 < lines["mos"].high[1]
        assert points(lines["joint"]) == [(3, 90)], "it learned all tasks at once, in no order"
    assert lines["mos"].shown == ("mos, order 1",)
    lines = {one.name: one for one in lost.panels[0].series}
    assert points(lines["mos"]) == [(1, 30), (2, 0)], "cola was best at the end; the last task had no time"
    assert points(lines["aper"]) == [(1, 0), (2, 0)]
    assert "joint" not in lines
    (curves,) = training.curves(material)
    assert [one.name for one in curves.panels[0].series] == ["lora"]
    written = {path.name for path in plots.save_all(made_study(tmp_path), tmp_path)}
    assert {"sequences.png", "sequences_forgotten.svg"} <= written


def test_a_sequence_that_says_nothing_of_its_tasks_has_no_figure(write_run: Write, tmp_path: Path) -> None:
    learn(write_run, "mos, order 0", ["rte", "cola"], 0, [[0.9], [0.7, 0.8]])
    (path,) = (tmp_path / "outputs").rglob(RECORD_FILE)
    record = read_record(path)
    for tasks in (None, "rte", [1, 2], ["rte"]):
        write_record(dataclasses.replace(record, made=Made("sequence", {"tasks": tasks})), path.parent)
        drawn = {figure.word: figure for figure in figures(Material(made_study(tmp_path)))}
        assert "sequences_forgotten" not in drawn
        if tasks != ["rte"]:
            assert "sequences" not in drawn
