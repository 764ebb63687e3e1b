"""What a person sees on the terminal."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table as Terminal
from rich.text import Text

from peftbench.commands.tables import Grid, console, paste, say, show
from peftbench.config.spec import Cell
from peftbench.ground import escape
from peftbench.ground.quantity import quantity
from peftbench.record import Record, Search
from peftbench.study.boundaries import in_words

if TYPE_CHECKING:
    from peftbench.lifecycle.sequence.matrix import TaskScores
    from peftbench.papers import Paper
    from peftbench.report.flips import Flips
    from peftbench.report.sheet import Sheet
    from peftbench.runner.counts import Counts
    from peftbench.runner.run import Outcome
    from peftbench.study.counts import Checked
    from peftbench.study.reproduce import Reproduction
    from peftbench.study.status import CellStatus, State
    from peftbench.study.sweep import Sweep


def already_done(record: Record, path: Path) -> None:
    """This cell has a finished record; it is never run again, nor overwritten."""
    say(f"already done: {record.headline.name} {score(record)}")
    print(path, flush=True)


def predicted(record: Record, path: Path) -> None:
    """This cell had a finished record, and predictions were asked for that it lacked."""
    console.print(f"already done: {record.headline.name} {score(record)}; the test rows were predicted from its delta")
    print(path, flush=True)


def elsewhere(folder: Path, owner: str) -> None:
    """Another runner has this cell."""
    print(f"{folder}: {owner} is running it")


def ended(outcome: "Outcome") -> None:
    """How a run ended. The last line is its record's path."""
    summary(outcome.record)
    print(outcome.path, flush=True)


class Artefacts:
    """A line for every artefact, and what runs look like beside each other once: there are many of both."""

    def __init__(self) -> None:
        self._described: set[str] = set()

    def already_done(self, record: Record, path: Path) -> None:
        """It has a record."""
        self._line(record, path, "already there: ")

    def ended(self, outcome: "Outcome") -> None:
        """It was made."""
        facts = outcome.record.made.facts if outcome.record.made else {}
        described = {"norms": _geometry, "distance": _moved, "scale": _setting, "residual": _residual}
        for key, describe in described.items():
            if key in facts and key not in self._described:
                self._described.add(key)
                for line in describe(facts):
                    say(line)
        for line in _edited(facts):
            say(line)
        self._line(outcome.record, outcome.path, "")

    def elsewhere(self, folder: Path, owner: str) -> None:
        """Another runner makes it."""
        elsewhere(folder, owner)

    def no_joint_run(self, words: Sequence[str]) -> None:
        """There is no run that learned all the tasks together; these words make one."""
        paste(f"joint training: no run of these tasks; this makes one: peftbench run {shlex.join(words)}")

    def predicted(self, record: Record, path: Path) -> None:
        """Not done with artefacts."""

    def searched(self, search: Search) -> None:
        """Not done with artefacts."""

    def _line(self, record: Record, path: Path, before: str) -> None:
        cell = record.cell
        paste(f"{before}{cell.task}, seed {cell.seed}, {cell.method}: {record.headline.name} {score(record)}")
        print(path, flush=True)


class Sequences(Artefacts):
    """A line for every stage, and one for the whole."""

    def stage(self, row: str, number: int, of: int, scores: "Mapping[str, TaskScores]") -> None:
        """See `sequence.Screen`."""
        tasks = ", ".join(f"{task} {100 * one.accuracy:.1f}" for task, one in scores.items())
        say(f"{row}: stage {number} of {of}: {tasks}")

    def ended(self, outcome: "Outcome") -> None:
        """It was made."""
        names = ("mean", "forgetting", "task_identification", "accuracy_given_task", "retrieval")
        chosen = outcome.record.metrics.chosen
        told = [f"{name.replace('_', ' ')} {value:.4f}" for name in names if (value := chosen.get(name)) is not None]
        say(f"{outcome.record.cell.method}: {', '.join(told)}")
        super().ended(outcome)


