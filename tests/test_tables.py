"""Tables and sentences on terminals of any width: no word is broken, nothing is lost without a word."""

import functools
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.text import Text
from support import call

from peftbench import papers
from peftbench.commands import count, screen, studies, tables, views, words
from peftbench.record import Counts
from peftbench.report import aggregates, consistency, cost, pscp, records, render, table
from peftbench.study import counts

STUDY = Path(__file__).parents[1] / "docs" / "study"
COUNTED: dict[str, Counts | str] = {
    "method=lora budget.like=bitfit": Counts(18_432, 770, 19_202, 22_713_986, kept=18_432),
    "method=random_masking_structured budget.like=bitfit": Counts(26_112, 770, 26_882, 22_713_986, kept=26_112),
    "method=spafit_4_14_ii budget.like=lora": "method.strata: boundaries 4, 14, None: the backbone has layers 0 to 5",
}


@functools.cache
def study() -> records.Study:
    return records.read_study(STUDY, "glue_small")


@functools.cache
def scores() -> table.Table:
    return table.build(study())


@functools.cache
def checked() -> tuple[papers.Paper, list[counts.Checked]]:
    paper = papers.load("spafit")
    return paper, list(counts.check(paper))


SHOWN: dict[str, Callable[[], object]] = {
    "table": lambda: screen.sheet(render.sheet(scores())),
    "aggregates": lambda: screen.sheet(aggregates.sheet(study())),
    "consistency": lambda: screen.sheet(consistency.sheet(study())),
    "cost": lambda: screen.sheet(cost.sheet(study())),
    "pscp": lambda: screen.sheet(pscp.sheet(study(), pscp.Constants())),
    "compare": lambda: views.compare(["glue_small", "id3", "lora", "--outputs", str(STUDY)]),
    "list": lambda: words.list_words(["methods", "protocols"]),
    "count": lambda: count.count([]),
    "count of many": lambda: screen.counts_of_all("model=minilm_l6 task=sst2", COUNTED),
    "count --paper": lambda: screen.paper_counts(*checked()),
    "status": lambda: studies.status(["glue_small", "--outputs", str(STUDY)]),
    "summary of a run": lambda: screen.summary(study().records[0]),
}


class Terminal(io.StringIO):
    """What is written, as on a terminal."""

    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, to: io.StringIO, show: Callable[[], object], columns: int) -> list[str]:
    """The lines that are printed to a terminal of so many columns, or to a pipe."""
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", to)
        show()
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in to.getvalue().splitlines()]


def pieces(lines: list[str]) -> set[str]:
    """The words in a text, without frames."""
    return {word for line in lines for word in re.sub("[┏┓┗┛┡┩├┤━─┃│┳╇┴└┘┌┐╋┼]", " ", line).split()}


@pytest.mark.parametrize("columns", [60, 80, 100])
@pytest.mark.parametrize("command", SHOWN)
def test_no_word_is_broken(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = printed(monkeypatch, io.StringIO(), SHOWN[command], columns)
    lines = printed(monkeypatch, Terminal(), SHOWN[command], columns)
    assert max(map(len, lines)) <= columns
    own = pieces(["no room for: peak MiB, stored, head, s / run, backbone share of the model, total kept ours"])
    assert pieces(lines) - own <= pieces(whole), "a piece of a word"
    lost = pieces(whole) - pieces(lines)
    assert not lost or any(line.startswith("no room for: ") for line in lines), lost


def test_scores_never_give_way_and_the_rest_does_in_the_order_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ["peak MiB", "stored", "head", "s / run", "backbone"]
    gone = []
    for columns in (200, 110, 100, 90, 80, 60, 40):
        lines = printed(monkeypatch, Terminal(), SHOWN["table"], columns)
        text = next((line for line in lines if line.startswith("no room for: ")), "no room for: ")
        for score in ("26.4 ± 1.5", "79.0 ± 0.5", "86.6 ± 0.2", "64.0"):  # of full fine-tuning
            assert any(re.search(rf"full .*{score}", line) for line in lines), (columns, score)
        if columns > 50:  # that line too has to be broken on a narrower one
            gone.append([name for name in text.removeprefix("no room for: ").split(", ") if name])
    assert gone[0] == []
    assert gone[-1] == order
    assert all(names == order[: len(names)] for names in gone)


def test_what_goes_to_a_pipe_is_never_cut(tmp_path: Path) -> None:
    done = call("table", "glue_small", "--outputs", str(STUDY), cwd=tmp_path, COLUMNS="60")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) > 110
    assert re.search(r"random_masking like-bitfit .* 26,112 .* 24\.7 ± 1\.9 .* 212 kB", done.stdout)
    assert "no room for" not in done.stdout


word = st.text("abcdef0123", min_size=1, max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 7), st.integers(0, 4), st.integers(35, 90))
def test_any_table_fits_and_is_whole(
    monkeypatch: pytest.MonkeyPatch, data: st.DataObject, count: int, rows: int, columns: int
) -> None:
    head = data.draw(st.lists(word, min_size=count, max_size=count, unique=True))
    texts = [name for name in head if data.draw(st.booleans())]
    give_way = [name for name in head[1:] if data.draw(st.booleans())]
    cells = [
        [" ".join(data.draw(st.lists(word, max_size=4))) if name in texts else data.draw(word) for name in head]
        for _ in range(rows)
    ]
    grid = tables.Grid(head, [[Text(cell) for cell in row] for row in cells], texts, give_way)
    lines = printed(monkeypatch, Terminal(), lambda: tables.show("", grid), columns)
    assert max(map(len, lines)) <= columns
    _, _, last = " ".join(lines).partition("no room for: ")
    gone = [name.strip() for name in last.split(",")] if last else []
    assert gone == give_way[: len(gone)], "in the order stated"
    for i, name in enumerate(head):
        if name not in gone:
            assert {piece for row in cells for piece in row[i].split()} | {name} <= pieces(lines)


def test_further_tables_repeat_what_names_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(monkeypatch, Terminal(), SHOWN["cost"], 70)
    assert len([line for line in lines if re.match(r"│ mrpc acc +│ lora ", line)]) > 1
