"""Studies made from one real record, for the tests of what is shown of them."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path

from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.record import Counts, Evaluation, Headline, Metrics, Record, read_record, write_record
from peftbench.report import records
from peftbench.report.records import Study
from peftbench.runner.delta import Delta

TASKS = {"mrpc": ["not_equivalent", "equivalent"], "cola": ["unacceptable", "acceptable"]}


def write_run(
    template: Record,
    outputs: Path,
    method: str,
    task: str,
    seed: int,
    score: float,
    *,
    lr: float = 1e-3,
    entries: int = 100,
    budget: str = "none",
) -> Path:
    """Write a finished run of the study "made", with its predictions, as a copy of `template` with this score."""
    evaluations = [
        Evaluation(step, step / 2, {"accuracy": score * step / 4}, collapsed=False, chosen_by=score * step / 4)
        for step in (2, 4)
    ]
    config = {**template.config, "protocol": {**template.config["protocol"], "lr": lr}, "seed": seed}
    cell = dataclasses.replace(template.cell, method=method, task=task, seed=seed, study="made", data="folder")
    cell = dataclasses.replace(cell, budget=budget)
    fingerprint = hashlib.sha256(f"{method} {task} {lr} {budget}".encode()).hexdigest()[:16]
    record = dataclasses.replace(
        template, cell=cell, fingerprint=fingerprint, config=config, overrides=[f"method={method}"],
        headline=Headline("accuracy", score, 0.02),
        metrics=Metrics(evaluations[-1], evaluations, "last", False),
        counts=Counts(entries, 10, entries + 10, 1000, 4 * entries),
    )  # fmt: skip
    safe = re.sub(r"[^a-z0-9]", "_", method)
    folder = outputs / "made" / f"{task}-{safe}-{fingerprint[:8]}" / f"seed{seed}"
    write_record(record, folder)
    (folder / "predictions").mkdir()
    labels = TASKS.get(task, ["no", "yes"])
    lines = [f"{i}\t{labels[i % 3 == 0]}\t{labels[i % 2]}\t0\t0" for i in range(12)]
    (folder / "predictions" / "dev.tsv").write_text("\n".join(["index\tprediction\tlabel\ta\tb", *lines]) + "\n")
    return folder


def made_study(tmp_path: Path, model: str | None = None) -> Study:
    return records.read_study(tmp_path / "outputs", "made", model)


def full_study(write: Callable[..., Path]) -> None:
    for i, task in itertools.product(range(5), TASKS):
        write("lora", task, i, 0.80 + 0.001 * i, entries=900)
        write("bitfit", task, i, 0.70 + 0.001 * (2 * i % 5), entries=100)
        write("id3", task, i, 0.799 + 0.0012 * (4 - i), entries=300)


def learn_otherwise(run: Path) -> str:
    """Give the run another head, as another training would; returns the hash of its delta."""
    delta, record = Delta.load(run / DELTA_FILE), read_record(run / RECORD_FILE)
    tensors = {name: tensor + name.startswith("head.") for name, tensor in delta.tensors.items()}
    sha256 = Delta(tensors, delta.facts).save(run / DELTA_FILE)
    write_record(dataclasses.replace(record, hashes=dataclasses.replace(record.hashes, delta=sha256)), run)
    return sha256
