"""Values of any keys, chosen by Optuna (TPE) from trials on held-out rows: `run -m hydra/sweeper=optuna`.

Every trial is an ordinary cell of the study "<study>.search". Optuna's journal lies beside them.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peftbench.config import compose
from peftbench.config.fingerprint import digest
from peftbench.config.spec import Cell
from peftbench.config.words import OPTUNA
from peftbench.ground.errors import ConfigError, shown
from peftbench.ground.files import RECORD_FILE, expanded
from peftbench.record import SEARCH_SUFFIX, Evaluation, finished_record, record_status
from peftbench.study import journal, space, sweep
from peftbench.study.lock import Elsewhere
from peftbench.study.search import best, judged_by, of_every_try, score

MOST = 10_000  # trials
MOST_AT_ONCE = 1000
MOST_SEED = 2**31 - 1 - MOST  # every trial adds one
ONE_VALUE = (*sweep.OF_ALL_CELLS, "task", "data", "shots", "select")  # keys and groups in which trials may not differ
FIRST_SEEDS = 3  # that are proposed for the end where one was typed

Launch = Callable[[list[list[str]]], list[int]]  # runs cells by their overrides; gives their exit codes


@dataclass(frozen=True)
class Settings:
    """See conf/hydra/sweeper/optuna.yaml."""

    trials: int
    at_once: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """A search as it was asked for.

    Attributes:
        cell: the cell at the first value of every key.
        words: overrides of every trial's cell but for the values searched.
        plain: those that were typed, the seed left out.
        seeds: for the runs at the end.
        space: the keys searched, as Optuna's distributions.
    """

    cell: Cell
    words: list[str]
    plain: list[str]
    seeds: list[str]
    space: dict[str, Any]
    settings: Settings

    @property
    def folder(self) -> Path:
        """Where the journal lies: another one for whatever changes a score, the space, or the proposals."""
        bounds = {key: repr(one) for key, one in sorted(self.space.items())}
        decides = [self.cell.fingerprint, asdict(self.cell.select), bounds, self.settings.seed]
        return expanded(self.cell.outputs) / f"{self.cell.study}{SEARCH_SUFFIX}" / f"trials-{digest(decides)[:16]}"


@dataclass(frozen=True)
class Best:
    """What a search came to.

    Attributes:
        trials: how many have ended; scored: how many of these have a score.
        score: the best one; values: its overrides; folder: its cell's, under `outputs`. None, or empty: none has one.
        words: overrides of the runs at the end, all seeds.
    """

    trials: int
    scored: int
    score: float | None
    values: list[str]
    folder: str
    words: list[str]


class Trials:
    """A search with its journal, of which this process has the lock.

    Attributes:
        problem: why it ended early: a trial left no record though its cell is possible; the next call runs it again.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.problem: str | None = None
        self._study = journal.opened(asked.folder / journal.FILE, "trials")

    def run(self, launch: Launch) -> None:
        """Run every trial that has not ended, and ask for more until there are as many as wanted.

        Args:
            launch: runs cells; one that is found finished costs nothing.
        """
        settings = self.asked.settings
        while self.problem is None:
            known = self._known()
            batch = [trial for trial in known if not trial.state.is_finished()][: settings.at_once]
            for number in range(len(known), min(settings.trials, len(known) + settings.at_once - len(batch))):
                batch.append(journal.asked(self._study, self.asked.space, settings.seed + number))
            if not batch:
                return
            cells = [self._words(trial.params) for trial in batch]
            for trial, words, code in zip(batch, cells, _launched(cells, launch), strict=True):
                self._tell(trial.number, words, code)

    def best(self) -> Best:
        """The best trial of those that have ended, chosen as the learning rate's search does."""
        ended = [trial for trial in self._known() if trial.state.is_finished()]
        scored = [trial for trial in ended if trial.value is not None]
        if not scored:
            return Best(len(ended), 0, None, [], "", [])
        highest = max(trial.value for trial in scored)
        tied = {trial.number: trial for trial in scored if trial.value == highest}
        judged = {number: self._judged(trial.params) for number, trial in tied.items()}
        if all(one is not None and one.collapsed for one in judged.values()):  # so may be all others
            tied = {trial.number: trial for trial in scored}
            judged = {number: self._judged(trial.params) for number, trial in tied.items()}
        number = best(judged)
        top = next(iter(tied.values())) if number is None else tied[number]
        values = space.values(top.params)
        seeds = f"seed={','.join(self.asked.seeds)}"
        folder = compose.cell_from(self._words(top.params)).folder
        return Best(len(ended), len(scored), top.value, values, folder, [*self.asked.plain, *values, seeds])

    def _known(self) -> list[Any]:
        """The trials in the journal but for those of which a runner was killed while it asked."""
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if set(trial.params) == set(self.asked.space)]

    def _judged(self, params: Mapping[str, Any]) -> Evaluation | None:
        """What a trial is judged by; None where its record is gone."""
        cell = compose.cell_from(self._words(params))
        record = finished_record(expanded(cell.outputs) / cell.folder / RECORD_FILE)
        return None if record is None else judged_by(record, last=self.asked.cell.protocol.selection == "last")

    def _words(self, params: Mapping[str, Any]) -> list[str]:
        return [*self.asked.words, *space.values(params)]

    def _tell(self, number: int, words: list[str], code: int) -> None:
        """Tell Optuna how a trial ended; one without a score is among the worst to TPE."""
        from optuna.trial import TrialState

        value = None
        if code != ConfigError.exit_code:
            cell = compose.cell_from(words)
            path = expanded(cell.outputs) / cell.folder / RECORD_FILE
            if record_status(path) is None:
                self.problem = f"{path}: there is no record (exit code {code})"
                return
            if (record := finished_record(path)) is not None:
                value = score(record, last=self.asked.cell.protocol.selection == "last")
        self._study.tell(number, value, state=TrialState.PRUNED if value is None else TrialState.COMPLETE)


