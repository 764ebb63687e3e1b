"""What each command does. torch is imported by those that need it, when they need it."""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from peftbench.commands import results_commands
from peftbench.config import compose
from peftbench.errors import ConfigError, near

if TYPE_CHECKING:
    from peftbench.config.spec import Cell
    from peftbench.runner.counts import Counts
    from peftbench.study.sweep import Sweep

# Launchers that may not be installed -> the one of the plugin that they build on.
PLUGIN_OF = {"joblib": "joblib", "local": "joblib", "slurm": "submitit_slurm"}
PLUGIN_OF |= {"submitit_slurm": "submitit_slurm", "submitit_local": "submitit_local"}
PLURALS = {"models": "model", "tasks": "task", "methods": "method", "protocols": "protocol"}
PLURALS |= {
    "papers": "paper",
    "selects": "select",
    "budgets": "budget",
    "trackers": "tracker",
    "experiments": "experiment",
    "scopes": "scope",
}


def run(arguments: Sequence[str]) -> int:
    """`peftbench run`: check everything, then let Hydra run one cell or sweep over many."""
    from hydra._internal.utils import get_args_parser

    arguments = [compose.longhand(argument) for argument in arguments]
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))  # wherever it was typed
    asked = get_args_parser().parse_args(list(arguments))
    if asked.help or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion:
        hydra_job(arguments)
        return 0
    hydras = ("hydra.", "hydra/")  # of Hydra's own settings only this one says what a cell is
    own = [item for item in asked.overrides if not item.startswith(hydras) or item.startswith(compose.SEARCHPATH)]
    if asked.multirun:
        return sweep(arguments, own)
    compose.cell_from(own)
    return hydra_job(arguments) or 0


def sweep(arguments: Sequence[str], overrides: Sequence[str]) -> int:
    """Run what is left of a sweep; the exit code is 0, 1 where cells could not be run, or 100 and the number of those
    that failed (199 at most)."""
    from peftbench.study import sweep as study

    _check_launcher(arguments)
    return run_cells(study.plan(overrides, _rerun(overrides)), arguments)


def run_cells(found: "Sweep", arguments: Sequence[str] = ("-m",)) -> int:
    """Let Hydra run what is left of a sweep, and say how all of it stands; `arguments` are the command line's."""
    from peftbench.study import sweep as study

    if found.left:
        study.left[:] = found.left
        _launch(arguments)
    count = study.tally(found)
    notes = [
        f"{count[key]} {text}" for key, text in (("elsewhere", "with another runner"), ("left", "left")) if count[key]
    ]
    before = f" ({found.before} of them before)" if found.before else ""
    print(", ".join([f"{len(found.cells)} cells: {count['done']} done{before}", f"{count['failed']} failed", *notes]))
    return 100 + min(99, count["failed"]) if count["failed"] else int(count["left"] > 0)


