"""Words of a text: whether it negates, and how many of them two texts share."""

import re

WORD = re.compile(r"\w+(?:'\w+)*|'\w+")
NEGATIONS = frozenset(("no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "cannot"))


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(text.lower().replace("’", "'"))


def negates(words: list[str]) -> bool:
    """Whether one of these is in `NEGATIONS`, or ends in n't."""
    return any(word in NEGATIONS or word.endswith("n't") for word in words)


def shared(one: list[str], other: list[str]) -> float:
    """Jaccard's index of two texts' words: the share of all different ones that both have."""
    return len(set(one) & set(other)) / max(1, len({*one, *other}))
