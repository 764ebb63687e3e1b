"""Weights & Biases follows a run."""

import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peftbench.config.spec import TrackerSpec
from peftbench.ground import environment
from peftbench.ground.errors import shown, warn
from peftbench.training.fit import Scores

# W&B's own words for one run, which must not make one of all cells.
OF_ONE_RUN = (
    *("WANDB_RUN_ID", "WANDB_RUN_NAME", "WANDB_NAME", "WANDB_RUN_STORAGE_ID"),
    *("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM"),
)


class WandbRun:
    """One W&B run for one cell."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def begin(self, steps: int, done: int) -> None:
        """Nothing to log."""

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """See `Watcher`."""
        self._run.log({f"train/{key}": value for key, value in facts.items()}, step=step)

    def evaluation(self, evaluation: Scores) -> None:
        """See `Watcher`."""
        points = {f"dev/{key}": value for key, value in evaluation.metrics.items()}
        self._run.log({**points, "dev/epoch": evaluation.epoch}, step=evaluation.step)

    def end(self, summary: Mapping[str, Any]) -> None:
        """See `Watcher`."""
        self._run.summary.update(dict(summary))


@contextmanager
def wandb_run(tracker: TrackerSpec, folder: Path, described: Mapping[str, Any]) -> Iterator[list[WandbRun]]:
    """A W&B run while the block runs; it is finished with exit code 1 where the block raises.

    Every cell and every attempt is a run of its own, also after another in this process crashed. W&B being
    unreachable never stops a run.

    Args:
        folder: where W&B's files go.
        described: its group, name, tags and config.
    """
    how = mode(tracker.mode)
    run = None if how == "disabled" else _begin(tracker, folder, described, how)
    if run is None:
        yield []
        return
    try:
        yield [WandbRun(run)]
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)


def _begin(tracker: TrackerSpec, folder: Path, described: Mapping[str, Any], how: Any) -> Any:
    """W&B's run of a cell; None where even an offline one cannot be made."""
    for name in OF_ONE_RUN:
        os.environ.pop(name, None)
    if word := environment.wandb_mode():
        os.environ["WANDB_MODE"] = word  # W&B itself does not know all words that it once knew
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    settings: dict[str, Any] = {
        **described,
        "project": tracker.project,
        "entity": tracker.entity,
        "dir": str(folder.absolute()),  # W&B's own process may stand in another folder
        "reinit": "finish_previous",
    }
    attempts: list[tuple[Any, str]] = [(how, "this run is kept offline"), ("offline", "this run is not followed")]
    for kept_as, otherwise in attempts:
        try:
            timeout = environment.seconds("WANDB_INIT_TIMEOUT", 30.0)
            own = wandb.Settings(console="off", disable_git=True, init_timeout=timeout)
            return wandb.init(mode=kept_as, settings=own, **settings)
        except (wandb.Error, ValueError, OSError) as error:
            reason = shown(next(iter(str(error).strip().splitlines()), type(error).__name__), 100)
            warn(f"tracker.mode={kept_as}: W&B cannot be used ({reason}); {otherwise}")
    return None


def mode(asked: str) -> Any:
    """How W&B is used: online, offline or disabled. `auto` is what W&B's own environment says, else online with a key
    alone: asking for one on a terminal would stop a sweep.

    Raises:
        ConfigError: the environment says something that W&B never knew.
    """
    if asked != "auto":
        return asked
    return environment.wandb_mode() or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False
