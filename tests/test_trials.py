"""Any keys are searched by Optuna on held-out rows; every trial is a cell, and a search that stops goes on."""

import dataclasses
import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forgery import Said
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TINY, call, start

from peftbench.config import compose
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import RECORD_FILE
from peftbench.record import Evaluation, Metrics, find_records, read_record, write_record
from peftbench.study import journal, space, sweep, trials
from peftbench.study.lock import Elsewhere

WORD = "hydra/sweeper=optuna"
LR = "protocol.lr=tag(log,interval(1e-4,1e-2))"
RANK = "method.rank=choice(2,4)"
SMALL = [*TINY, "method=lora", "study=pilot", "select.max_steps=3"]
SETTINGS = {"trials": 12, "at_once": 1, "seed": 0}  # Optuna's first ten are random
Launch = Callable[[list[list[str]]], list[int]]


def test_a_search_is_made_of_cells_goes_on_and_says_how_to_run_the_best(tmp_path: Path) -> None:
    words = ["run", "-m", WORD, LR, RANK, *SMALL, "seed=0,1", f"outputs={tmp_path}"]
    first = call(*words, "hydra.sweeper.trials=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 of 2 trials done\n" in first.stdout
    kept = {path: path.read_bytes() for path in find_records(tmp_path / "pilot.search")}
    assert len(kept) == 2
    second = call(*words, "hydra.sweeper.trials=3", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "3 of 3 trials done (2 of them before)\n" in second.stdout
    tries = {path: read_record(path) for path in find_records(tmp_path / "pilot.search")}
    assert len(tries) == 3
    assert {path: path.read_bytes() for path in kept} == kept, "finished trials are found"
    assert {(one.metrics.selection, one.cell.seed) for one in tries.values()} == {("held_out", 0)}
    scores = {path: one.metrics.evaluations[-1].metrics["accuracy_held_out"] for path, one in tries.items()}
    lines = second.stdout.splitlines()
    best = tmp_path / lines[-3] / RECORD_FILE
    assert scores[best] == max(score for score in scores.values() if score is not None)
    values = [f"method.rank={tries[best].config['method']['rank']}", f"protocol.lr={tries[best].lr:.6g}"]
    assert lines[-4] == f"best: accuracy {scores[best]:.4f} on held-out rows, {' '.join(values)}"
    printed = shlex.split(lines[-1])
    assert printed[:3] == ["peftbench", "run", "-m"]
    cells = [compose.cell_from(cell) for cell in sweep.cells_of(printed[3:])]
    assert [(cell.seed, cell.study, cell.protocol.selection) for cell in cells] == [
        (s, "pilot", "last") for s in (0, 1)
    ]
    assert {(cell.protocol.lr, cell.method.arguments["rank"]) for cell in cells} == {
        (tries[best].lr, tries[best].config["method"]["rank"])
    }
    again = call(*words, "hydra.sweeper.trials=3", cwd=tmp_path)
    assert "3 of 3 trials done (3 of them before)" in again.stdout
    assert again.stdout.splitlines()[-1] == lines[-1]


def test_trials_run_side_by_side_and_one_that_diverges_has_no_score(tmp_path: Path) -> None:
    words = [*SMALL, "protocol.lr=choice(1e-3,1e9)", "method=full", "protocol.clip=null", "protocol.schedule=constant"]
    more = ["hydra/launcher=local", "hydra.sweeper.at_once=2", "hydra.sweeper.trials=4", f"outputs={tmp_path}"]
    done = start("run", "-m", WORD, *words, *more, cwd=tmp_path)  # a forked process would wait for idle workers
    assert done.returncode == 0, done.stderr
    statuses = sorted(read_record(path).status for path in find_records(tmp_path / "pilot.search"))
    assert statuses == ["diverged", "done"]
    assert "4 of 4 trials done, " in done.stdout
    assert "on held-out rows, protocol.lr=0.001" in done.stdout


@pytest.fixture
def launched(finished: Path) -> Callable[..., tuple[list[list[str]], Launch]]:
    """What was launched, and who launches: a cell's score is made up, higher the nearer its rate is to 0.002."""
    template = read_record(finished / RECORD_FILE)

    def make(stop_at: int | None = None) -> tuple[list[list[str]], Launch]:
        asked: list[list[str]] = []

        def launch(cells: list[list[str]]) -> list[int]:
            for words in cells:
                if len(asked) == stop_at:
                    raise KeyboardInterrupt
                asked.append(words)
                cell = compose.cell_from(words)
                score = 1 - abs(cell.protocol.lr - 0.002) * 50
                one = Evaluation(3, 1.0, {"accuracy": 1 - score}, False, score, 0.5)
                record = dataclasses.replace(template, metrics=Metrics(one, [one], "held_out", False))
                write_record(record, Path(cell.outputs) / cell.folder)
            return [0] * len(cells)

        return asked, launch

    return make


def asked_in(outputs: Path, *words: str, **settings: int) -> trials.Asked:
    return trials.prepare([*SMALL, f"outputs={outputs}", *(words or (LR, RANK))], {**SETTINGS, **settings})


def run(asked: trials.Asked, launch: Launch) -> trials.Best:
    with trials.opened(asked) as search:
        search.run(launch)
        return search.best()


def values_of(asked: list[list[str]]) -> list[list[str]]:
    return [words[-2:] for words in asked]


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    launched: Callable[..., tuple[list[list[str]], Launch]], tmp_path: Path
) -> None:
    whole_asked, launch = launched()
    whole = run(asked_in(tmp_path / "whole"), launch)
    parts: list[list[str]] = []
    for stop_at in (0, 5, 6, None):
        asked, launch = launched(stop_at)
        if stop_at is None:
            again = run(asked_in(tmp_path / "broken"), launch)
        else:
            with pytest.raises(KeyboardInterrupt):
                run(asked_in(tmp_path / "broken"), launch)
        parts += asked
    assert values_of(parts) == values_of(whole_asked)
    assert (again.score, again.values, again.trials) == (whole.score, whole.values, 12)
    best = min(whole_asked, key=lambda words: abs(compose.cell_from(words).protocol.lr - 0.002))
    assert whole.values == best[-2:]
    assert whole.score == pytest.approx(1 - abs(compose.cell_from(best).protocol.lr - 0.002) * 50)
    assert whole.score > 0.95, "Optuna looks where the score is high"
    other = run(asked_in(tmp_path / "whole", seed=100), launched()[1])
    assert other.values != whole.values, "another seed has a journal of its own"


@pytest.mark.parametrize(
    ("collapsed", "scores", "chosen"),
    [(True, (0.527, 0.473), "0.002"), (False, (0.527, 0.473), "0.001"), (False, (0.5, 0.5), "0.002")],
)
def test_equal_trials_and_those_that_predict_one_class_are_chosen_by_their_loss(
    collapsed: bool, scores: tuple[float, float], chosen: str, finished: Path, tmp_path: Path
) -> None:
    template = read_record(finished / RECORD_FILE)

    def launch(cells: list[list[str]]) -> list[int]:
        for words in cells:
            cell = compose.cell_from(words)
            score, loss = {1e-3: (scores[0], 0.9), 2e-3: (scores[1], 0.693)}[cell.protocol.lr]
            one = Evaluation(3, 1.0, {"accuracy": score}, collapsed, score, loss)
            record = dataclasses.replace(template, metrics=Metrics(one, [one], "held_out", False))
            write_record(record, Path(cell.outputs) / cell.folder)
        return [0] * len(cells)

    best = run(asked_in(tmp_path, "protocol.lr=choice(1e-3,2e-3)", trials=5), launch)
    assert (best.scored, best.values) == (5, [f"protocol.lr={chosen}"])


def test_more_trials_go_on_from_those_before_and_together_they_are_as_many(
    launched: Callable[..., tuple[list[list[str]], Launch]], tmp_path: Path
) -> None:
    batches: list[int] = []

    def counted(cells: list[list[str]]) -> list[int]:
        batches.append(len(cells))
        return launched()[1](cells)

    assert run(asked_in(tmp_path, trials=4, at_once=3), counted).trials == 4
    assert run(asked_in(tmp_path, trials=9, at_once=3), counted).trials == 9
    assert run(asked_in(tmp_path, trials=2), counted).trials == 9
    assert batches == [3, 1, 3, 2]


def test_what_another_runner_has_is_asked_for_again_and_what_left_no_record_stops_the_search(
    launched: Callable[..., tuple[list[list[str]], Launch]], tmp_path: Path
) -> None:
    asked, launch = launched()
    codes = itertools.chain([[0, Elsewhere.exit_code]], itertools.repeat([0]))
    assert run(
        asked_in(tmp_path / "elsewhere", trials=2, at_once=2), lambda cells: launch(cells) and next(codes)
    ).scored
    assert asked[1] == asked[2]
    lost = asked_in(tmp_path / "lost", trials=3)
    with trials.opened(lost) as search:
        search.run(lambda cells: [1])
        assert search.best().trials == 0
        assert (search.problem or "").endswith("there is no record (exit code 1)")
    asked, launch = launched()
    assert run(lost, launch).scored == 3
    refused = run(asked_in(tmp_path / "refused", trials=2), lambda cells: [ConfigError.exit_code])
    assert (refused.trials, refused.scored, refused.score) == (2, 0, None)


def test_a_damaged_journal_is_refused(launched: Callable[..., tuple[list[list[str]], Launch]], tmp_path: Path) -> None:
    run(asked_in(tmp_path, trials=1), launched()[1])
    (path,) = tmp_path.rglob(journal.FILE)
    path.write_text("no json\n{}\n")
    with pytest.raises(DataError, match="not a readable journal"):
        run(asked_in(tmp_path, trials=1), launched()[1])


def distribution(words: str) -> object:
    (item,) = sweep.parsed([words])
    return space.distribution(item)


@settings(deadline=None)
@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(1, 9), st.booleans())
def test_a_range_holds_the_numbers_that_a_sweep_would_run(first: int, end: int, step: int, real: bool) -> None:
    (item,) = OverridesParser.create().parse_overrides(
        [f"protocol.lr=range({first},{end},{step / 2 if real else step})"]
    )
    numbers = [float(word) for word in item.sweep_string_iterator()]
    if not numbers:
        with pytest.raises(ConfigError, match="no numbers"):
            space.distribution(item)
        return
    made = space.distribution(item)
    count = round((made.high - made.low) / made.step) + 1
    assert [made.low + i * made.step for i in range(count)] == pytest.approx(numbers)
    assert isinstance(made.low, int) != real


