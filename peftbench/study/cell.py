"""One cell of a study: found finished, left to the runner that has it, or run, what is searched chosen first."""

import functools
import gc
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig, open_dict

from peftbench.config import build, compose
from peftbench.config.build import Plain
from peftbench.config.spec import Cell
from peftbench.ground.errors import BadInput, ConfigError, shown, warn
from peftbench.ground.files import RECORD_FILE, expanded
from peftbench.record import Record, Search, finished_record, glance
from peftbench.study import boundaries, done, gpus, search
from peftbench.study.done import InputHashes, Need
from peftbench.study.lock import Elsewhere, Lock, forget_deaths, owner

if TYPE_CHECKING:
    from peftbench.runner.run import Outcome


class Screen(Protocol):
    """Who tells a person how a cell went."""

    def already_done(self, record: Record, path: Path) -> None:
        """The cell has a finished record."""
        ...

    def predicted(self, record: Record, path: Path) -> None:
        """The cell has a finished record, and what it learned has predicted the test rows."""
        ...

    def searched(self, search: Search) -> None:
        """The learning rate, or the strata, were chosen."""
        ...

    def elsewhere(self, folder: Path, owner: str) -> None:
        """Another runner has the cell."""
        ...

    def ended(self, outcome: "Outcome") -> None:
        """The run ended, well or not; its record is written."""
        ...


def run_cell(config: DictConfig, overrides: Sequence[str], screen: Screen) -> int:
    """As `settle`; what is wrong with the input, or cannot be written, is said too and gives its exit code."""
    try:
        return settle(build.plain(config), overrides, screen)
    except BadInput as error:
        warn(*error.problems)
        return error.exit_code
    except OSError as error:
        if error.filename is None:  # of the screen
            raise
        warn(f"{shown(str(error.filename))}: {error.strerror}; what was computed is lost, or kept as a checkpoint")
        return 1


def settle(plain: Plain, overrides: Sequence[str], screen: Screen, claimed: Lock | None = None) -> int:
    """Run one composed cell unless its finished record is there; returns its exit code.

    Args:
        plain: the cell's configuration.
        overrides: what the user typed.
        screen: told how it goes.
        claimed: the lock of the cell's folder, where it is held already.

    Raises:
        ConfigError: the cell is not possible, its folder cannot be written, or is not the one that was claimed.
        DataError: rows or weights cannot be read.
        OSError: something could not be written.
    """
    cell = build.build_plain(plain)
    if claimed is not None and claimed.path.parent != folder_of(cell):
        raise ConfigError(f"{claimed.path.parent}: its words mean {cell.folder} now; peftbench plan ... --save")
    with nullcontext(claimed) if claimed or _rank() else Lock(folder_of(cell)) as lock:
        decision = _agreed(functools.partial(_settled, cell, lock, plain.raw["rerun"] == "all", screen))
        if isinstance(decision, int):
            return decision
        gpus.take_place(plain.raw["cells_per_gpu"])
        check = _nothing if lock is None else lock.check
        return _predict(cell, screen, check) if decision == "predict" else _run(cell, plain, overrides, screen, check)


def folder_of(cell: Cell) -> Path:
    """The cell's own folder."""
    return expanded(cell.outputs) / cell.folder


def record_of(cell: Cell) -> Path:
    """Where the cell's record is, or will be."""
    return folder_of(cell) / RECORD_FILE


def _settled(cell: Cell, lock: Lock | None, again: bool, screen: Screen) -> int | Need:
    """The exit code of a cell that needs nothing here, once that is said; or what it needs."""
    assert lock is not None
    inputs = _inputs(cell)
    if inputs is not None and not again and (result := _finished(cell, inputs)) is not None:
        screen.already_done(*result)
        if lock.held:
            done.remove_checkpoint(folder_of(cell))
        return 0
    _check_writable(lock, cell)
    if not lock.held:
        screen.elsewhere(folder_of(cell), owner(lock.path))
        return Elsewhere.exit_code
    if inputs is None:
        return "run"
    done.make_way(folder_of(cell), inputs)
    return "run" if again else done.find(folder_of(cell), inputs)[1]


def _inputs(cell: Cell) -> InputHashes | None:
    """What the cell would read, where there is a result to compare it with."""
    return done.hash_inputs(done.reads_of(cell)) if done.has_result(folder_of(cell)) else None


def _finished(cell: Cell, inputs: InputHashes) -> tuple[Record, Path] | None:
    """The finished record that was made of what is at hand, and where it lies."""
    folder, need = done.find(folder_of(cell), inputs)
    record = finished_record(folder / RECORD_FILE) if need == "nothing" else None
    return None if record is None else (record, folder / RECORD_FILE)


def _check_writable(lock: Lock, cell: Cell) -> None:
    if lock.refused:
        raise ConfigError(f"outputs={cell.outputs}: {folder_of(cell)} cannot be written ({lock.refused})")


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _agreed(decide: Callable[[], int | Need]) -> int | Need:
    """What the first of several processes that compute one cell together decides."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    from peftbench.ground.machine import process_state

    process_state()
    decided: list[int | Need] = [decide() if _rank() == 0 else "nothing"]
    broadcast_object_list(decided)
    return decided[0]


@functools.cache
def _runner() -> Callable[..., "Outcome"]:
    """`run.run`, imported when a cell is to be run; garbage collections leave out what the imports made."""
    from peftbench.runner.run import run

    gc.freeze()
    return run


def _nothing() -> None:
    """Another process of several that compute one cell has the lock, and writes."""


def _run(cell: Cell, plain: Plain, overrides: Sequence[str], screen: Screen, check: Callable[[], None]) -> int:
    searched = None
    if cell.select.factors is not None:
        searched = search.try_rates(cell, functools.partial(_run_try, overrides))
    elif cell.select.trials is not None:
        searched = boundaries.try_strata(cell, functools.partial(_run_try, overrides))
    if searched is not None and _rank() == 0:
        screen.searched(searched)
    outcome = _runner()(cell, plain.raw, overrides, searched, check, glance(record_of(cell)).failed_on)
    if _rank() == 0:
        forget_deaths(folder_of(cell))
        screen.ended(outcome)
    return 0 if outcome.error is None else getattr(outcome.error, "exit_code", 1)


def _predict(cell: Cell, screen: Screen, check: Callable[[], None]) -> int:
    from peftbench.runner.later_predictions import predict

    record = predict(cell, folder_of(cell), check)
    if _rank() == 0:
        forget_deaths(folder_of(cell))
        screen.predicted(record, record_of(cell))
    return 0


def _run_try(overrides: Sequence[str], words: Sequence[str]) -> tuple[Record, str] | None:
    """One try of a search: find its record, or run it; None where another runner has it."""
    plain = compose.plain([*overrides, *words])
    cell = build.build_plain(plain)
    with Lock(folder_of(cell)) as lock:
        inputs = _inputs(cell)
        if inputs is not None and (result := _finished(cell, inputs)) is not None:
            record = result[0]
        else:
            _check_writable(lock, cell)
            if not lock.held:
                return None
            if inputs is not None:
                done.make_way(folder_of(cell), inputs)
            record = _runner()(cell, plain.raw, [*overrides, *words], check=lock.check).record
            forget_deaths(folder_of(cell))
    return record, cell.folder


def with_hydra(config: DictConfig, hydra: Any) -> DictConfig:
    """A job's configuration with Hydra's own part, which Hydra hands out apart."""
    with open_dict(config):
        config.hydra = hydra
    return config
