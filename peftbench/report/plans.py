"""Registered plans: which cells a study will have and what it is to show, written down before anything runs.

What a plan names is confirmatory: its claims are one family of tests, on its own cells alone. All else is exploratory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os.path import exists  # Path's own raises for names that are too long
from pathlib import Path

import yaml

from peftbench.config.fingerprint import digest
from peftbench.config.validate import parse
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import RECORD_FILE, write_atomically
from peftbench.ground.quantity import quantity
from peftbench.ground.version import __version__
from peftbench.report import columns, comparison, verdict
from peftbench.report.records import Study
from peftbench.report.statistics import Paired
from peftbench.report.table import apart, row_named
from peftbench.report.verdict import Word

MOST_BYTES = 16 << 20
MOST_NAMED = 5  # cells that a line names
SIGNS: dict[str, Word] = {">": "ahead", "=": "tied"}
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
        claims: "id3 > lora" (ahead) or "id3 = lora" (tied within the margin); rows as a table names them.
    """

    study: str
    registered: str
    version: str
    margin: float
    cells: list[str]
    claims: list[str]


def made(path: Path, outputs: Path, study: str, cells: Sequence[str], claims: Sequence[str], margin: float) -> Plan:
    """A plan that may be written to a file, now.

    Raises:
        ConfigError: the file is there, a claim is none, or a cell has a result already.
    """
    if exists(path):
        raise ConfigError(f"--register {shown(path)}: is there already, and a plan is never changed")
    if not claims:
        raise ConfigError('--register: at least one --claim is to be tested, as in --claim "id3 > lora"')
    comparison.check_margin(margin)
    for claim in claims:
        parts(claim)
    if run := [cell for cell in cells if (outputs / cell / RECORD_FILE).exists()]:
        of_all = quantity(len(cells), "cell has a result", "cells have results")
        late = f"{len(run)} of {of_all}, and a plan comes before them: {run[0]}"
        raise ConfigError(f"--register {shown(path)}: {late}")
    return Plan(study, datetime.now(UTC).isoformat(), __version__, margin, list(cells), list(claims))


def write(path: Path, plan: Plan) -> None:
    """Write a plan to a file that is not there.

    Raises:
        OSError: it cannot be written.
    """
    content = {**asdict(plan), "sha256": digest(asdict(plan))}
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
    if digest(asdict(plan)) != sha256:
        raise DataError(f"--plan {shown(path)}: was edited after it was registered (its sha256 is another)")
    return plan


def parts(claim: str) -> tuple[str, Word, str]:
    """The first row, what is claimed of it, and the second row.

    Raises:
        ConfigError: the claim has not this form.
    """
    for sign, word in SIGNS.items():
        first, separator, second = (text.strip() for text in claim.partition(sign))
        if separator and first and second and not set(SIGNS) & set(second):
            return first, word, second
    raise ConfigError(f'--claim {shown(claim)}: "ONE > OTHER" (ahead), or "ONE = OTHER" (tied within the margin)')


def answers(study: Study, plan: Plan) -> list[str]:
    """What the study says to each claim on each task, and which of the planned cells are missing or were added.

    Raises:
        ConfigError: the plan is of another study, a claim names no row of it, or two rows have nothing in common.
    """
    if plan.study != study.name:
        raise ConfigError(f"--plan: is of study {shown(plan.study)}, not of {study.name}")
    own, notes = _planned(study, plan)
    rows = apart(own)[0]
    names = list(dict.fromkeys(rows["name"])) if len(rows) else []
    every = columns.read(own, rows)
    pairs: dict[tuple[str, str, str], Paired] = {}
    claimed: dict[tuple[str, str, str], Word] = {}
    for claim in plan.claims:
        first, word, second = parts(claim)
        first, second = (row_named(name, names, study.name) for name in (first, second))
        for column in every:
            if (both := column.paired(first, second)) is not None:
                pairs[first, second, column.name], claimed[first, second, column.name] = both, word
    if not pairs:
        raise ConfigError(f"--plan: none of its claims has two finished runs of one seed in study {study.name}")
    family = f"the {quantity(len(pairs), 'test')} of this plan"
    judged = verdict.judge(pairs, family, plan.margin, {column.name: column.rows or 0 for column in every})
    said = [
        f"{_answer(item.word, claimed[key])}: {item.first} {_sign(claimed[key])} {item.second} on "
        f"{comparison.sentence(item, pairs[key])}"
        for key, item in zip(pairs, judged, strict=True)
    ]
    head = f"plan registered {plan.registered[:16]}, {quantity(len(plan.claims), 'claim')}"
    return [head, *notes, *said, comparison.how(judged)]


def _answer(word: Word, claimed: Word) -> str:
    if word == "not decided":
        return "not decided"
    return "confirmed" if word == claimed else "refuted"


def _sign(word: Word) -> str:
    return next(sign for sign, other in SIGNS.items() if other == word)


def _planned(study: Study, plan: Plan) -> tuple[Study, list[str]]:
    """The study's planned runs alone, and lines about what is missing, was added, or ran too early."""
    names = ["/".join(folder.parts[-3:]) for folder in study.folders]
    done = [i for i, record in enumerate(study.records) if record.status == "done"]
    cells = set(plan.cells)
    registered = datetime.fromisoformat(plan.registered).timestamp() - 1  # records know whole seconds
    early = {names[i] for i in done if names[i] in cells and _started(study.records[i].time.started) < registered}
    kept = [i for i in done if names[i] in cells - early]
    missing = sorted(cells - {names[i] for i in kept})
    added = sorted({names[i] for i in done} - cells)
    others = quantity(len(added), "cell that is not planned has", "cells that are not planned have")
    lines = {
        f"missing: {len(missing)} of {quantity(len(cells), 'planned cell')}, so every answer is provisional": missing,
        f"left out: {quantity(len(early), 'cell')} that ran before the plan was registered": sorted(early),
        f"added: {others} no part in this": added,
    }
    notes = [f"{line}: {_some(named)}" for line, named in lines.items() if named]
    return Study(study.name, [study.records[i] for i in kept], [study.folders[i] for i in kept]), notes


def _started(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return 0.0


def _some(cells: Sequence[str]) -> str:
    more = f" and {len(cells) - MOST_NAMED} more" if len(cells) > MOST_NAMED else ""
    return ", ".join(cells[:MOST_NAMED]) + more