def test_intervals_and_choices_are_what_hydra_means_by_them() -> None:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    assert distribution("protocol.lr=interval(1,3)") == FloatDistribution(1, 3)
    assert distribution(LR) == FloatDistribution(1e-4, 1e-2, log=True)
    assert distribution("protocol.epochs=int(interval(1,9))") == IntDistribution(1, 9)
    assert distribution("protocol.epochs=tag(log,int(interval(1,64)))") == IntDistribution(1, 64, log=True)
    assert distribution("method.rank=4,8,16") == CategoricalDistribution(["4", "8", "16"])
    assert distribution("scope.kinds=choice([query],[query,value])") == CategoricalDistribution(
        ["[query]", "[query,value]"]
    )
    assert {"lora", "bitfit"} <= set(getattr(distribution("method=glob(*)"), "choices", ()))
    assert space.values({"protocol.lr": 0.00123456789, "method": "lora", "method.rank": 8}) == [
        "method=lora", "method.rank=8", "protocol.lr=0.00123457"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "hydra/sweeper=optuna: nothing to search; give KEY=interval(LOW,HIGH)"),
        (["protocol.lr=1e-3", "seed=0,1"], "hydra/sweeper=optuna: nothing to search"),
        ([LR, "hydra.sweeper.trials=0"], "hydra.sweeper.trials=0: must be a whole number from 1 to 10,000"),
        ([LR, "hydra.sweeper.trials=two"], "hydra.sweeper.trials=two: must be a whole number"),
        ([LR, "hydra.sweeper.at_once=0"], "hydra.sweeper.at_once=0: must be"),
        ([LR, "hydra.sweeper.trails=3"], "hydra.sweeper.trails: there is no such key; did you mean"),
        (["protocol.schedule=interval(0,1)"], "protocol.schedule is not numeric (now linear); give choice(...)"),
        (["protocol.bucketing=range(0,2)"], "protocol.bucketing is not numeric (now True)"),
        (["method=interval(0,1)"], "method is not numeric (it has parts)"),
        (["protocol.epochs=interval(1,5)"], "protocol.epochs=2.52786"),
        (["protocol.lr=interval(-1,1)"], "protocol.lr=-1"),
        (["protocol.lrr=interval(0,1)"], "protocol.lrr: there is no such key"),
        (["protocol.lr=interval(1e-2,1e-4)"], "protocol.lr=interval(1e-2,1e-4): must rise"),
        (["protocol.lr=tag(log,interval(0,1))"], "log is for numbers above 0"),
        (["protocol.lr=tag(loud,interval(0.1,1))"], "tag loud means nothing here"),
        (["protocol.epochs=tag(log,range(1,5))"], "tag log means nothing here"),
        (["protocol.epochs=range(5,5)"], "protocol.epochs=range(5,5): no numbers to choose from"),
        (["protocol.epochs=shuffle(range(1,5))"], "a search has no order to shuffle"),
        (["task=sst2,rte", LR], "task=sst2,rte: has one value in a search"),
        (["select.rows=dev,held_out", LR], "select.rows=dev,held_out: has one value in a search"),
        (["seed=interval(0,9)", LR], "seed=interval(0,9): seeds are not searched"),
        (["select=lr", RANK], "select: hydra/sweeper=optuna is a search itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_line(
    words: list[str], line: str, command: Callable[..., Said], tmp_path: Path
) -> None:
    code, _, err = command("run", "-m", WORD, *SMALL, *words, f"outputs={tmp_path / 'outputs'}")
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_search_needs_the_switch_and_the_sweeper(command: Callable[..., Said]) -> None:
    assert command("run", WORD, *SMALL, LR)[::2] == (2, f"{WORD}: a search needs -m (peftbench run -m ...)\n")
    code, _, err = command("run", "-m", *SMALL, LR)
    assert (code, err) == (2, f"{LR}: an interval is searched, by run -m hydra/sweeper=optuna\n")


