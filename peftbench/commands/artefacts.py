"""`peftbench score`, `merge`: what is made of finished runs, and stands in the same tables."""

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from peftbench.commands.use import add_searchpath, known_classes


def score(arguments: Sequence[str]) -> int:
    """`peftbench score RUN task=WORD`: a finished run on another task of the same labels."""
    parser = ArgumentParser(prog="peftbench score")
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("words", nargs="*", help="task=, and where needed data=, study=, outputs=, cache=")
    add_searchpath(parser)
    options = parser.parse_intermixed_args(arguments)
    from peftbench.commands import screen
    from peftbench.lifecycle.artefact import where_of
    from peftbench.lifecycle.parents import parent
    from peftbench.lifecycle.score import score

    run = parent(Path(options.run))
    where = where_of(options.words, run)
    return score(run, where, ["score", *arguments], screen, known_classes(options.searchpath))


def merge(arguments: Sequence[str]) -> int:
    """`peftbench merge from=STUDY method=WORD merge=WORD`: one backbone for all tasks, made of runs of one seed."""
    parser = ArgumentParser(prog="peftbench merge")
    parser.add_argument("words", nargs="*", help="from=, method=, merge= and its keys, seed=, tasks=[...], study=, ...")
    parser.add_argument("-m", "--multirun", action="store_true", help="as of run; words with commas are swept anyway")
    add_searchpath(parser)
    options = parser.parse_intermixed_args(arguments)
    from peftbench.commands import screen
    from peftbench.lifecycle.asked import ask
    from peftbench.lifecycle.merge import bounds, merge
    from peftbench.lifecycle.runs import joint_words

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
