"""Two methods of a study in words: on every task, then over all of them."""

import math
from collections.abc import Sequence

from peftbench.ground.errors import ConfigError
from peftbench.report import aggregates, columns, over_tasks, verdict
from peftbench.report.over_tasks import OverTasks
from peftbench.report.records import Study
from peftbench.report.statistics import MARGIN, MOST_SEEDS, Estimate, Interval, Paired
from peftbench.report.table import apart, row_named
from peftbench.report.verdict import Verdict, Word

MOST_NAMED = 4  # runs without predictions that a line names


def lines(study: Study, first: str, second: str, margin: float = MARGIN) -> list[str]:
    """The verdicts in one sentence, every task with its numbers, the means over tasks, and what was tested how.

    Args:
        study: its records.
        first: a row's name, or the method's alone where one row has it.
        second: likewise.
        margin: points within which two methods count as equal.

    Raises:
        ConfigError: a row is not in the study's table, both words are of one row, the two have no task and seed in
            common, or the margin is none.
    """
    check_margin(margin)
    rows = apart(study)[0]
    names = list(dict.fromkeys(rows["name"])) if len(rows) else []
    first, second = (row_named(word, names, study.name) for word in (first, second))
    if first == second:
        raise ConfigError(f"{first} is both sides; name two rows of study {study.name}")
    both = columns.read(study, rows[rows["name"].isin([first, second])])
    pairs = {column.name: paired for column in both if (paired := column.paired(first, second)) is not None}
    if not pairs:
        raise ConfigError(f"{first} and {second}: no task and seed in common in study {study.name}")
    verdicts = verdict.judge(
        {(first, second, name): paired for name, paired in pairs.items()},
        "tasks",
        margin,
        {column.name: column.rows or 0 for column in both},
    )
    said = [summary(verdicts, first, second), *(sentence(item, pairs[item.column]) for item in verdicts)]
    alone = columns.by_task([column for column in both if column.name in pairs])
    tasks = {column.name: paired for column in alone if (paired := column.paired(first, second)) is not None}
    noise = {task: paired for task, paired in tasks.items() if paired.seeds > 1}
    beside = f"; equality within {margin:g} likewise, by two one-sided tests"
    if (together := over_tasks.combine(noise)) is not None:
        said += over_all(together, len(noise), margin)
        beside += "; not corrected: what is said over tasks"
    if several := [column.name for column in alone if column.name not in pairs]:
        said.append(f"one task where it is about tasks: {'; '.join(several)}")
    if len(alone) > 1 and (left := [column.name for column in alone if column.name not in noise]):
        said.append(f"left out over tasks, fewer than two pairs of runs: {', '.join(left)}")
    unit = "splits" if any(paired.unit == "splits" for paired in tasks.values()) else "runs"
    said.append(improvement([column for column in alone if column.name in tasks], first, second, unit))
    return [*said, how(verdicts, beside)]


def check_margin(margin: float) -> None:
    """Refuse what is no margin.

    Raises:
        ConfigError: it is not above 0 and at most 100.
    """
    if not 0 < margin <= 100:
        raise ConfigError(f"--margin {margin:g}: points within which two methods count as equal; above 0, at most 100")


def summary(verdicts: Sequence[Verdict], first: str, second: str) -> str:
    """id3 against lora: ahead on mrpc acc; not decided on cola MCC."""
    order: tuple[Word, ...] = ("ahead", "behind", "tied", "not decided")
    on = {word: [item.column for item in verdicts if item.word == word] for word in order}
    parts = [f"{in_words(word, verdicts[0].margin)} on {', '.join(tasks)}" for word, tasks in on.items() if tasks]
    return f"{first} against {second}: {'; '.join(parts)}."


def in_words(word: Word, margin: float) -> str:
    """A verdict with the margin that it depends on."""
    return f"tied within {points(margin)}" if word == "tied" else word


