"""Pages link to what is there, and a newcomer's first page stays short."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import call

from peftbench.config import compose
from peftbench.config.members import OPTIONAL
from peftbench.ground.files import DELTA_FILE, RECORD_FILE
from peftbench.record import read_record, write_record

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a link may name in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `peftbench` command in a page's blocks for the shell, their variables put in."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if given := re.fullmatch(r'([A-Z]+)="([^"$]*)"', line.strip()):
                variables[given[1]] = given[2]
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if line.startswith("peftbench ") and "$" not in line:
                yield shlex.split(line, comments=True)[1:]


def run_of(words: list[str], finished: Path, folder: Path) -> None:
    """A finished run, as a page's words take it for granted: of their task, with what another learned."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    shutil.copy(finished / DELTA_FILE, folder / DELTA_FILE)
    cell = compose.cell_from([word for word in words[1:] if word.startswith(("task=", "model="))])
    record = read_record(finished / RECORD_FILE)
    name = replace(record.cell, task=cell.task.name, model=cell.model.name)
    task = {**record.config["task"], "labels": list(cell.task.labels or ())}
    write_record(replace(record, cell=name, config={**record.config, "task": task}), folder)


SHOWN = [words for page in PAGES for words in commands(page)]
RUNS = [words for words in SHOWN if words[0] in ("run", "plan")]
OPTIONS = {(words[0], *sorted(word for word in words if word.startswith("--"))) for words in SHOWN if words not in RUNS}
IN_SAMPLE = {"task=sst2", "task=rte", "task=stsb"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(text_of(page)):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


def test_every_guide_is_listed_in_the_contents() -> None:
    listed = set(LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_the_readme_is_short_and_shows_a_result_first() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 200
    first_screen = "\n".join(lines[:20])
    assert "![" in first_screen
    assert "|---|" in first_screen


def test_what_a_method_may_have_is_named_in_one_place_and_in_the_guide() -> None:
    guide = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    assert [name for name in OPTIONAL if not re.search(rf"^\| `{name}\b", guide, re.MULTILINE)] == []
    asked = re.compile(rf"(?:get|has)attr\([^)]*\"(?:{'|'.join(OPTIONAL)})\"")
    files = [path for path in (ROOT / "peftbench").rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]
    assert {path.name for path in files} <= {"deltas.py"}


@pytest.mark.parametrize("words", sorted(OPTIONS), ids=" ".join)
def test_every_command_shown_exists_with_its_options(words: tuple[str, ...], tmp_path: Path) -> None:
    done = call(words[0], "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(word in done.stdout for word in words[1:]), done.stdout


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_every_run_shown_is_one_that_can_be_asked_for(words: list[str], tmp_path: Path, finished: Path) -> None:
    for word in words:
        if word.startswith(("init_from=", "objective.old=")):
            run_of(words, finished, tmp_path / word.partition("=")[2])
    done = call("plan", *(word for word in words[1:] if word != "-m"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tasks = {word for word in words if word.startswith("task=")}
    assert any(word.startswith("data=") for word in words) or tasks <= IN_SAMPLE, "the sample has no such task"
