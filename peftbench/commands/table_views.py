"""What `peftbench table --show` can show of a study: a word and the function that makes the view."""

import importlib
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from peftbench.commands.parsing import Parser
from peftbench.ground.errors import ConfigError, near, shown

if TYPE_CHECKING:
    from peftbench.report.records import Study
    from peftbench.report.sheet import Sheet

SCORES = "scores"
OPTIONS = {"paper": SCORES, "data": "subsets", "constants": "pscp"}  # option -> the one view that it belongs to
MODULES = {  # word -> the module of `peftbench.report` whose `sheet` makes the view of a study alone
    "aggregates": "aggregates",
    "calibration": "calibration",
    "consistency": "consistency",
    "cost": "cost",
    "rates": "sensitivity",
    "forgetting": "forgetting",
    "sequences": "sequences",
    "edits": "edits",
    "shots": "few",
    "distances": "distances",
    "merges": "merges",
}
WORDS = (SCORES, *MODULES, "subsets", "pscp")


def add_options(parser: Parser) -> None:
    """The options that choose a view, and those of single views."""
    parser.add_argument("--show", default=SCORES, metavar="WORD", help=f"one of: {', '.join(WORDS)}")
    parser.add_argument("--paper", help="a word of conf/paper, whose figures stand beside ours")
    parser.add_argument("--data", metavar="DIR", help="for subsets: where the rows lie, if not where the runs had them")
    of_pscp = "for pscp: c_p, c_f, c_m, beta_p, beta_f, beta_m"
    parser.add_argument("--constants", nargs="+", metavar="KEY=VALUE", help=of_pscp)


def check(options: Namespace) -> None:
    """Refuse what cannot be shown, before anything is read.

    Raises:
        ConfigError: there is no such view, or an option belongs to another.
    """
    if options.show not in WORDS:
        raise ConfigError(f"--show {shown(options.show)}: there is no such view; {near(options.show, WORDS)}")
    for option, word in OPTIONS.items():
        if getattr(options, option) is not None and options.show != word:
            raise ConfigError(f"--{option}: is for --show {word}, not for {options.show}")


def view(options: Namespace) -> "Callable[[Study], Sheet]":
    """What makes the view of a study.

    Raises:
        ConfigError: there is no such paper, or a constant is not possible.
    """
    from peftbench import papers
    from peftbench.report import pscp, render, subsets, table
    from peftbench.study.recorded import texts_of

    if options.show == SCORES:
        paper = papers.load(options.paper) if options.paper is not None else None
        return lambda study: render.sheet(table.build(study, paper))
    if options.show == "pscp":
        at = pscp.constants(options.constants or ())
        return lambda study: pscp.sheet(study, at)
    if options.show == "subsets":
        return lambda study: subsets.sheet(study, partial(texts_of, folder=options.data))
    made: Callable[[Study], Sheet] = importlib.import_module(f"peftbench.report.{MODULES[options.show]}").sheet
    return made
