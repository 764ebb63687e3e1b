"""What `peftbench table --show` can show of a study: a word and the function that makes the view."""

from collections.abc import Callable

from peftbench.ground.errors import ConfigError, near, shown
from peftbench.papers import Paper
from peftbench.report import aggregates, render, table
from peftbench.report.records import Study
from peftbench.report.sheet import Sheet

SCORES = "scores"


def view(study: Study, word: str, paper: Paper | None = None) -> Sheet:
    """The view of a word; the scores beside a paper's where one is given.

    Raises:
        ConfigError: there is no such view, or the study has not what it needs.
    """
    if word == SCORES:
        return render.sheet(table.build(study, paper))
    return VIEWS[word](study)


def check(word: str, paper: str | None) -> None:
    """Refuse what cannot be shown, before anything is read.

    Raises:
        ConfigError: there is no such view, or a paper's figures would stand beside what it did not print.
    """
    if word not in (SCORES, *VIEWS):
        raise ConfigError(f"--show {shown(word)}: there is no such view; {near(word, (SCORES, *VIEWS))}")
    if paper and word != SCORES:
        raise ConfigError(f"--show {word}: a paper's figures stand beside scores; leave out --paper {shown(paper)}")


VIEWS: dict[str, Callable[[Study], Sheet]] = {"aggregates": aggregates.sheet}
