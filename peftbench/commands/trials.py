"""`peftbench run -m hydra/sweeper=optuna`: keys of the configuration, searched by Optuna."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from peftbench.commands.tables import paste, say
from peftbench.config import compose
from peftbench.config.words import OPTUNA
from peftbench.ground import escape
from peftbench.ground.errors import ConfigError

if TYPE_CHECKING:
    from peftbench.study.trials import Asked, Best


def asked_for(words: Sequence[str]) -> bool:
    """Whether Optuna is to propose the cells of a command line."""
    return OPTUNA in words


def run(overrides: Sequence[str], hydra_s: Sequence[str], multirun: bool, launch: Callable[[], object]) -> int:
    """Run what is left of the trials, and say which values were best, and how to run them with all seeds.

    The exit code is 0, or 1 where trials are left.

    Args:
        overrides: all that were typed but Hydra's own settings, which are `hydra_s`.
        launch: lets Hydra's sweeper run what is prepared.

    Raises:
        ConfigError: what is searched, or how, is not possible, or no trial has a score.
    """
    if not multirun:
        raise ConfigError(f"{OPTUNA}: a search needs -m (peftbench run -m ...)")
    from peftbench.study import trials

    asked = prepared(overrides, hydra_s)
    with trials.opened(asked) as search:
        before = search.best().trials
        if before < asked.settings.trials:
            launch()
        best = search.best()
        if search.problem:
            print(search.problem, file=sys.stderr)
    _say(asked, best, before)
    return 0 if best.trials >= asked.settings.trials else 1


def prepared(overrides: Sequence[str], hydra_s: Sequence[str]) -> "Asked":
    """The search that a command line describes; see `trials.prepare`."""
    from peftbench.study import sweep, trials

    plain = [str(item.input_line) for item in sweep.parsed(overrides) if not item.is_sweep_override()]
    return trials.prepare(overrides, compose.load([*hydra_s, *plain]).hydra.sweeper)


def plan(words: Sequence[str]) -> int:
    """Check a search, and say what it would try."""
    hydra_s = [word for word in words if word.startswith(("hydra/", "hydra."))]
    asked = prepared([word for word in words if word not in hydra_s or word.startswith(compose.SEARCHPATH)], hydra_s)
    rows = asked.cell.select.rows.replace("_", "-")
    say(f"{asked.settings.trials} trials, scored on {rows} rows; Optuna chooses:")
    for key, distribution in asked.space.items():
        say(f"  {key}: {_in_words(distribution)}")
    return 0


def _in_words(one: object) -> str:
    values = getattr(one, "choices", None)
    if values is not None:
        return f"one of {', '.join(map(str, values))}"
    low, high, log, step = (getattr(one, key) for key in ("low", "high", "log", "step"))
    how = ", evenly over its logarithm" if log else f", in steps of {step:g}" if step not in (None, 1) else ""
    return f"{low:g} to {high:g}{how}"


def _say(asked: "Asked", best: "Best", before: int) -> None:
    failed = f", {best.trials - best.scored} without a score" if best.trials > best.scored else ""
    earlier = f" ({min(before, best.trials)} of them before)" if before else ""
    say(f"{best.trials} of {asked.settings.trials} trials done{earlier}{failed}")
    if best.score is None:
        if best.trials:
            raise ConfigError(f"{OPTUNA}: none of {best.trials} trials has a score")
        return
    rows = asked.cell.select.rows.replace("_", "-")
    say(f"best: {asked.cell.task.headline} {best.score:.4f} on {rows} rows, {' '.join(best.values)}")
    paste(best.folder)
    say("with all seeds:")
    paste(escape.shell(["peftbench", "run", "-m", *best.words]))