def points(margin: float) -> str:
    """1 point, 0.5 points."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def sentence(item: Verdict, paired: Paired) -> str:
    """One task: the verdict, the numbers behind it, and, where nothing is decided, what the design could have shown."""
    word = in_words(item.word, item.margin)
    if item.seeds == 1:
        return f"{item.column}: {word}: {item.difference:+.1f} points in a single pair of runs, which tells no noise"
    decided = item.word in ("ahead", "behind")
    size = f" by {abs(item.difference):.1f} points" if decided else f": {item.difference:+.1f} points"
    larger = f"p {p_in_words(item.p_of_equality)} for a larger difference"
    p = larger if item.word == "tied" else f"p {p_in_words(item.p)}"
    text = f"{item.column}: {word}{size}{intervals(item)}, {p}, {better(item)}{of_rows(paired)}"
    if item.word != "not decided":
        return text
    return f"{text}; {_what_it_takes(item, paired)}"


def intervals(item: Verdict) -> str:
    """The interval of the test and that of the bootstrap, as they follow a difference; nothing where none is known."""
    return _intervals(item.interval, item.drawn) if item.interval else ""


def _intervals(interval: Interval, drawn: Interval | None) -> str:
    anew = f"; seeds and rows drawn anew: {_range(drawn)}" if drawn else ""
    return f" (95% interval {_range(interval)}{anew})"


def better(item: Verdict) -> str:
    """In how many seeds the first is better."""
    return f"better in {item.better} of {item.seeds} {item.unit}"


def of_rows(paired: Paired) -> str:
    """Where the noise of rows comes from, where not every run of a pair has the predictions that others have."""
    if not paired.without:
        return ""
    known = 0 if paired.resampled is None else len(paired.resampled)
    noise = f"from {known} of {paired.seeds} {paired.unit}" if known else "not known"
    more = f" and {len(paired.without) - MOST_NAMED} more" if len(paired.without) > MOST_NAMED else ""
    return f"; noise of rows {noise}: no predictions of {', '.join(paired.without[:MOST_NAMED])}{more}"


def _what_it_takes(item: Verdict, paired: Paired) -> str:
    if item.visible is None:
        return f"the difference is the same in all {item.seeds} {item.unit}, too few to show that this is no accident"
    shows = f"this design shows about {item.visible:.1f} points or more"
    larger = would(item, paired.seeds_needed(item.tests), "a difference of this size")
    return f"{shows}{larger}{for_equality(item, paired)}"


def for_equality(item: Verdict, paired: Paired) -> str:
    """How many seeds it would take to show equality within the margin, as words that go on after others."""
    goal = f"equality within {points(item.margin)} if the two are equal"
    return would(item, paired.seeds_for_equality(item.margin, item.tests), goal)


def would(item: Verdict, needed: float | None, goal: str) -> str:
    """How many seeds would show something; nothing where that is not known, or this design has them already."""
    if needed is None or needed <= item.seeds:
        return ""
    many = f"more than {MOST_SEEDS} {item.unit}" if needed > MOST_SEEDS else f"about {needed} {item.unit}"
    return f"; {f'no number of {item.unit} on these rows' if needed == math.inf else many} would show {goal}"


def over_all(together: OverTasks, tasks: int, margin: float) -> list[str]:
    """Whether the difference depends on the task, and its mean in both readings, each a test of its own."""
    said = []
    if together.interaction is not None:
        depends = "yes" if together.interaction < 0.05 else "not shown"
        said.append(f"does the difference depend on the task: {depends}, p {p_in_words(together.interaction)}")
    if together.fixed:
        said.append(f"mean of these {tasks} tasks: {_mean(together.fixed, margin, together.drawn)}")
    if together.random:
        single = "; a singular fit: the tasks differ no more than their seeds" if together.between == 0 else ""
        said.append(f"mean over all tasks like these, {tasks} of them tried: {_mean(together.random, margin)}{single}")
    return said


def improvement(tasks: Sequence[columns.Column], first: str, second: str, unit: str) -> str:
    """How often a run (or split of few labels) of the first scores above one of the second, whatever the seeds."""
    sides = [(task.repeated(first), task.repeated(second)) for task in tasks]
    figure = aggregates.improvement(sides)
    interval = f"no interval: below 3 {unit}, or all pairs of a task agree"
    if figure.low is not None and figure.high is not None:
        interval = (
            f"95% interval {100 * figure.low:.0f} to {100 * figure.high:.0f}, over {unit}; 50%: neither is better"
        )
        if min(len(side) for both in sides for side in both) < aggregates.FEW_RUNS:
            interval += f"; with so few {unit} it is too narrow, about 90% of them hold with 3"
    over = f", mean of these {len(tasks)} tasks" if len(tasks) > 1 else ""
    often = f"{first} scores above {second} in {100 * figure.value:.0f}% of pairs of {unit}{over}"
    return f"probability of improvement: {often} ({interval})"


def _mean(estimate: Estimate, margin: float, drawn: Interval | None = None) -> str:
    word = verdict.word_of(estimate.mean, estimate.p(), estimate.p_of_equality(margin))
    text = (
        f"{in_words(word, margin)}: {estimate.mean:+.1f} points{_intervals(estimate.interval(), drawn)}, "
        f"p {p_in_words(estimate.p())}"
    )
    return f"{text}; this design shows about {estimate.visible():.1f} points or more" if word == "not decided" else text


def how(verdicts: Sequence[Verdict], beside: str) -> str:
    """What was tested how, for how many tests it was corrected, and what is taken for granted.

    Args:
        beside: what else was tested, in words that go on after a semicolon.
    """
    tests = list(dict.fromkeys(item.test for item in verdicts))
    one = verdicts[0]
    several = f"corrected by Holm for {one.tests} {one.family}"
    corrected = several if one.tests > 1 else "one test, so nothing is corrected"
    normal = "; a t-test takes these differences for normal" if any("t-test" in test for test in tests) else ""
    return f"tested: {', '.join(tests)}; two-sided, 5%, {corrected}{beside}{normal}"


def p_in_words(p: float) -> str:
    """= 0.032, or < 0.001."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def _range(interval: Interval) -> str:
    return f"{interval.low:+.1f} to {interval.high:+.1f}"
