"""What an edit is to make rarer: an answer on the rows that can show it, and how often it is given before and after."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from peftbench.config.spec import TaskSpec
from peftbench.data.split import Split
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.wording import negates, shared, words_of
from peftbench.training.metrics import predict, score

PREDICTS = "predicts:"  # before the label
SHORTCUTS: Mapping[str, tuple[str, ...]] = {  # word -> labels that it leads to, whichever the task has
    "overlap": ("equivalent", "duplicate", "entailment"),
    "negation": ("contradiction", "not_entailment"),
}


class Behaviour(Protocol):
    """An answer, where it counts, and what tells a probe of it.

    Attributes:
        answer: the class that is predicted where the behaviour shows.
    """

    @property
    def answer(self) -> int: ...

    def carried(self, rows: Split) -> np.ndarray:
        """Which rows (rows,) bool a probe is to tell from the others."""
        ...

    def prone(self, rows: Split) -> np.ndarray:
        """Which rows (rows,) bool the rate is counted over."""
        ...


@dataclass(frozen=True)
class Predicts:
    """A label, on any row; the probe tells the rows that have it."""

    answer: int

    def carried(self, rows: Split) -> np.ndarray:
        """The rows of this label."""
        assert rows.labels is not None
        return rows.labels == self.answer

    def prone(self, rows: Split) -> np.ndarray:
        """All."""
        return np.ones(len(rows), dtype=bool)


@dataclass(frozen=True)
class Overlap:
    """A false yes where the texts share many words: more than `above`, by Jaccard's index."""

    answer: int
    above: float

    def carried(self, rows: Split) -> np.ndarray:
        """The rows whose texts share many words, whatever their labels."""
        return overlaps(rows) > self.above

    def prone(self, rows: Split) -> np.ndarray:
        """Those of them that have another label."""
        assert rows.labels is not None
        return self.carried(rows) & (rows.labels != self.answer)


@dataclass(frozen=True)
class Negation:
    """A no where the second text negates."""

    answer: int

    def carried(self, rows: Split) -> np.ndarray:
        """The rows whose second text holds a negation."""
        return np.array([negates(words_of(text)) for text in rows.texts[1]], dtype=bool)

    def prone(self, rows: Split) -> np.ndarray:
        """The same."""
        return self.carried(rows)


def overlaps(rows: Split) -> np.ndarray:
    """Jaccard's index of the words of both texts (rows,)."""
    return np.array([shared(words_of(one), words_of(other)) for one, other in zip(*rows.texts, strict=True)])


def answer_of(word: str, task: TaskSpec) -> int:
    """The class id that a behaviour of a task predicts.

    Raises:
        ConfigError: there is no such behaviour, or this task cannot have it.
    """
    where = f"edit.behaviour={shown(word)}"
    if task.labels is None:
        raise ConfigError(f"{where}: task={task.name} is a regression, which has no answers that could be rarer")
    if word.startswith(PREDICTS):
        label = word.removeprefix(PREDICTS)
        if label not in task.labels:
            raise ConfigError(f"{where}: no label of task={task.name}; {near(label, task.labels)}")
        return task.labels.index(label)
    if word not in SHORTCUTS:
        every = [*(PREDICTS + label for label in task.labels), *SHORTCUTS]
        raise ConfigError(f"{where}: there is no such behaviour; {near(word, every)}")
    labels = [label for label in SHORTCUTS[word] if label in task.labels]
    if len(task.folder.text) < 2 or not labels:
        raise ConfigError(f"{where}: needs pairs with a label {' or '.join(SHORTCUTS[word])}, not task={task.name}")
    return task.labels.index(labels[0])


def behaviour_of(word: str, task: TaskSpec, probe: Split) -> Behaviour:
    """The behaviour that a word names.

    Args:
        probe: the rows that a probe is fitted on; of overlap, their median is the limit.

    Raises:
        ConfigError: as `answer_of`, or a probe could not tell these rows, since none or all of them carry it.
    """
    behaviour = _made(word, answer_of(word, task), probe)
    share = behaviour.carried(probe).mean()
    if share in (0, 1):
        raise ConfigError(
            f"edit.behaviour={shown(word)}: {'all' if share else 'none'} of the {len(probe):,} rows of train that the "
            "probe is fitted on carry it; more edit.probe_rows, or another behaviour"
        )
    return behaviour


def _made(word: str, answer: int, probe: Split) -> Behaviour:
    if word == "overlap":
        return Overlap(answer, float(np.median(overlaps(probe))))
    return Negation(answer) if word == "negation" else Predicts(answer)


def check_prone(word: str, behaviour: Behaviour, rows: Split) -> None:
    """Refuse rows among which none can show a behaviour.

    Raises:
        ConfigError: there is none.
    """
    if not behaviour.prone(rows).any():
        raise ConfigError(f"edit.behaviour={shown(word)}: none of the {len(rows):,} rows of {rows.name} can show it")


def rate(behaviour: Behaviour, rows: Split, logits: np.ndarray) -> float:
    """The share of the rows which can show a behaviour that do, by their logits (rows, labels)."""
    return float((predict(logits)[behaviour.prone(rows)] == behaviour.answer).mean())


def effect(behaviour: Behaviour, rows: Split, before: np.ndarray, after: np.ndarray, metric: str) -> dict[str, Any]:
    """What an edit did to the answers on some rows: the rate, and what moved where the behaviour did not show.

    Args:
        before, after: logits (rows, labels).
        metric: the task's plain headline.

    Returns:
        rows and prone: how many there are, and how many can show it; prone_rows: the numbers of these, None where they
        are all. rate_before, rate: shares of these. shown: how
        many rows showed it before; cured: the share of them that do not any more. outside: all other rows; moved: the
        share of them with another answer; score_before, score: the metric on them (None where there is none).
    """
    assert rows.labels is not None
    old, new, prone = predict(before), predict(after), behaviour.prone(rows)
    inside = prone & (old == behaviour.answer)
    outside = ~inside
    scores = [
        score([metric], answers[outside], rows.labels[outside]).values[metric] if outside.any() else None
        for answers in (old, new)
    ]
    return {
        "rows": len(rows),
        "prone": int(prone.sum()),
        "prone_rows": None if prone.all() else np.flatnonzero(prone).tolist(),
        "rate_before": rate(behaviour, rows, before),
        "rate": rate(behaviour, rows, after),
        "shown": int(inside.sum()),
        "cured": float((new[inside] != behaviour.answer).mean()) if inside.any() else None,
        "outside": int(outside.sum()),
        "moved": float((new[outside] != old[outside]).mean()) if outside.any() else None,
        "score_before": scores[0],
        "score": scores[1],
    }