def test_without_optuna_one_line_says_how_to_get_it(
    command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = command("run", "-m", WORD, *SMALL, LR)
    assert (code, err) == (2, f"{WORD}: needs Optuna, which is not installed: pip install 'peftbench[search]'\n")


def test_a_plan_says_what_would_be_searched(command: Callable[..., Said], tmp_path: Path) -> None:
    words = [*SMALL, LR, RANK, "protocol.epochs=range(1,8,2)", f"outputs={tmp_path / 'outputs'}"]
    code, out, err = command("plan", WORD, *words, "hydra.sweeper.trials=7")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "7 trials, scored on held-out rows; Optuna chooses:",
        "  protocol.lr: 0.0001 to 0.01, evenly over its logarithm",
        "  method.rank: one of 2, 4",
        "  protocol.epochs: 1 to 7, in steps of 2",
    ]
    assert not (tmp_path / "outputs").exists()
    assert "make no list to save" in command("plan", "--save", WORD, *words)[2]


def test_an_experiment_may_say_what_is_searched(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      protocol.lr: interval(1e-4,1e-2)\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)
    words = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *SMALL, "experiment=mine"]
    assert list(trials.prepare(words, SETTINGS).space) == ["protocol.lr"]
    assert trials.prepare([*words, "protocol.lr=1e-3", RANK], SETTINGS).space.keys() == {"method.rank"}
