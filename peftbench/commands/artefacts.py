"""`peftbench score`, `merge`, `port`, `edit`: what is made of finished runs, and stands in the same tables; `sequence`,
which is made of none; `forgetting`, which measures them."""

from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.commands.parsing import Parser
from peftbench.commands.tables import paste
from peftbench.commands.use import add_searchpath, known_classes
from peftbench.ground import environment
from peftbench.ground.errors import ConfigError, shown
from peftbench.ground.files import expanded
from peftbench.ground.quantity import quantity

if TYPE_CHECKING:
    from peftbench.lifecycle.saved_lines import Line


def score(arguments: Sequence[str]) -> int:
    """`peftbench score RUN... task=WORD`: finished runs on another task of the same labels."""
    parser = Parser(prog="peftbench score")
    _add_runs(parser, "task=, and where needed data=, study=, outputs=, cache=, tracker=")
    _add_choices(parser)
    options = parser.parse_intermixed_args(arguments)
    runs, words = _apart(options.given, "score")
    environment.one_process("score")
    from peftbench.commands import screen
    from peftbench.config import recipes
    from peftbench.lifecycle.artefact import where_of
    from peftbench.lifecycle.parents import parent
    from peftbench.lifecycle.score import check_labels, lines, score

    if options.save:
        return _save(options, [line for run in runs for line in lines(run, words)])
    known = known_classes(options.searchpath)
    own = [] if options.searchpath is None else ["--searchpath", options.searchpath]
    every = [(run, one, where_of(one, run)) for run in map(parent, runs) for one in recipes.swept(words)]
    for run, _, where in every:
        check_labels(run, where.task)
    return max(score(run, where, ["score", str(run.folder), *one, *own], screen, known) for run, one, where in every)


def merge(arguments: Sequence[str]) -> int:
    """`peftbench merge from=STUDY method=WORD merge=WORD`: one backbone for all tasks, made of runs of one seed."""
    parser = Parser(prog="peftbench merge")
    parser.add_argument("words", nargs="*", help="from=, method=, merge= and its keys, seed=, tasks=[...], study=, ...")
    _add_choices(parser)
    options = parser.parse_intermixed_args(arguments)
    environment.one_process("merge")
    from peftbench.commands import screen
    from peftbench.lifecycle.merge import bounds, merge
    from peftbench.lifecycle.merge_words import ask, lines
    from peftbench.lifecycle.runs import joint_words

    if options.save:
        return _save(options, lines(options.words))
    codes, bounded = [], set()
    for asked in ask(options.words, known_classes(options.searchpath)):
        shown = screen.Artefacts()
        if (between := (id(asked.group), asked.job.way.heads, asked.job.way.refit_rows)) not in bounded:
            bounded.add(between)
            codes.append(bounds(asked.group, asked.job, asked.where, shown))
            if asked.group.joint is None:
                shown.no_joint_run(joint_words(asked.group.parents))
        codes.append(merge(asked.group, asked.job, asked.where, shown))
    return max(codes)


def port(arguments: Sequence[str]) -> int:
    """`peftbench port from=STUDY model=NEWER`: what old runs learned, on a newer backbone of the same shapes."""
    parser = Parser(prog="peftbench port")
    parser.add_argument(
        "words", nargs="*", help="from=, model=, model.weights=, port.steps=, ...; method=, task=, seed=, study=, ..."
    )
    _add_choices(parser)
    options = parser.parse_intermixed_args(arguments)
    environment.one_process("port")
    from peftbench.commands import screen
    from peftbench.lifecycle import port_training
    from peftbench.lifecycle.port import Settled, port
    from peftbench.lifecycle.port_words import ask, lines

    if options.save:
        return _save(options, lines(options.words))
    codes: list[int] = []
    missing: list[str] = []  # runs trained anew that are not there
    jobs = ask(options.words, known_classes(options.searchpath), options.searchpath)
    for _, same_run in groupby(jobs, key=lambda job: id(job.patch)):
        settled = Settled(screen.Artefacts())
        for job in same_run:
            codes.append(port(job, settled))
            codes += port_training.go_on(job, settled) if codes[-1] == 0 else []
            codes += port_training.ceilings(job, settled, missing.append)
        job.patch.forget()
    for line in dict.fromkeys(missing):
        print(line)
    return max(codes)


def edit(arguments: Sequence[str]) -> int:
    """`peftbench edit RUN... edit.behaviour=WORD`: runs' behaviour edited (Model Surgery), its controls, collateral."""
    parser = Parser(prog="peftbench edit")
    _add_runs(parser, "edit.behaviour=, edit.control=, edit.strength=, ...; collateral=[...], study=, ...")
    _add_choices(parser)
    options = parser.parse_intermixed_args(arguments)
    runs, words = _apart(options.given, "edit")
    environment.one_process("edit")
    from peftbench.commands import screen
    from peftbench.lifecycle.edit import edit
    from peftbench.lifecycle.edit_words import ask, lines
    from peftbench.lifecycle.parents import parent

    if options.save:
        return _save(options, [line for run in runs for line in lines(run, words)])
    own = [] if options.searchpath is None else ["--searchpath", options.searchpath]
    known = known_classes(options.searchpath)
    jobs = [job for run in map(parent, runs) for job in ask(words, run, known, own)]
    for line in dict.fromkeys(line for job in jobs for line in job.left_out):
        paste(line)
    return max(edit(job, screen.Artefacts()) for job in jobs)


