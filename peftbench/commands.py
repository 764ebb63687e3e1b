"""What each command does. torch is imported by those that need it, when they need it."""

import functools
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from peftbench import compose, results
from peftbench.errors import ConfigError, DataError, near
from peftbench.files import DELTA_FILE, RECORD_FILE
from peftbench.study import search

PLURALS = {"models": "model", "tasks": "task", "methods": "method", "protocols": "protocol"}
PLURALS |= {"budgets": "budget", "trackers": "tracker", "experiments": "experiment", "scopes": "scope"}


def run(arguments: Sequence[str]) -> int:
    """`peftbench run`: check everything, then let Hydra run one cell or sweep over many."""
    from hydra import main as hydra_main
    from hydra._internal.utils import get_args_parser

    arguments = [compose.longhand(argument) for argument in arguments]
    asked = get_args_parser().parse_args(list(arguments))
    only_shows = asked.help or asked.hydra_help or asked.cfg or asked.info or asked.shell_completion
    if not only_shows:
        for overrides in cells_of(asked):
            compose.cell_from(overrides)
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(run_cell(config))

    sys.argv = [sys.argv[0], *arguments]
    hydra_main(config_path=str(compose.conf_dir()), config_name=compose.CONFIG_NAME, version_base="1.3")(task)()
    failed = [code for code in codes if code]
    if len(codes) > 1:
        print(f"{len(codes)} cells: {len(codes) - len(failed)} done, {len(failed)} failed")
    return max(failed, default=0)


def run_cell(config: DictConfig) -> int:
    """Run one composed cell, say how it went; returns its exit code. The last line printed is the record's path."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from peftbench import screen
    from peftbench.errors import BadInput

    hydra = HydraConfig.get()
    overrides = list(hydra.overrides.task)
    with open_dict(config):
        config.hydra = hydra
    try:
        cell = compose.build(config)
        path = Path(cell.outputs).expanduser() / cell.folder / RECORD_FILE
        if (record := results.finished(path)) is not None:
            screen.already_done(record, path)
            return 0
        from peftbench.run import run as run_it

        found = None
        if cell.select.factors is not None:
            found = search.search(cell, functools.partial(run_try, overrides))
            screen.searched(found)
        outcome = run_it(cell, compose.resolved(config), overrides, found)
    except BadInput as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return error.exit_code
    screen.summary(outcome.record)
    print(outcome.path, flush=True)
    if outcome.error is None:
        return 0
    return getattr(outcome.error, "exit_code", 1)


def run_try(overrides: Sequence[str], words: Sequence[str]) -> tuple[results.Record, str]:
    """One try of a search: find its record, or run it; gives the record and the try's folder."""
    from peftbench.run import run as run_it

    config = compose.load([*overrides, *words])
    cell = compose.build(config)
    record = results.finished(Path(cell.outputs).expanduser() / cell.folder / RECORD_FILE)
    if record is None:
        record = run_it(cell, compose.resolved(config), [*overrides, *words]).record
    return record, cell.folder


def cells_of(asked: Namespace) -> list[list[str]]:
    """The overrides of every cell that a command line describes: one, or a sweep's."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not asked.multirun:
        return [asked.overrides]
    parser = OverridesParser.create()
    problems = []
    parsed = []
    for override in asked.overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException:
            problems.append(f"{override}: not of the form key=value or key=value1,value2")
    if problems:
        raise ConfigError(problems)
    plain = [item.input_line for item in parsed if not item.is_sweep_override()]
    swept = dict(compose.load([str(line) for line in plain]).hydra.sweeper.params or {})
    typed = {item.key_or_group for item in parsed}
    lines = [f"{key}={value}" for key, value in swept.items() if key not in typed]
    batches = BasicSweeper.split_arguments(parser.parse_overrides(lines) + parsed, max_batch_size=None)
    return [list(overrides) for batch in batches for overrides in batch]


def count(arguments: Sequence[str]) -> int:
    """`peftbench count`: trainable entries by closed inspection of a model without weights."""
    as_json = "--json" in arguments
    cell = compose.cell_from([argument for argument in arguments if argument != "--json"])
    from peftbench import screen
    from peftbench.run import plan

    counts = plan(cell)
    if as_json:
        print(json.dumps({key: value for key, value in counts.as_dict().items() if key != "stored_bytes"}))
    else:
        screen.counts(cell, counts)
    return 0


def list_words(arguments: Sequence[str]) -> int:
    """`peftbench list GROUP`: the words that can be chosen, with the first line of each one's file."""
    groups = [PLURALS.get(word, word) for word in arguments] or [*compose.GROUPS]
    for group in groups:
        if group not in compose.GROUPS:
            raise ConfigError(f"list {group}: no such group; {near(group, [*compose.GROUPS, *PLURALS])}")
    from peftbench import screen

    for group in groups:
        screen.words(group, {word: compose.describe(group, word) for word in compose.words(group)})
    return 0


def table(arguments: Sequence[str]) -> int:
    """`peftbench table STUDY`: mean and spread over seeds, one row per method."""
    parser = ArgumentParser(prog="peftbench table")
    parser.add_argument("study", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    asked = parser.parse_args(arguments)
    from peftbench.report.table import show

    show(Path(asked.outputs), asked.study)
    return 0


def export(arguments: Sequence[str]) -> int:
    """`peftbench export RUN --to DIR`: a LoRA run's adapter and head in PEFT's format."""
    parser = ArgumentParser(prog="peftbench export")
    parser.add_argument("run", help="folder of a finished LoRA run")
    parser.add_argument("--to", required=True, help="folder to write")
    asked = parser.parse_args(arguments)
    if not (Path(asked.run) / DELTA_FILE).is_file():
        raise DataError(f"{asked.run}: no {DELTA_FILE} there; it must be the folder of a finished run")
    from peftbench.deltas import export_peft

    export_peft(Path(asked.run), Path(asked.to))
    print(asked.to)
    return 0


COMMANDS = {"run": run, "count": count, "list": list_words, "table": table, "export": export}
