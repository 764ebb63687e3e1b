"""`peftbench score`: what is made of finished runs, and stands in the same tables."""

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
