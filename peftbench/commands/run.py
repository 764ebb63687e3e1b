"""`peftbench run`: one cell, or a sweep over many."""

import functools
import multiprocessing
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from peftbench.commands import hydra_words, screen, trials
from peftbench.commands.parsing import Parser
from peftbench.config import compose
from peftbench.config.words import CONFIG_NAME, conf_dir
from peftbench.ground import environment
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.quantity import quantity
from peftbench.training import stopping

if TYPE_CHECKING:
    from peftbench.study.sweep import Sweep

REFUSED = (ConfigError.exit_code, DataError.exit_code)


class OutputLost(BaseException):
    """Nothing more can be printed; no Exception, since of those Hydra makes a report of its own."""


def run(arguments: Sequence[str]) -> int:
    """`peftbench run`: check everything, then let Hydra run one cell or sweep over many."""
    from hydra._internal.utils import get_args_parser

    arguments = [compose.longhand(argument) for argument in arguments]
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))  # wherever it was typed
    parser = Parser(prog="peftbench run", parents=[get_args_parser()], add_help=False)
    options = parser.parse_args(list(arguments))
    if options.help or options.hydra_help or options.cfg or options.info or options.shell_completion:
        _run(arguments)
        return 0
    prefixes = ("hydra.", "hydra/")  # of Hydra's own settings only this one says what a cell is
    settings = [item for item in options.overrides if item.lstrip("+~").startswith(prefixes)]
    hydra_words.check(options, settings)
    own = [item for item in options.overrides if item not in settings or item.startswith(compose.SEARCHPATH)]
    if trials.asked_for(settings):
        return trials.run(own, settings, options.multirun, functools.partial(_launch, arguments))
    if options.multirun:
        return run_sweep(arguments, own)
    compose.cell_from(own)
    codes = _run(arguments)
    return codes[-1] if codes else 0


def run_sweep(arguments: Sequence[str], overrides: Sequence[str]) -> int:
    """Run what is left of a sweep.

    The exit code is 0; 100 and the number of cells that failed, 199 at most; 2 or 3 where input was refused that only
    a run could see (a worker's refusals are not known here); 1 where cells are left for any other reason.
    """
    from peftbench.study import sweep

    return run_cells(sweep.prepare(sweep.cells_of(overrides), rerun_word(overrides), run_here=True), arguments)


def run_cells(prepared: "Sweep", arguments: Sequence[str] = ("-m",)) -> int:
    """Let Hydra run what is left of a sweep, and say how all of it stands; `arguments` are the command line's."""
    from peftbench.study import sweep

    codes: list[int] = []
    if prepared.left:
        sweep.left[:] = [cell.overrides for cell in prepared.left]
        codes = _launch(arguments)
    return summed_up(prepared, codes)


def summed_up(prepared: "Sweep", codes: Sequence[int]) -> int:
    """Say how all of a sweep's cells stand, and give its exit code; `codes` are those of cells of this process."""
    from peftbench.study import sweep

    tally = sweep.tally(prepared)
    texts = {"quarantined": "of these on two hosts (rerun=failed tries them again)"}
    texts |= {"deadly": "of these with three deaths of who ran them (peftbench run -m tries them again)"}
    texts |= {"elsewhere": "with another runner", "left": "left"}
    notes = [f"{tally[key]} {text}" for key, text in texts.items() if tally[key]]
    before = f" ({prepared.before} of them before)" if prepared.before else ""
    cells = quantity(len(prepared.cells), "cell")
    print(", ".join([f"{cells}: {tally['done']} done{before}", f"{tally['failed']} failed", *notes]))
    if tally["failed"]:
        return 100 + min(99, tally["failed"])
    if codes and all(code in REFUSED for code in codes) and tally["left"] == len(prepared.cells):
        sweep.forget(prepared)
    return max((code for code in codes if code in REFUSED), default=1) if tally["left"] else 0


def _launch(arguments: Sequence[str]) -> list[int]:
    """Let Hydra run the sweep, and give the exit codes of cells that ran in this process.

    A launcher whose own jobs died ends it, and what they had done counts.
    """
    from peftbench.study import sweep

    environment.leave_threads_to_workers()
    with stopping.workers_first(sweep.left.clear):
        codes, error = hydra_jobs(arguments)
        if error is not None:
            stopping.check()
            print(f"the launcher gave up: {str(error).strip().splitlines()[0]}", file=sys.stderr)
    return codes


def _run(arguments: Sequence[str]) -> list[int]:
    """As `hydra_jobs`, and an error that ended it is raised."""
    codes, error = hydra_jobs(arguments)
    if error is not None:
        raise error
    return codes


def hydra_jobs(arguments: Sequence[str]) -> tuple[list[int], Exception | None]:
    """Hand a command line to Hydra.

    Returns:
        The exit code of every cell that ran in this process, and the error that ended the rest (None: nothing did).
    """
    from hydra import main as hydra_main

    codes: list[int] = []
    sys.argv = [sys.argv[0], *arguments]

    def task(config: DictConfig) -> int:
        from hydra.core.hydra_config import HydraConfig

        from peftbench.study.cell import run_cell, with_hydra

        environment.prepare()  # of a worker, which may run elsewhere
        in_worker = _is_worker()
        hydra = HydraConfig.get()
        paths = [item for item in hydra.overrides.hydra if item.startswith(compose.SEARCHPATH)]
        try:
            stopping.check()
            codes.append(run_cell(with_hydra(config, hydra), [*paths, *hydra.overrides.task], screen))
        except OSError as error:
            raise OutputLost from error
        except stopping.Stopped as stopped:
            if not in_worker:
                raise
            return stopped.exit_code  # the parent waits for all workers, and would kill the others for an exception
        return codes[-1]

    try:
        hydra_main(config_path=str(conf_dir()), config_name=CONFIG_NAME, version_base="1.3")(task)()
    except OutputLost as lost:
        raise (lost.__cause__ or lost) from None
    except Exception as error:
        return codes, error
    return codes, None


@functools.cache
def _is_worker() -> bool:
    """Whether this process is one of a launcher on this machine; it then ends by a signal as the command does."""
    is_one = multiprocessing.parent_process() is not None
    if is_one:
        stopping.leave_on_signals()
    return is_one


def rerun_word(overrides: Sequence[str]) -> str:
    """What `rerun=` says, the last one typed."""
    return next((item.partition("=")[2] for item in reversed(overrides) if item.startswith("rerun=")), "unfinished")
