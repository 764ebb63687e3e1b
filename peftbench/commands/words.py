"""`peftbench list`: the words that can be chosen."""

from collections.abc import Sequence

from peftbench.config import words
from peftbench.ground.errors import ConfigError, near

PLURALS = {"models": "model", "tasks": "task", "methods": "method", "protocols": "protocol"}
PLURALS |= {
    "papers": "paper",
    "selects": "select",
    "budgets": "budget",
    "trackers": "tracker",
    "experiments": "experiment",
    "scopes": "scope",
    "shot": "shots",
}


def list_words(arguments: Sequence[str]) -> int:
    """`peftbench list GROUP`: the words that can be chosen, with the first line of each one's file; of no group: the
    commands, then the words of all groups."""
    groups = [PLURALS.get(word, word) for word in arguments] or [*words.LISTED]
    for group in groups:
        if group not in words.LISTED:
            raise ConfigError(f"list {group}: no such group; {near(group, [*words.LISTED, *PLURALS])}")
    from peftbench.commands import dispatch, screen

    if not arguments:
        print(dispatch.commands())
    for group in groups:
        screen.words(group, {word: words.describe(group, word) for word in words.words(group)})
    return 0
