"""Many cells composed together: Hydra needs a tenth of a second for each, so all cores share them out."""

import signal
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from peftbench.config import build, compose
from peftbench.config.spec import Cell
from peftbench.ground.environment import cores
from peftbench.ground.errors import ConfigError

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
FEW = 8  # cells that one process composes sooner than others are started


def cells_from(lines: Sequence[Sequence[str]], to_come: Collection[Path] = ()) -> Iterator[Cell | ConfigError]:
    """The cell that each list of overrides describes, in their order, or what is wrong with it.

    The other processes compose; this one, on a core of its own, imports what the methods need meanwhile, and checks
    what comes.

    Args:
        to_come: see `build.build_plain`.
    """
    if len(lines) < FEW:
        yield from (_cell(words, None, to_come) for words in lines)
        return
    with ProcessPoolExecutor(max(1, cores() - 1), initializer=_leave_signals_to_the_parent) as others:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none reaches a child that is not set up yet
        try:
            plains = others.map(_plain, lines)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            for words, plain in zip(lines, plains, strict=True):
                yield _cell(words, plain, to_come)
        except BaseException:
            others.shutdown(cancel_futures=True)  # what nobody waits for is not composed
            raise


def _plain(words: Sequence[str]) -> build.Plain | None:
    """What the cell is built from; None where it is not possible."""
    try:
        return compose.plain(words)
    except ConfigError:
        return None


def _cell(words: Sequence[str], plain: build.Plain | None, to_come: Collection[Path]) -> Cell | ConfigError:
    """The cell, out of its words where it has not been composed."""
    try:
        return compose.cell_from(words, to_come) if plain is None else build.build_plain(plain, to_come)
    except ConfigError as error:
        return error


def _leave_signals_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in SIGNALS - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
