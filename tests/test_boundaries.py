"""The boundaries of strata, and what trains in each, are chosen on held-out rows; a search that stops goes on."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from forgery import Said
from support import TINY, call
from test_search import record

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import DELTA_FILE
from peftbench.record import Record, Search, find_records, read_record
from peftbench.runner.chosen import chosen
from peftbench.runner.delta import Delta
from peftbench.runner.run import learner_of
from peftbench.study import boundaries, journal

RANK = "method.strata.lora.methods.lora.rank=2"
SMALL = [*TINY, "method=spafit", RANK, "select=boundaries", "select.trials=4", "select.max_steps=3"]


def searched(cell: Cell, stop_at: int | None = None) -> tuple[Search, list[list[str]]]:
    """A search whose tries are made up: the longer the bottom stratum, the better."""
    asked: list[list[str]] = []

    def run_try(words: list[str]) -> tuple[Record, str] | None:
        asked.append(words)
        if len(asked) - 1 == stop_at:
            raise KeyboardInterrupt
        (last,) = (word for word in words if word.startswith("++method.strata.frozen.last="))
        return record(int(last.partition("=")[2]) / 10), " ".join(words)

    return boundaries.try_strata(cell, run_try), asked


def test_a_sweep_searches_once_and_trains_what_was_chosen(tmp_path: Path) -> None:
    words = [*SMALL, "study=pilot", f"outputs={tmp_path}", "protocol.lr=0.02", "select.trials=3"]
    done = call("run", "-m", *words, "seed=0,1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tries = {
        str(path.parent.relative_to(tmp_path)): read_record(path) for path in find_records(tmp_path / "pilot.search")
    }
    first, second = (read_record(path) for path in find_records(tmp_path / "pilot"))
    assert first.search is not None
    assert first.search == second.search, "the second seed found the first one's tries"
    assert set(first.search.folders) == set(tries)
    assert {one.metrics.selection for one in tries.values()} == {"held_out"}
    last = {folder: tries[folder].metrics.evaluations[-1] for folder in first.search.folders}
    scores = {folder: one.metrics["accuracy_held_out"] for folder, one in last.items()}
    assert list(first.search.scores.values()) == list(scores.values())
    losses = {folder: one.loss for folder, one in last.items()}
    one_class = all(one.collapsed for one in last.values())
    best = tries[min(last, key=lambda key: losses[key] if one_class else (-scores[key], losses[key]))]  # type: ignore[operator]
    assert best.counts is not None
    for path in find_records(tmp_path / "pilot"):
        final, strata = read_record(path), Delta.load(path.parent / DELTA_FILE).facts.method.arguments["strata"]
        assert {name: (s["last"], s["like"]) for name, s in strata.items()} == {
            name: (taken.last, taken.like) for name, taken in first.search.strata.items()
        }
        assert {n: s["last"] for n, s in best.config["method"]["strata"].items()} == {
            n: s["last"] for n, s in strata.items()
        }
        assert final.counts is not None
        assert (final.counts.backbone, final.metrics.selection) == (best.counts.backbone, "last")
    cell = compose.cell_from(words)
    other = {name: replace(one, last=None if one.last is None else -1) for name, one in first.search.strata.items()}
    with pytest.raises(DataError, match="does not fit"):
        learner_of(chosen(cell, replace(first.search, strata=other)), None, None).as_learned(tmp_path / cell.folder)
    assert learner_of(chosen(cell, first.search), None, None).as_learned(tmp_path / cell.folder).depth == 2


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = [*SMALL, "select.trials=14"]  # Optuna's first ten are random
    whole, asked = searched(compose.cell_from([*words, f"outputs={tmp_path / 'whole'}"]))
    broken = compose.cell_from([*words, f"outputs={tmp_path / 'broken'}"])
    for stop_at in (0, 5, 12):
        with pytest.raises(KeyboardInterrupt):
            searched(broken, stop_at)
    resumed, asked_again = searched(broken)
    assert (asked_again, resumed) == (asked, whole)
    assert len(asked) == 14
    assert whole.scores[boundaries.in_words(whole.strata)] == max(v for v in whole.scores.values() if v is not None)
    other, _ = searched(compose.cell_from([*words, "select.seed=100", f"outputs={tmp_path / 'other'}"]))
    assert other.scores != whole.scores


def test_dev_rows_have_no_part_in_the_choice(tmp_path: Path) -> None:
    """Whatever the tries score on dev, the strata with the best score on the held-out rows are chosen."""
    choices = []
    for sign in (1, -1):
        numbers = count()

        def run_try(words: list[str], numbers: Iterator[int] = numbers, sign: int = sign) -> tuple[Record, str]:
            assert "protocol.selection=held_out" in words
            number = next(numbers)
            one = record(0.5 + 0.01 * number)
            one.metrics.evaluations[-1].metrics["accuracy"] = 0.5 + sign * 0.1 * number
            return one, " ".join(words)

        choices.append(boundaries.try_strata(compose.cell_from([*SMALL, f"outputs={tmp_path / str(sign)}"]), run_try))
    assert choices[0] == choices[1]
    assert max(choices[0].scores.values()) == 0.53  # type: ignore[type-var]


def test_a_cell_with_a_search_of_strata_is_another_cell() -> None:
    cells = [
        compose.cell_from([*SMALL, *more]) for more in (["select.trials=null"], [], ["select.trials=5"], ["seed=3"])
    ]
    assert len({cell.fingerprint for cell in cells}) == 3
    assert cells[1].fingerprint == cells[3].fingerprint


def test_a_stratum_trains_what_another_does(tiny: Callable[..., Cell]) -> None:
    from peftbench.runner.counts import count_cell

    plain = ["method=spafit", "method.strata.frozen.last=0", "method.strata.biases.last=0", RANK]
    top = count_cell(tiny(*plain)).backbone
    both = count_cell(tiny(*plain, "++method.strata.frozen.like=lora")).backbone
    pooler = 128
    assert both - pooler == 2 * (top - pooler)


def test_what_cannot_be_searched_is_one_line(command: Callable[..., Said], tmp_path: Path) -> None:
    for words, line in (
        (["select.trials=0"], "select.trials=0"),
        (["select.factors=[1]"], "factors=[1.0] and trials=4 cannot both be given"),
        (["++method.strata.biases.like=bises"], "did you mean biases"),
    ):
        code, _, err = command("run", *SMALL, *words, f"outputs={tmp_path / 'outputs'}")
        assert code == 2
        assert line in err
        assert len(err.strip().splitlines()) == 1


def test_a_method_without_strata_is_refused(tmp_path: Path) -> None:
    words = [word for word in SMALL if word != RANK]
    with pytest.raises(ConfigError, match="method=lora has no named strata"):
        searched(compose.cell_from([*words, "method=lora", f"outputs={tmp_path}"]))


def test_without_optuna_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'peftbench\[search\]'"):
        searched(compose.cell_from([*SMALL, f"outputs={tmp_path}"]))


@pytest.mark.parametrize("text", ["no json\n{}\n", '{"op_code": 99}\n', "[]\n", '{"op_code": 0}\n'])
def test_a_damaged_journal_is_refused(text: str, tmp_path: Path) -> None:
    cell = compose.cell_from([*SMALL, f"outputs={tmp_path}"])
    searched(cell)
    (path,) = tmp_path.rglob(journal.FILE)
    path.write_text(text)
    with pytest.raises(DataError, match="not a readable journal"):
        searched(cell)
