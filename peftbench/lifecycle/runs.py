"""The runs of a study that an artefact of several tasks is made of: one for each task, seed by seed."""

from collections.abc import Collection, Sequence
from pathlib import Path

from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import study_folder
from peftbench.lifecycle.parents import Parent, parent
from peftbench.record import Record, find_records, glance, read_record


def by_seed(
    outputs: Path,
    study: str,
    method: str,
    budget: str | None = None,
    tasks: Collection[str] = (),
    seeds: Collection[int] = (),
) -> dict[int, list[Parent]]:
    """Seed -> the finished runs of a method, one for each task.

    Args:
        budget: where the method was run with several.
        tasks: those that are wanted; none: all that the study has. The runs of a seed are in the order of their names.
        seeds: likewise.

    Raises:
        ConfigError: there is no such study, method, task or seed, a run is missing, or there are two for one place.
        DataError: a record cannot be read.
    """
    runs = _alone(_finished(outputs, study))
    methods = {record.cell.method for _, record in runs}
    if method not in methods:
        raise ConfigError(f"method={method}: no finished run in study {study}; {near(method, methods)}")
    runs = [run for run in runs if run[1].cell.method == method and budget in (None, run[1].cell.budget)]
    wanted = sorted(tasks or {record.cell.task for _, record in runs})
    places: dict[tuple[int, str], Path] = {}
    for folder, record in runs:
        if record.cell.task not in wanted:
            continue
        place = record.cell.seed, record.cell.task
        if place in places:
            both = f"{places[place].parent.name} and {folder.parent.name}"
            raise ConfigError(f"{study}: {both} are both of {method} on {place[1]}, seed {place[0]}; budget= chooses")
        places[place] = folder
    numbers = sorted(seeds) or sorted({seed for seed, _ in places})
    missing = [f"{task}, seed {seed}" for seed in numbers for task in wanted if (seed, task) not in places]
    if missing or not numbers:
        of = shown(method if budget is None else f"{method} with budget={budget}")
        raise ConfigError(f"{study}: no finished run of {of} on {missing[0] if missing else ', '.join(wanted)}")
    return {seed: [parent(places[seed, task]) for task in wanted] for seed in numbers}


def matching(outputs: Path, study: str, **wanted: str) -> list[Parent]:
    """The finished runs of a study that learned one task, whose cell has these values (method, budget, task, seed).

    Raises:
        ConfigError: there is no such study, or no such run in it.
        DataError: a record cannot be read.
    """
    runs = [run for run in _alone(_finished(outputs, study)) if run[1].hashes.delta is not None]
    for key, value in wanted.items():
        known = {str(getattr(record.cell, key)) for _, record in runs}
        runs = [run for run in runs if str(getattr(run[1].cell, key)) == value]
        if not runs:
            raise ConfigError(f"{key}={shown(value)}: no finished run in study {study}; {near(value, known)}")
    return [parent(folder) for folder, _ in runs]


def _finished(outputs: Path, study: str) -> list[tuple[Path, Record]]:
    paths = [path for path in find_records(study_folder(outputs, study, "from=")) if glance(path).status == "done"]
    runs = [
        (path.parent, read_record(path)) for path in paths if "-" not in path.parent.name
    ]  # others were moved aside
    return [run for run in runs if run[1].made is None]


def _alone(runs: Sequence[tuple[Path, Record]]) -> list[tuple[Path, Record]]:
    """Those that learned one task."""
    return [run for run in runs if "tasks" not in run[1].config["task"]]


def joint_run(outputs: Path, study: str, parents: Sequence[Parent]) -> Parent | None:
    """The finished run of a study that learned the tasks of these runs together, and else as they did.

    It is of their method with its keys, budget, seed, backbone and training rows; of several one that has their
    protocol, where one has.

    Args:
        parents: runs of one task each, of one seed.
    """
    first = parents[0].record
    rows = {f"train_{one.record.cell.task}": one.record.hashes.data.get("train") for one in parents}
    same = [
        (folder, record)
        for folder, record in _finished(outputs, study)
        if {name: sha256 for name, sha256 in record.hashes.data.items() if name.startswith("train_")} == rows
        and (record.cell.method, record.cell.budget, record.cell.seed)
        == (first.cell.method, first.cell.budget, first.cell.seed)
        and all(record.config[part] == first.config[part] for part in ("model", "method"))
        and record.hashes.weights == first.hashes.weights
    ]
    same.sort(key=lambda run: run[1].config["protocol"] != first.config["protocol"])
    return parent(same[0][0]) if same else None


def joint_words(parents: Sequence[Parent]) -> list[str]:
    """The words of a run that learns the tasks of these together, and else as the first of them did."""
    first = parents[0].record
    keys = {word: word.lstrip("+~").partition("=")[0].partition(".")[0] for word in first.overrides}
    tasks = ",".join(sorted(one.record.cell.task for one in parents))
    return [
        *(word for word, key in keys.items() if key not in ("task", "init_from")),
        "task=joint",
        f"task.tasks=[{tasks}]",
    ]