def _geometry(facts: Mapping[str, Any]) -> list[str]:
    norms = ", ".join(f"{task} {norm:.3g}" for task, norm in facts["norms"].items())
    pairs = [
        f"{pair} {cosine:+.3f} ({100 * facts['sign_agreement'][pair]:.0f}%)"
        for pair, cosine in facts["cosines"].items()
    ]
    lines = [f"lengths of the changes: {norms}", f"cosines (equal signs): {'; '.join(pairs)}"]
    if left_out := facts.get("left_out"):
        lines.append(f"left out, because they changed nothing: {', '.join(left_out)}")
    return lines


def _setting(facts: Mapping[str, Any]) -> list[str]:
    """The scale, with which share of entries was kept where that was chosen, and what the choice saw on held-out
    rows."""
    share = f", keep {facts['keep']:g}" if "keep" in facts else ""
    means = {setting: sum(by_task.values()) / len(by_task) for setting, by_task in facts.get("tried", {}).items()}
    tried = "; ".join(f"{setting}: {score:.4f}" for setting, score in means.items())
    lines = [f"scale {facts['scale']:g}{share}" + (f", chosen on held-out rows of {tried}" if tried else "")]
    if on := facts.get("chosen_on", {}).get("runs_that_trained_on_them"):
        said = "these runs trained on the held-out rows, too (protocol.selection is not held_out)"
        lines.append(f"{said}: {', '.join(on)}")
    return lines


def _moved(facts: Mapping[str, Any]) -> list[str]:
    share = facts["distance"] / facts["length"] if facts["length"] else 0.0
    lines = [f"the newer backbone has moved by {facts['distance']:.3g}, {share:.2%} of the old one's length"]
    if change := facts.get("change"):
        said = f"{change['length']:.3g}; cosine with that move {change['cosine']:+.3f}"
        lines.append(f"length of the run's change: {said}{_by_kind(change['cosines'])}")
    return lines


def _residual(facts: Mapping[str, Any]) -> list[str]:
    change, residual = facts["change"], facts["residual"]
    said = f"cosine of the two {change['cosine']:+.3f}{_by_kind(facts['cosines'])}"
    lines = [f"length of the change trained anew: {change['length']:.3g}; {said}"]
    said = f"{residual['length']:.3g}, {residual['in_changes']:.2f} of the new change's length"
    return [*lines, f"the two differ by {said}{_by_kind(facts['residual_in_changes'])}"]


def _edited(facts: Mapping[str, Any]) -> list[str]:
    """What an edit did to the behaviour, on the rows that were scored and on those that chose; none: it is none."""
    if (seen := facts.get("scored")) is None or (choice := facts.get("choice")) is None:
        return []
    moved = "" if seen["moved"] is None else f"; of the other {seen['outside']:,} rows {seen['moved']:.1%} moved"
    said = f"{seen['rate_before']:.1%} before, {seen['rate']:.1%} after, of {quantity(seen['prone'], 'row')}{moved}"
    on = f"on choice rows {choice['rate_before']:.1%} before, {choice['rate']:.1%} after"
    trained = "; the run trained on these, too (protocol.selection is not held_out)" if choice["trained_on"] else ""
    return [f"{facts['answer']}: {said}", f"{on}{trained}"]


def _by_kind(values: Mapping[str, float]) -> str:
    kinds = ", ".join(f"{kind} {value:+.3f}" for kind, value in values.items())
    return f" ({kinds})" if kinds else ""


def searched(search: Search) -> None:
    """A line for each thing that was searched: what was tried, the scores, and what was chosen."""
    rows = search.rows.replace("_", "-")
    what = in_words(search.strata) if search.strata else f"lr {search.chosen:g}"
    say(f"{what} chosen{_by_rule(search.error)} on {rows} rows of {_tried(search.scores)}")
    if search.chosen_head is not None:
        how = _by_rule(search.head_error)
        say(f"head_lr {search.chosen_head:g} chosen{how} on {rows} rows of {_tried(search.head_scores)}")


def _by_rule(error: float | None) -> str:
    return "" if error is None else f" (the smallest within one standard error, {error:.4f}, of the best)"


def _tried(scores: Mapping[str, float | None]) -> str:
    return "  ".join(f"{word}: {'failed' if value is None else f'{value:.4f}'}" for word, value in scores.items())