def forgetting(arguments: Sequence[str]) -> int:
    """`peftbench forgetting STUDY|RUN...`: what the backbones of finished runs lost, by a probe of their states."""
    parser = Parser(prog="peftbench forgetting")
    parser.add_argument("runs", nargs="+", help="names of studies under the outputs, or folders of finished runs")
    parser.add_argument("--outputs", default="outputs", help="where the studies lie")
    text = "file of text, or folder of *.txt, for the loss of its masked tokens; default: STS-B's sentences by cosine"
    parser.add_argument("--text", help=text)
    parser.add_argument("--data", metavar="DIR", help="where STS-B lies, if not where the first run's data came from")
    parser.add_argument("--cache", default="~/.cache/peftbench", help="where tokenised rows are kept")
    add_searchpath(parser)
    options = parser.parse_args(arguments)
    environment.one_process("forgetting")
    from peftbench.config.spec import DataSpec
    from peftbench.lifecycle import forgetting

    if options.text and options.data:
        raise ConfigError(f"--data {shown(options.data, 100)}: is for the sentences of STS-B; --text brings its own")
    known = known_classes(options.searchpath)
    runs = forgetting.runs_of(options.runs, expanded(options.outputs))
    if options.text:
        probe = forgetting.masked_probe(options.text)
    else:
        own = runs[0].data if options.data is None else DataSpec("folder", "folder", options.data, None, None)
        probe = forgetting.similarity_probe(own)
    for run in runs:
        probe.check(run.model)
    measuring = forgetting.Measuring(probe, options.cache, known)
    for run in runs:
        one, was_known = measuring.measured(run)
        change = f"{one.before:.4f} to {one.after:.4f} ({one.after - one.before:+.4f})"
        paste(f"{run.folder}: {one.probe} {change}{', measured before' if was_known else ''}")
    return 0


def sequence(arguments: Sequence[str]) -> int:
    """`peftbench sequence learner=WORD`: one model over the classes of several tasks, one task after the other."""
    parser = Parser(prog="peftbench sequence")
    parser.add_argument(
        "words", nargs="*", help="sequence=, learner= and their keys, order=, model=, data=, seed=, ..."
    )
    _add_choices(parser)
    options = parser.parse_intermixed_args(arguments)
    environment.one_process("sequence")
    from peftbench.commands import screen
    from peftbench.lifecycle.sequence.words import ask, lines

    if options.save:
        return _save(options, lines(options.words))
    if options.searchpath is not None:
        raise ConfigError(f"--searchpath {shown(options.searchpath)}: a sequence takes no classes of your own")
    jobs = ask(options.words)
    from peftbench.lifecycle.sequence.sequence import sequence

    return max(sequence(job, screen.Sequences()) for job in jobs)


def _add_runs(parser: Parser, words: str) -> None:
    """What commands on runs are given."""
    parser.add_argument("given", nargs="+", metavar="RUN|WORD", help=f"folders of finished runs; {words}")


def _apart(given: Sequence[str], command: str) -> tuple[list[Path], list[str]]:
    """The runs and the words that were typed: a word has a = and before it no slash.

    Raises:
        ConfigError: there is no run.
    """
    words = [item for item in given if "=" in item and "/" not in item.partition("=")[0]]
    runs = [Path(item) for item in dict.fromkeys(given) if item not in words]
    if not runs:
        raise ConfigError(f"{command}: no run; name the folder of a finished run, or several")
    return runs, words


def _add_choices(parser: Parser) -> None:
    """What these commands have in common."""
    parser.add_argument("-m", "--multirun", action="store_true", help="as of run; words with commas are swept anyway")
    parser.add_argument("--save", action="store_true", help="make nothing: the study keeps the line for its workers")
    add_searchpath(parser)


def _save(options: Namespace, lines: Sequence[tuple[Path, str, "Line"]]) -> int:
    """Keep lines for workers, each in its study."""
    from peftbench.lifecycle import saved_lines

    if options.searchpath is not None:
        raise ConfigError("--save: a list names no classes of your own; give --searchpath without it")
    for study in dict.fromkeys(outputs / name for outputs, name, _ in lines):
        own = [line for outputs, name, line in lines if outputs / name == study]
        new = saved_lines.add(study, own)
        before = "" if len(new) == len(own) else f" ({len(own) - len(new)} of them before)"
        print(f"{study.name}: {quantity(len(own), 'line')} kept{before}; peftbench work {study.name}")
    return 0