def _check_launcher(arguments: Sequence[str]) -> None:
    """Refuse a launcher that is not there, before anything runs.

    Raises:
        ConfigError: it is unknown, or its plugin is not installed.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers those that are installed
    known = {name.removesuffix(".yaml") for name in ConfigStore.instance().list("hydra/launcher")}
    for word in (item.partition("=")[2] for item in arguments if item.startswith("hydra/launcher=")):
        if word not in known | set(PLUGIN_OF):
            raise ConfigError(f"hydra/launcher={word}: there is none; {near(word, [*known, *PLUGIN_OF])}")
        if PLUGIN_OF.get(word, word) not in known:
            raise ConfigError(f"hydra/launcher={word}: needs a plugin of Hydra; pip install 'peftbench[launchers]'")


def _launch(arguments: Sequence[str]) -> None:
    """Let Hydra run the sweep; a launcher whose own jobs died ends it, and what they had done counts."""
    try:
        hydra_job(arguments)
    except Exception as error:
        print(f"the launcher gave up: {str(error).strip().splitlines()[0]}", file=sys.stderr)


def hydra_job(arguments: Sequence[str]) -> int | None:
    """Hand a command line to Hydra; gives the exit code where it was one cell."""
    from hydra import main as hydra_main

    codes: list[int] = []
    sys.argv = [sys.argv[0], *arguments]

    def task(config: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        from peftbench.study.cell import run_cell, with_hydra

        hydra = HydraConfig.get()
        paths = [item for item in hydra.overrides.hydra if item.startswith(compose.SEARCHPATH)]
        codes.append(run_cell(with_hydra(config, hydra), [*paths, *hydra.overrides.task]))
        return codes[-1]

    hydra_main(config_path=str(compose.conf_dir()), config_name=compose.CONFIG_NAME, version_base="1.3")(task)()
    return codes[-1] if codes else None


def count(arguments: Sequence[str]) -> int:
    """`peftbench count`: trainable entries by closed inspection of a model without weights; a sweep gives a table."""
    if "--paper" in arguments:
        return count_paper(arguments)
    as_json = "--json" in arguments
    overrides = [compose.longhand(argument) for argument in arguments if argument not in ("--json", "-m")]
    from peftbench.study.sweep import cells_of, is_sweep

    if is_sweep(overrides) and len(every := cells_of(overrides)) > 1:
        return count_all(every, as_json)
    cell = compose.cell_from(overrides)
    from peftbench.commands import screen
    from peftbench.runner.counts import plan

    counts = plan(cell)
    if as_json:
        print(json.dumps(trained(counts)))
    else:
        screen.counts(cell, counts)
    return 0


def count_all(every: Sequence[list[str]], as_json: bool) -> int:
    """The counts of several cells; one that is not possible gives its reason instead."""
    from peftbench.commands import screen
    from peftbench.study.many import cells_from

    common = set.intersection(*map(set, every))
    names = [" ".join(word for word in words if word not in common) for words in every]
    found = {name: _planned(cell) for name, cell in zip(names, cells_from(every), strict=True)}
    if as_json:
        print(json.dumps({k: {"error": v} if isinstance(v, str) else trained(v) for k, v in found.items()}, indent=1))
    else:
        screen.counts_of_all(" ".join(word for word in every[0] if word in common), found)
    return 2 if all(isinstance(counts, str) for counts in found.values()) else 0


def _planned(cell: "Cell | ConfigError") -> "Counts | str":
    from peftbench.runner.counts import plan

    try:
        if isinstance(cell, ConfigError):
            raise cell
        return plan(cell)
    except ConfigError as error:
        return error.problems[0]


def trained(counts: "Counts") -> dict[str, int | None]:
    """What trains, by name."""
    return {key: value for key, value in counts.as_dict().items() if key != "stored_bytes"}


def count_paper(arguments: Sequence[str]) -> int:
    """`peftbench count --paper PAPER`: every count that the paper states, against ours."""
    parser = ArgumentParser(prog="peftbench count")
    parser.add_argument("--paper", required=True, help="a word of conf/paper")
    from peftbench import papers

    paper = papers.load(parser.parse_args(arguments).paper)
    from peftbench.commands import screen
    from peftbench.study import counts

    screen.paper_counts(paper, list(counts.check(paper)))
    return 0


def reproduce(arguments: Sequence[str]) -> int:
    """`peftbench reproduce PAPER`: the sweep that would make a paper's table."""
    parser = ArgumentParser(prog="peftbench reproduce")
    parser.add_argument("paper", help="a word of conf/paper (peftbench list papers)")
    parser.add_argument("overrides", nargs="*", help="what comes on top, e.g. data=folder data.path=GLUE seed=0")
    parser.add_argument("--only", default="", help="tasks, separated by commas")
    parser.add_argument("--as", dest="side", help="paper or script, where they disagree; default: paper")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    asked = parser.parse_intermixed_args(list(arguments))
    from peftbench import papers
    from peftbench.commands import screen
    from peftbench.study import reproduce as table
    from peftbench.study import sweep as study

    paper = papers.load(asked.paper)
    extra = [compose.longhand(word) for word in asked.overrides]
    typed = {word.partition("=")[0] for word in extra}
    defaults = {"data": "data=hub", "study": f"study={paper.name}"}
    extra = [*(word for key, word in defaults.items() if key not in typed), *extra]
    found = table.plan(paper, [task for task in asked.only.split(",") if task], asked.side, extra)
    cells = len(found.first) + len(found.after_mnli)
    if asked.dry_run:
        study.look_at(found.first)  # every mistake is found here
        screen.reproduction(paper, found)
        return 0
    codes = [run_cells(study.plan_of(found.first))]
    if found.after_mnli:
        codes.append(run_cells(study.plan_of(table.starting_from(found))))
    print(f"{paper.name}: {cells} cells; peftbench table {defaults['study'][6:]} --paper {paper.name}")
    return max(codes)


def list_words(arguments: Sequence[str]) -> int:
    """`peftbench list GROUP`: the words that can be chosen, with the first line of each one's file."""
    groups = [PLURALS.get(word, word) for word in arguments] or [*compose.LISTED]
    for group in groups:
        if group not in compose.LISTED:
            raise ConfigError(f"list {group}: no such group; {near(group, [*compose.LISTED, *PLURALS])}")
    from peftbench.commands import screen

    for group in groups:
        screen.words(group, {word: compose.describe(group, word) for word in compose.words(group)})
    return 0


def status(arguments: Sequence[str]) -> int:
    """`peftbench status STUDY`: done, running, failed, stopped and missing cells, time left, how to run failures."""
    parser = ArgumentParser(prog="peftbench status")
    parser.add_argument("study", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    asked = parser.parse_args(arguments)
    from peftbench.commands import screen
    from peftbench.study import status as study

    cells = study.of(Path(asked.outputs).expanduser(), asked.study)
    screen.status(asked.study, cells, study.count(cells), study.seconds_left(cells))
    return 0


def plan(arguments: Sequence[str]) -> int:
    """`peftbench plan OVERRIDES`: the cells that `run -m` with these overrides would run, and what they would take."""
    from peftbench.commands import screen
    from peftbench.study import status as study
    from peftbench.study import sweep

    rerun, overrides = _rerun(arguments), [compose.longhand(argument) for argument in arguments if argument != "-m"]
    found = sweep.look(overrides, rerun)
    near_by = [cell for name in found.studies() for cell in study.of_any(found.outputs, name)]
    left = found.folders_left()
    screen.plan(found, study.sum_of_guesses(left, study.known_seconds(near_by)), study.peak_of(left, near_by))
    return 0


def _rerun(overrides: Sequence[str]) -> str:
    return next((item.partition("=")[2] for item in reversed(overrides) if item.startswith("rerun=")), "unfinished")


COMMANDS = {
    "run": run,
    "plan": plan,
    "status": status,
    "count": count,
    "list": list_words,
    "reproduce": reproduce,
    **results_commands.COMMANDS,
}