def summary(record: Record) -> None:
    """One screen: what trained, counts, headline, time, memory."""
    table = Terminal(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    cell, counts = record.cell, record.counts
    table.add_row("cell", f"{cell.task} · {cell.method} · {cell.model} · data {cell.data} · seed {cell.seed}")
    colour = "green" if record.status == "done" else "red"
    table.add_row("status", f"[{colour}]{record.status}[/]" + (f"  {_reason(record)}" if record.error else ""))
    table.add_row(record.headline.name, f"{score(record)}  (dev, selection: {record.metrics.selection})")
    if record.metrics.collapsed:
        table.add_row("", "[yellow]collapsed: the predictions are all the same[/]")
    others = {k: v for k, v in record.metrics.chosen.items() if k != record.headline.name}
    if others:
        table.add_row(
            "also",
            "  ".join(f"{name} {'not finite' if value is None else f'{value:.4f}'}" for name, value in others.items()),
        )
    if counts is not None:
        share = f"{counts.backbone / max(1, counts.model):.3%} of the model"
        table.add_row("trained", f"{quantity(counts.backbone, 'backbone entry')} ({share}) + {counts.head:,} head")
        if counts.kept not in (None, counts.backbone):
            table.add_row("kept", f"{counts.kept:,} of the backbone entries")
        if counts.stored_bytes is not None:
            table.add_row("stored", f"{counts.stored_bytes:,} bytes")
    times, speed = record.time, record.throughput
    table.add_row(
        "time",
        f"{times.total_s:.1f} s: training {times.train_s:.1f}, evaluation {times.eval_s:.1f}, "
        f"set-up {times.setup_s:.1f}",
    )
    if speed:
        table.add_row("speed", f"{speed.tokens_per_s:,.0f} tokens/s, padding {speed.padding_share:.1%}")
    table.add_row("memory", f"{record.memory.peak_mb:,.0f} MiB peak")
    console.print(table)


def counts(cell: Cell, counted: "Counts") -> None:
    """The counts of one cell as a small table."""
    trained = {"backbone, trained": counted.backbone, "head, trained": counted.head, "total, trained": counted.total}
    rows = [
        [Text(name), Text(f"{value:,}"), Text(f"{value / counted.model:.4%}")]
        for name, value in {**trained, "model": counted.model}.items()
    ]
    head = ("", "entries", "share of the model")
    show(f"{cell.method.name} on {cell.model.name}, {cell.task.name}", Grid(head, rows, ("",), head[2:]))


def counts_of_all(common: str, counted: Mapping[str, "Counts | str"]) -> None:
    """The counts of several cells as a table, and below it why some have none."""
    rows = [
        [Text(name)]
        + [Text(f"{value:,}") for value in (one.backbone, one.kept, one.head, one.total)]
        + [Text(f"{one.total / one.model:.4%}")]
        for name, one in counted.items()
        if not isinstance(one, str)
    ]
    head = ("", "at most", "kept", "head", "total", "share of the model")
    show(common, Grid(head, rows, ("",), ("share of the model", "head", "total", "kept")))
    for name, reason in counted.items():
        if isinstance(reason, str):
            say(f"{name}: {reason}")


def status(study: str, cells: Sequence["CellStatus"], numbers: Mapping["State", int], seconds: float | None) -> None:
    """How a study stands: one line, then a line for every cell that failed, with what runs it again."""
    parts = [f"{number} {state}" for state, number in numbers.items() if number or state == "done"]
    left = "" if seconds is None or not seconds else f"; about {duration(seconds)} left for one runner"
    paste(f"{study}: {quantity(len(cells), 'cell')}: {', '.join(parts)}{left}")
    if unknown := sum(cell.unknown for cell in cells):
        compared = quantity(unknown, "of them is", "of them are")
        paste(f"{compared} not compared with the rows and weights that are named: not at hand here")
    for cell in cells:
        if cell.reason is not None:
            paste(f"{cell.state}: {cell.folder}: {cell.reason}")
            if cell.command:
                paste(f"  {cell.command}")
        elif cell.state == "running":
            age = "" if cell.age_s is None else f", for {duration(cell.age_s)}"
            paste(f"running: {cell.folder}: {cell.worker}{age}")
        elif cell.state == "stopped":
            paste(f"stopped: {cell.folder}")


def plan(sweep: "Sweep", seconds: float | None, peak_mb: float | None) -> None:
    """What a sweep would run, and what that would take."""
    for cell in sweep.left:
        print(cell.folder)
    cost = "nothing is known about their time yet" if seconds is None else f"about {duration(seconds)} for one runner"
    cost += "" if peak_mb is None else f", {peak_mb:,.0f} MiB each at most"
    before = quantity(sweep.before, "needs no run", "need no run")
    cost = f"; {cost}" if sweep.left else ""
    print(f"{quantity(len(sweep.cells), 'cell')}: {before}, {len(sweep.left):,} to run{cost}")


def failures(records: Sequence[Record]) -> None:
    """Every run that did not end well, with its reason."""
    for record in records:
        if record.status != "done":
            reason = (record.error or "").strip().splitlines()[-1:]
            name = f"{record.cell.task} {record.cell.method} seed {record.cell.seed}"
            say(f"{record.status}: {name}: {' '.join(reason)}", "red")


def paper_counts(paper: "Paper", checked: Sequence["Checked"]) -> None:
    """Every count that a paper states, and ours."""
    rows = []
    for item in checked:
        ours = "" if item.ours is None else f"{item.ours:,}"
        if item.bounds is not None:
            ours += f", {item.bounds[0]:,} to {item.bounds[1]:,} kept"
        printed = item.row.trainable or ("" if item.row.count is None else f"({item.row.count:,})")
        style = "yellow" if item.verdict == "not explained" else ""
        cells = (item.row.name, item.row.backbone, printed, ours, item.verdict)
        rows.append([Text(cell, style) for cell in cells])
    head = ("row", "backbone", "printed", "ours", "verdict")
    title = f"{paper.work} (arXiv {paper.arxiv})" if paper.arxiv else paper.work
    show(title, Grid(head, rows, ("row", "backbone", "verdict"), ("backbone", "ours")))
    for item in checked:
        note = item.row.count_note or item.row.note
        if item.verdict in ("not explained", "rounds as printed", "within the bounds") and note:
            say(f"{item.row.name}: {note}")


def sheet(shown: "Sheet") -> None:
    """A view of a study, and its footnotes."""
    head, *lines = ([escape.terminal(cell) for cell in row] for row in [shown.head, *shown.rows])
    rows = [
        [Text(cell, "bold" if (i, j) in shown.bold else "") for j, cell in enumerate(line)]
        for i, line in enumerate(lines)
    ]
    show(escape.terminal(shown.title), Grid(head, rows, head[: shown.words], shown.give_way, shown.words))
    for note in shown.notes:
        say(escape.terminal(note))


def flips(compared: Sequence["Flips"], notes: Sequence[str]) -> None:
    """What flipped between versions, and what had no counterpart."""
    from peftbench.report.flips import grid

    head, *rows = ([escape.terminal(cell) for cell in row] for row in grid(compared))
    cells = [[Text(cell, "dim" if not row[0] else "") for cell in row] for row in rows]
    show("flips from old to new, in percent of the dev rows [95% interval]", Grid(head, cells, head[:2]))
    for note in notes:
        say(escape.terminal(note))


def reproduction(paper: "Paper", table: "Reproduction") -> None:
    """What the sweep of a paper's table would be, and what of the table it would not make."""
    for words in [*table.first, *(words for words, _ in table.after_mnli)]:
        print(" ".join(words))
    after = f", {len(table.after_mnli)} of them from an MNLI run" if table.after_mnli else ""
    cells = quantity(len(table.first) + len(table.after_mnli), "cell")
    print(f"{paper.name}: {cells}{after}; {paper.split}, {paper.selection}")
    for line in table.missing:
        print(f"missing: {line}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def words(group: str, described: Mapping[str, str]) -> None:
    """The words of a group with what each one is."""
    console.print(f"[bold]{group}[/]")
    longest = max(map(len, described), default=0)
    for word, text in described.items():
        room = max(20, console.width - longest - 4)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False)
        paste(f"  {word:<{longest}}  " + f"\n{'':<{longest + 4}}".join(lines))


def score(record: Record) -> str:
    """The headline score of a record, with its standard error where it has one."""
    value, error = record.headline.value, record.headline.standard_error
    if value is None:
        return "not scored"
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _reason(record: Record) -> str:
    return (record.error or "").strip().splitlines()[-1]
