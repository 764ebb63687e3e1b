"""Optuna's journal of a search: the next proposal follows from it alone, so a search that was stopped goes on.

One runner at a time asks it.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftbench.ground.errors import ConfigError, DataError
from peftbench.study.lock import Lock

FILE = "trials.journal"


def check(key: str) -> None:
    """Refuse a search, named by its key, that cannot be made here.

    Raises:
        ConfigError: Optuna is not installed, or several processes compute together.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{key}: a search asks in one process; run it once without a launcher of processes")
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"{key}: needs Optuna, which is not installed: pip install 'peftbench[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def alone(folder: Path, outputs: str) -> Iterator[None]:
    """Within, no other runner asks the journal in this folder; whoever has it is waited for.

    Raises:
        ConfigError: the folder cannot be written.
    """
    while True:
        with Lock(folder) as lock:
            if lock.refused:
                raise ConfigError(f"outputs={outputs}: {folder} cannot be written ({lock.refused})")
            if lock.held:
                yield
                return
        time.sleep(1)


def opened(journal: Path, name: str) -> Any:
    """The search of this name as Optuna knows it, of which the highest score is wanted.

    Raises:
        DataError: the journal of an earlier search cannot be read.
    """
    from optuna import create_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
        raise DataError(f"{journal}: not a readable journal of Optuna; delete it, finished tries are kept") from None


def asked(study: Any, space: Mapping[str, Any], seed: int) -> Any:
    """The next trial, proposed by TPE (Bergstra et al. 2011) from those before it."""
    from optuna.samplers import TPESampler

    study.sampler = TPESampler(seed=seed)  # anew for every proposal: no state but the journal
    return study.ask(space)
