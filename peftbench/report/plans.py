"""Registered plans: which cells a study will have and what it is to show, written down before anything runs.

What a plan names is confirmatory: its claims are one family of tests, on its own cells alone. All else is exploratory.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from os.path import exists  # Path's own raises for names that are too long
from pathlib import Path

import pandas as pd
import yaml

from peftbench.config.fingerprint import digest
from peftbench.config.spec import Cell
from peftbench.config.validate import parse
from peftbench.ground import registered, untrusted
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import CHECKPOINT_FILE, METRICS_FILE, RECORD_FILE, write_atomically
from peftbench.ground.quantity import quantity
from peftbench.ground.version import __version__
from peftbench.record import Record
from peftbench.report import alike, columns, comparison, planned, verdict
from peftbench.report.planned import Test
from peftbench.report.records import Study, frame
from peftbench.report.statistics import ALPHA, Paired, holm
from peftbench.report.table import apart
from peftbench.report.verdict import Verdict, Word

MOST_BYTES = 16 << 20
MOST_NAMED = 5  # cells that a line names
TRACES = (RECORD_FILE, CHECKPOINT_FILE, METRICS_FILE)  # of a cell that may have been scored
ANSWERS: dict[Word, str] = {"ahead": "confirmed", "behind": "refuted", "tied": "not confirmed"}  # to "ONE > OTHER"
HEAD = "# A registered plan: `peftbench compare STUDY --plan FILE` answers its claims; an edit shows in sha256.\n"


@dataclass(frozen=True)
class Plan:
    """A plan as its file holds it.

    Attributes:
        study: name of the study.
        registered: when it was written (UTC, ISO 8601).
        version: of this package.
        margin: points within which two methods count as equal.
        cells: their folders under the outputs, study/cell-fingerprint/seed.
        claims: as they were typed, "id3 > lora" (ahead) or "id3 = lora" (tied within the margin).
        tests: every claim on every task: all of them one family, whatever has run.
        fingerprints: all 16 digits, by the folder that seeds share; empty in plans of version 0.4, of which the eight
            in the folders' names are known.
    """

    study: str
    registered: str
    version: str
    margin: float
    cells: list[str]
    claims: list[str]
    tests: list[Test]
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of all that it says."""
        return digest({key: value for key, value in asdict(self).items() if value or key != "fingerprints"})

    def is_of(self, cell: str, record: Record) -> bool:
        """Whether a record that lies in the folder of a planned cell is that cell's: its fingerprint, seed, split."""
        shared, _, draw = cell.rpartition("/")
        fingerprint = self.fingerprints.get(shared, shared.rpartition("-")[2])
        own = f"seed{record.cell.seed}" if record.few is None else f"split{record.few.split}-seed{record.cell.seed}"
        return draw == own and record.cell.study == self.study and record.fingerprint.startswith(fingerprint)


def made(
    path: Path,
    outputs: Path,
    study: str,
    cells: Sequence[str],
    kinds: Mapping[str, Cell],
    claims: Sequence[str],
    margin: float,
) -> Plan:
    """A plan that may be written to a file, now.

    Args:
        outputs: where they will lie.
        cells: their folders.
        kinds: a cell of every folder that seeds share.

    Raises:
        ConfigError: the file is there, a cell has run or begun already, or a claim cannot be tested on these cells.
    """
    if exists(path):
        raise ConfigError(f"--register {shown(path)}: is there already, and a plan is never changed")
    if not claims:
        raise ConfigError('--register: at least one --claim is to be tested, as in --claim "id3 > lora"')
    comparison.check_margin(margin)
    for claim in claims:
        planned.parts(claim)
    if run := [cell for cell in cells if any((outputs / cell / name).exists() for name in TRACES)]:
        late = f"{len(run)} of {quantity(len(cells), 'cell')} ran or began before, and a plan comes first: {run[0]}"
        raise ConfigError(f"--register {shown(path)}: {late}")
    tests = planned.tests(claims, cells, kinds, study)
    fingerprints = {shared: cell.fingerprint for shared, cell in kinds.items()}
    now = datetime.now(UTC).isoformat()
    return Plan(study, now, __version__, margin, list(cells), list(claims), tests, fingerprints)