current: Trials  # what Hydra's sweeper is to run; Hydra makes it itself, so it cannot be told otherwise


@contextmanager
def opened(asked: Asked) -> Iterator[Trials]:
    """The search with its journal; another runner that has it is waited for.

    Raises:
        ConfigError: its folder cannot be written.
        DataError: its journal cannot be read.
    """
    global current
    with journal.alone(asked.folder, asked.cell.outputs):
        current = Trials(asked)
        yield current


def prepare(overrides: Sequence[str], settings: Mapping[str, Any]) -> Asked:
    """Find out what is searched, and refuse what cannot be.

    Args:
        overrides: all that were typed but Hydra's own.
        settings: hydra.sweeper's.

    Raises:
        ConfigError: Optuna is not installed, nothing is searched, a space is none, a setting or a cell is not possible.
    """
    journal.check(OPTUNA)
    checked = _settings(settings)
    items = sweep.parsed(overrides)
    swept = {item.get_key_element(): item for item in items if item.is_sweep_override()}
    plain = [str(item.input_line) for item in items if not item.is_sweep_override()]
    seeds = _seeds(swept.pop("seed", None), plain)
    if fixed := [item.input_line for key, item in swept.items() if key.lstrip("+~").partition(".")[0] in ONE_VALUE]:
        raise ConfigError([f"{shown(line)}: has one value in a search, the same for all trials" for line in fixed])
    if not swept:
        forms = "KEY=interval(LOW,HIGH), tag(log,interval(LOW,HIGH)), choice(A,B) or range(FIRST,END)"
        raise ConfigError(f"{OPTUNA}: nothing to search; give {forms}")
    plain = [word for word in plain if not word.startswith("seed=")]
    _check_numeric(swept, plain)
    searched = {key: space.distribution(item) for key, item in swept.items()}
    first, *others = (space.values(point) for point in space.points(searched))
    cell = compose.cell_from([*plain, *first])
    if cell.select.factors is not None or cell.select.trials is not None:
        raise ConfigError(f"select: {OPTUNA} is a search itself; give select=none")
    words = [*plain, *of_every_try(cell)]
    for values in (first, *others):
        compose.cell_from([*words, *values])
    return Asked(cell, words, plain, seeds, searched, checked)


def _settings(given: Mapping[str, Any]) -> Settings:
    bounds = {"trials": (1, MOST), "at_once": (1, MOST_AT_ONCE), "seed": (0, MOST_SEED)}
    for key, (least, most) in bounds.items():
        value = given.get(key)
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(f"hydra.sweeper.{key}={shown(value)}: must be a whole number from {least} to {most:,}")
    return Settings(**{key: given[key] for key in bounds})


def _seeds(item: Override | None, plain: Sequence[str]) -> list[str]:
    """Those typed; of a single one, some from it on."""
    if item is not None:
        if item.is_interval_sweep():
            raise ConfigError(f"{item.input_line}: seeds are not searched; seed=0,1,2 are those of the runs at the end")
        return list(item.sweep_string_iterator())
    typed = [word[5:] for word in plain if word.startswith("seed=")]
    first = int(typed[-1]) if typed and typed[-1].isdecimal() else 0
    return [str(first + number) for number in range(FIRST_SEEDS)]


def _check_numeric(swept: Mapping[str, Override], plain: Sequence[str]) -> None:
    """Refuse an interval or a range of a key whose value is no number; a key that is not there is found later."""
    config = compose.load(plain)
    for key, item in swept.items():
        value = None
        with suppress(OmegaConfBaseException):
            value = OmegaConf.select(config, key.lstrip("+~"))
        of_numbers = item.is_interval_sweep() or item.is_range_sweep()
        if of_numbers and value is not None and type(value) not in (int, float):
            is_now = f"now {shown(value)}" if isinstance(value, (str, bool)) else "it has parts"
            raise ConfigError(f"{item.input_line}: {key} is not numeric ({is_now}); give choice(...)")


def _launched(cells: list[list[str]], launch: Launch) -> list[int]:
    """Run cells, and give their exit codes; those that another runner has are asked for again."""
    codes = launch(cells)
    while others := [place for place, code in enumerate(codes) if code == Elsewhere.exit_code]:
        time.sleep(1)
        for place, code in zip(others, launch([cells[place] for place in others]), strict=True):
            codes[place] = code
    return codes
