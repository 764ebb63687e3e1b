"""The sweep that would make a published table: which cells, in which order, and what of the table cannot be made."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peftbench.config import compose
from peftbench.ground.errors import ConfigError, near
from peftbench.ground.files import DELTA_FILE, expanded
from peftbench.papers import Paper, Row
from peftbench.study.sweep import cells_of


@dataclass
class Reproduction:
    """The cells of a table.

    Attributes:
        first: overrides of the cells that need no other.
        after_mnli: overrides of those that start from an MNLI run, and the overrides of that run.
        missing: what of the table cannot be made, with the reason.
    """

    first: list[list[str]] = field(default_factory=list)
    after_mnli: list[tuple[list[str], list[str]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def cells_of_table(paper: Paper, only: Sequence[str], side: str | None, extra: Sequence[str]) -> Reproduction:
    """Every cell of a paper's table.

    Args:
        only: tasks; empty: all with a published figure.
        side: which side is taken where paper and scripts disagree: a key of `paper.switch`; None: its first.
        extra: overrides that come on top, study and data among them.

    Raises:
        ConfigError: a task or side is unknown, or the paper has no scores.
    """
    tasks = _tasks(paper, only)
    settings = _settings(paper, side)
    table = Reproduction()
    if paper.unscored:
        table.missing.append(f"{', '.join(paper.unscored)}: scores are not public, and nothing stands beside ours")
    for row in paper.rows:
        if row.run is None:
            why = "this bench has no such backbone" if row.model is None else "this bench has no such method"
            table.missing.append(f"{row.name} ({row.backbone}, {row.trainable or 'no count printed'}): {why}")
            continue
        method = row.run[0].partition("=")[2]
        known = method in paper.of
        starting = [task for task in tasks if known and task in paper.starts_from_mnli]
        direct = [task for task in tasks if task in (*row.scores, *paper.unscored) and task not in starting]
        mnli = {seed_of(words): words for words in _cells(paper, row, "mnli", settings, extra)} if starting else {}
        for task in [*(["mnli"] if mnli and "mnli" not in direct else []), *direct]:
            table.first += _cells(paper, row, task, settings, extra)
        for task in starting:
            for words in _cells(paper, row, task, settings, extra):
                table.after_mnli.append((words, mnli[seed_of(words)]))
        if paper.of and not known:
            table.missing.append(f"{row.name}: its settings are not published; this bench's defaults are used")
    return table


def cells_after_mnli(table: Reproduction) -> list[list[str]]:
    """Overrides of the cells that start from an MNLI run, once those runs are there.

    Raises:
        ConfigError: an MNLI run has not left its delta.
    """
    lines, problems = [], {}
    for words, mnli in table.after_mnli:
        cell = compose.cell_from(mnli)
        folder = expanded(cell.outputs) / cell.folder
        if (folder / DELTA_FILE).is_file():
            lines.append([*words, f"init_from={folder}"])
        else:
            problems[str(folder)] = f"{folder}: no {DELTA_FILE}; the runs that start from this MNLI run cannot start"
    if problems:
        raise ConfigError(list(problems.values()))
    return lines


def seed_of(words: Sequence[str]) -> str:
    """The seed among the overrides of a cell."""
    return next((word for word in reversed(words) if word.startswith("seed=")), "seed=0")


def _tasks(paper: Paper, only: Sequence[str]) -> list[str]:
    tasks = [*(task for task in paper.scored_tasks() if task != "ax"), *paper.unscored]
    if not tasks:
        raise ConfigError(f"paper {paper.name}: its scores per task are not public; only its counts can be checked")
    if wrong := [task for task in only if task not in tasks]:
        raise ConfigError([f"--only {task}: not in this paper's table; {near(task, tasks)}" for task in wrong])
    return [task for task in tasks if not only or task in only]


def _settings(paper: Paper, side: str | None) -> dict[str, list[str]]:
    """Overrides by method or task, where paper and scripts disagree."""
    if side is not None and side not in paper.switch:
        raise ConfigError(f"--as {side}: {near(side, paper.switch) if paper.switch else 'nothing to choose here'}")
    lines = paper.switch[side or next(iter(paper.switch))] if paper.switch else ()
    return {key: words.split() for key, _, words in (line.partition(": ") for line in lines)}


def _cells(paper: Paper, row: Row, task: str, settings: dict[str, list[str]], extra: Sequence[str]) -> list[list[str]]:
    """Overrides of one row's cells on one task, a cell per seed."""
    assert row.run is not None
    method = row.run[0].partition("=")[2]
    words = [f"task={task}", f"model={row.model}", *row.run, *paper.protocol, "select=none"]
    if method in paper.of:
        keys = paper.tasks.get(task, {}).items()
        words += [f"{key}={value}" if "." in key else f"protocol.{key}={value}" for key, value in keys]
        words += [*settings.get(method, []), *settings.get(task, [])]
    typed = {word.partition("=")[0] for word in extra}
    return cells_of([*(word for word in words if word.partition("=")[0] not in typed), *extra])