def register(path: Path, outputs: Path, plan: Plan) -> None:
    """Write a plan to a file that is not there, and into the list that its study has of all its plans.

    Raises:
        ConfigError, DataError: that list cannot be written, or read.
        OSError: the file cannot be written.
    """
    registered.add(outputs / plan.study, [registered.Registered(plan.sha256, plan.registered, len(plan.tests))])
    write(path, plan)


def write(path: Path, plan: Plan) -> None:
    """Write a plan to a file that is not there.

    Raises:
        OSError: it cannot be written.
    """
    content = {**asdict(plan), "sha256": plan.sha256}
    write_atomically(path, (HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode())


def read(path: Path) -> Plan:
    """A plan's file.

    Raises:
        DataError: it cannot be read, is no plan, or was edited since it was registered.
    """
    try:
        raw = yaml.safe_load(untrusted.read_bytes(path, MOST_BYTES))
    except OSError as error:
        raise DataError(f"--plan {shown(path)}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        raise DataError(f"--plan {shown(path)}: no yaml of a plan") from None
    if not isinstance(raw, dict):
        raise DataError(f"--plan {shown(path)}: no plan")
    sha256 = raw.pop("sha256", None)
    try:
        plan = parse(Plan, raw, "plan")
    except ConfigError as error:
        raise DataError([f"{shown(path)}: {problem}" for problem in error.every]) from None
    if plan.sha256 != sha256:
        raise DataError(f"--plan {shown(path)}: was edited after it was registered (its sha256 is another)")
    return plan


def answers(study: Study, plan: Plan) -> list[str]:
    """What the study says to each claim on each task, and which of the planned cells are missing or were added.

    Raises:
        ConfigError: the plan is of another study.
        DataError: the study's list of plans cannot be read.
    """
    if plan.study != study.name:
        raise ConfigError(f"--plan: is of study {shown(plan.study)}, not of {study.name}")
    own, left_out = _planned(study, plan)
    rows, differing = apart(own)
    missing, gaps = _missing(own, rows, plan)
    every = {column.name: column for column in columns.read(own, rows)}
    pairs = {test: both for test in plan.tests if (both := _paired(test, every, own)) is not None}
    number = len(plan.tests)
    judged = verdict.judge(
        {(test.first, test.second, test.column): both for test, both in pairs.items()},
        "tests of this plan",
        plan.margin,
        {name: column.rows or 0 for name, column in every.items()},
        number,
    )
    items = {(item.first, item.second, item.column): item for item in judged}
    p_values = [both.p() if test.sign == ">" else both.p_of_side(plan.margin) for test, both in pairs.items()]
    corrected = dict(zip(pairs, holm(p_values, number), strict=True))
    so_far, why = (" so far", "cells are missing") if missing else ("", "no seed that both have in one protocol")
    said = [
        _answer(test, items[test.first, test.second, test.column], pairs[test], corrected[test], so_far)
        if test in pairs
        else f"not answered: {test}: {why}"
        for test in plan.tests
    ]
    of = f"{quantity(len(plan.claims), 'claim')}, {quantity(number, 'test')}"
    listed = registered.in_words(plan.sha256, study.folders[0].parents[1])
    head = f"plan registered {plan.registered[:16]}, {of}; {listed}"
    tested = [comparison.how(judged, "; a claim of equality by two one-sided tests")] if judged else []
    return [head, *gaps, *left_out, *differing, *alike.differing(own), *said, *tested]


def _paired(test: Test, every: Mapping[str, columns.Column], own: Study) -> Paired | None:
    """The differences that a test is of; a table leaves out the backbone's name where only one has run."""
    models = {record.cell.model for record in own.records}
    alone = f" ({models.pop()})" if len(models) == 1 else ""
    first, second = (name.removesuffix(alone) for name in (test.first, test.second))
    return every[test.column].paired(first, second) if test.column in every else None


def _answer(test: Test, item: Verdict, both: Paired, p: float, so_far: str) -> str:
    """A claim is confirmed or refuted by its own hypothesis alone.

    Args:
        p: of what the claim is tested against, corrected.
        so_far: what follows the answer while cells are missing.
    """
    if test.sign == ">":
        word = verdict.word_of(both.mean, p, item.p_of_equality)
        answer, text = ANSWERS.get(word, word), comparison.sentence(replace(item, word=word, p=p), both)
    elif p < ALPHA and abs(both.mean) < item.margin:
        answer, text = "confirmed", comparison.sentence(replace(item, word="tied", p_of_equality=p), both)
    else:
        answer, text = ("refuted" if p < ALPHA else "not decided"), _unequal(item, both, p)
    return f"{answer}{so_far}: {item.first} {test.sign} {item.second} on {text}"


def _unequal(item: Verdict, both: Paired, p: float) -> str:
    """A claim of equality that is not confirmed, with the numbers."""
    if both.seeds < 2:
        return comparison.sentence(item, both)
    side = "larger" if abs(both.mean) < item.margin else "smaller"
    word = f"more than {comparison.points(item.margin)} apart: " if p < ALPHA else ""
    size = f"{item.difference:+.1f} points{comparison.intervals(item)}"
    p_of = f"p {comparison.p_in_words(p)} for a {side} difference"
    text = f"{item.column}: {word}{size}, {p_of}, {comparison.better(item)}{comparison.of_rows(both)}"
    if p < ALPHA or both.estimate is None:
        return text
    within = f"these runs show equality within {both.estimate.equal_within(item.tests):.1f} points"
    return f"{text}; {within}{comparison.for_equality(item, both)}"


def _planned(study: Study, plan: Plan) -> tuple[Study, list[str]]:
    """The study's planned runs alone, and lines about those that were added, ran too early, or are of another cell than
    the one in whose folder they lie."""
    done = {_cell(study.folders[i]): i for i, record in enumerate(study.records) if record.status == "done"}
    cells = set(plan.cells)
    others = {cell for cell in cells & done.keys() if not plan.is_of(cell, study.records[done[cell]])}
    moment = datetime.fromisoformat(plan.registered).timestamp() - 1  # records know whole seconds
    early = {
        cell for cell in (cells & done.keys()) - others if _started(study.records[done[cell]].time.started) < moment
    }
    kept = [i for cell, i in done.items() if cell in cells - early - others]
    added = done.keys() - cells
    of_others = quantity(len(others), "record is", "records are")
    unplanned = quantity(len(added), "cell that is not planned has", "cells that are not planned have")
    notes = _named(
        {
            f"left out: {quantity(len(early), 'cell')} that ran before the plan was registered": early,
            f"left out: {of_others} of another fingerprint, seed, split or study than the planned cell": others,
            f"added: {unplanned} no part in this": added,
        }
    )
    return Study(study.name, [study.records[i] for i in kept], [study.folders[i] for i in kept]), notes


def _missing(own: Study, rows: pd.DataFrame, plan: Plan) -> tuple[set[str], list[str]]:
    """Planned cells that have no part in the tests of their row, and lines about them.

    Args:
        own: the planned runs.
        rows: as `table.apart` gives them: a run that was made otherwise than the others of its row is in another.
    """
    ran = [_cell(folder) for folder in own.folders]
    in_place = set()
    if not rows.empty:
        is_there = (rows["name"] == frame(own.records)["name"]) & rows["score"].notna()
        in_place = {cell for cell, there in zip(ran, is_there, strict=True) if there}
    missing = set(plan.cells) - in_place
    of_all = quantity(len(set(plan.cells)), "planned cell")
    notes = _named(
        {
            f"missing: {len(missing)} of {of_all}, so every answer is provisional": missing,
            "of these made otherwise than most of their row, or without a score": missing & set(ran),
        }
    )
    return missing, notes


def _cell(folder: Path) -> str:
    return "/".join(folder.parts[-3:])


def _started(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0


def _named(lines: Mapping[str, Collection[str]]) -> list[str]:
    """Each line with the cells that it is of, the first of them by name; without those that are of none."""
    said = []
    for line, cells in lines.items():
        more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
        said += [f"{line}: {', '.join(sorted(cells)[:MOST_NAMED])}{more}"] if cells else []
    return said
