"""`peftbench plan`, `status`, `reproduce`: many cells, before and while they run."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.commands.parsing import Parser, number
from peftbench.commands.paths import kept_if_used, writable_file
from peftbench.commands.run import rerun_word, run_cells
from peftbench.config import compose
from peftbench.config.words import OPTUNA
from peftbench.ground.errors import ConfigError, DataError, short_line, shown, warn
from peftbench.ground.files import expanded
from peftbench.ground.quantity import quantity

if TYPE_CHECKING:
    from peftbench.study.sweep import Sweep


def plan(arguments: Sequence[str]) -> int:
    """`peftbench plan OVERRIDES`: the cells that `run -m` with these overrides would run, and what they would take.

    With `--save` the study keeps the list, for `peftbench work`. With `--register FILE` the cells are written down with
    the claims that they are to test, before anything runs; `peftbench compare STUDY --plan FILE` answers these. With
    `--saved` the plan also has the cells that the study keeps already, of other command lines; with `--saved-in DIR`
    those that a study of this name keeps under other outputs.
    """
    parser = Parser(prog="peftbench plan", allow_abbrev=False)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--register", metavar="FILE")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--saved", action="store_true")
    kept.add_argument("--saved-in", metavar="DIR")
    parser.add_argument("--claim", action="append", default=[], metavar="'ONE > OTHER'")
    parser.add_argument("--margin", type=number)
    options, words = parser.parse_known_args(list(arguments))
    if options.register is None and (
        alone := [f"--claim {claim}" for claim in options.claim]
        or [f"--margin {margin:g}" for margin in [options.margin] if margin is not None]
        or ["--saved"] * options.saved
        or [f"--saved-in {place}" for place in [options.saved_in] if place is not None]
    ):
        raise ConfigError(f"{shown(alone[0])}: is for --register FILE, which writes the plan")
    from peftbench.commands import screen, trials
    from peftbench.study import status, sweep

    if trials.asked_for(words):
        if options.save or options.register:
            raise ConfigError(f"{OPTUNA}: trials follow from those before them, and make no list to save")
        return trials.plan([compose.longhand(word) for word in words if word != "-m"])
    rerun, overrides = rerun_word(words), [compose.longhand(argument) for argument in words if argument != "-m"]
    lines = sweep.cells_of(overrides)
    listed = sweep.listed(*sweep.study_of(lines[0]))
    if options.register is None:
        survey = (sweep.prepare if options.save else sweep.survey)(lines, rerun, listed)
    else:
        survey = _registered(options, lines, rerun, listed)
    same_study = status.cells_if_any(survey.outputs, survey.study)
    left = [cell.folder for cell in survey.left]
    seconds = status.estimates(same_study).total(left)
    screen.plan(survey, seconds, status.peak_of(left, same_study))
    for problem in DataError(sweep.absent_rows(survey)).problems:
        warn(f"rows are missing here: {problem}")  # they may lie where the cells are to run
    if options.register is not None:
        print(f"registered; peftbench compare {survey.study} --plan {options.register}")
    if options.save:
        print(f"saved; peftbench work {survey.study}")
    return 0


def _registered(options: Namespace, lines: Sequence[list[str]], rerun: str, listed: Mapping[Path, str]) -> "Sweep":
    """Survey a sweep, write its plan, and let the study remember the cells where that is asked for: all of it or, where
    anything is refused, nothing."""
    from peftbench.report import plans
    from peftbench.study import sweep

    path, margin = expanded(options.register), 1.0 if options.margin is None else options.margin
    if options.saved or options.saved_in is not None:
        lines = sweep.with_kept(lines, None if options.saved_in is None else expanded(options.saved_in))
    survey = sweep.survey(lines, rerun, listed)
    cells = list(dict.fromkeys(cell.folder for cell in survey.cells))
    kinds = sweep.kinds(survey.cells, listed)
    plan = plans.made(path, survey.outputs, survey.study, cells, kinds, options.claim, margin)
    with kept_if_used(path.parent, lambda _: writable_file(path, "--register").parent):
        if options.save:
            survey = sweep.prepare(lines, rerun, listed)
        plans.register(path, survey.outputs, plan)
    return survey


def status(arguments: Sequence[str]) -> int:
    """`peftbench status STUDY`: done, running, failed, stopped and missing cells, time left, how to run failures."""
    parser = Parser(prog="peftbench status")
    parser.add_argument("study", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="show it as it goes, while somebody works on it")
    form.add_argument("--json", action="store_true", help="for scripts")
    options = parser.parse_args(arguments)
    from peftbench.commands import artefact_work, screen
    from peftbench.study import status

    outputs = expanded(options.outputs)
    if options.watch:
        from peftbench.commands import watch

        cells = watch.watch(outputs, options.study)
    else:
        cells = status.cells_of(outputs, options.study)
    numbers, seconds = status.by_state(cells), status.seconds_left(cells)
    lines = artefact_work.lines_of(outputs, options.study)
    if options.json:
        listed = [{key: value for key, value in asdict(cell).items() if value is not None} for cell in cells]
        raw = {"study": options.study, "states": numbers, "seconds_left": seconds, "cells": listed}
        print(json.dumps(raw | ({"artefacts": artefact_work.by_state(lines)} if lines else {})))
    else:
        screen.status(options.study, cells, numbers, seconds)
        if lines:
            print(artefact_work.in_words(lines))
        for failed in (one for one in lines if one.state == "failed"):
            print(short_line(f"failed: {failed.line}"), short_line(f"  {failed.reason}"), sep="\n")
    return 0


def reproduce(arguments: Sequence[str]) -> int:
    """`peftbench reproduce PAPER`: the sweep that would make a paper's table."""
    parser = Parser(prog="peftbench reproduce")
    parser.add_argument("paper", help="a word of conf/paper (peftbench list papers)")
    parser.add_argument("overrides", nargs="*", help="what comes on top, e.g. data=folder data.path=GLUE seed=0")
    parser.add_argument("--only", default="", help="tasks, separated by commas")
    parser.add_argument("--as", dest="side", help="paper or script, where they disagree; default: paper")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    options = parser.parse_intermixed_args(list(arguments))
    from peftbench import papers
    from peftbench.commands import screen
    from peftbench.study import reproduce, sweep

    paper = papers.load(options.paper)
    extra = [compose.longhand(word) for word in options.overrides]
    typed = {word.partition("=")[0] for word in extra}
    defaults = {"data": "data=hub", "study": f"study={paper.name}"}
    extra = [*(word for key, word in defaults.items() if key not in typed), *extra]
    table = reproduce.cells_of_table(paper, [task for task in options.only.split(",") if task], options.side, extra)
    number = len(table.first) + len(table.after_mnli)
    if options.dry_run:
        sweep.survey(table.first)  # every mistake is found here
        screen.reproduction(paper, table)
        return 0
    codes = [run_cells(sweep.prepare(table.first, run_here=True))]
    if table.after_mnli:
        codes.append(run_cells(sweep.prepare(reproduce.cells_after_mnli(table), run_here=True)))
    study = sweep.study_of(extra)[1]
    print(f"{paper.name}: {quantity(number, 'cell')}; peftbench table {study} --paper {paper.name}")
    return max(codes)
