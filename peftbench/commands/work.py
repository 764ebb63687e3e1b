"""`peftbench work`, `stop`: workers that take a study's open cells, on this machine or many."""

import functools
import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peftbench.commands import artefact_work, run
from peftbench.commands.artefact_work import LineStatus
from peftbench.commands.parsing import Parser, count, seconds
from peftbench.commands.use import add_searchpath, known_classes
from peftbench.ground import environment
from peftbench.ground.errors import BadInput, ConfigError
from peftbench.ground.files import check_study, expanded
from peftbench.ground.quantity import quantity
from peftbench.record import Record, Search
from peftbench.study import lock
from peftbench.training import stopping

MOST_WORKERS = 1000  # on one machine

if TYPE_CHECKING:
    from peftbench.runner.run import Outcome
    from peftbench.study.queue import Queue

STOPPED = 76  # exit code of workers that were asked to leave: whoever starts them again for another one leaves it


def work(arguments: Sequence[str]) -> int:
    """`peftbench work STUDY`: take open cells, the longest first, then artefacts of them, until nothing is left; the
    exit code of a sweep."""
    parser = Parser(prog="peftbench work")
    most = functools.partial(count, most=MOST_WORKERS)
    parser.add_argument("study", help="name of the study, a folder under the outputs; plan ... --save lists its cells")
    parser.add_argument("--outputs", default="outputs", help="where the records lie, a folder that all workers share")
    parser.add_argument("--until", type=seconds, help="leave after so long, e.g. 3h50m; what runs keeps a checkpoint")
    parser.add_argument("--cells", type=count, help="leave after so many cells and artefacts' lines")
    parser.add_argument("--workers", type=most, default=1, help="processes on this machine, which share its cores")
    parser.add_argument(
        "--wait", action="store_true", help="stay while other workers run cells: if they die, take these"
    )
    add_searchpath(parser)
    options = parser.parse_args(arguments)
    outputs = expanded(options.outputs)
    check_study(options.study)
    began = lock.clock_of(outputs / options.study) - environment.age_s()  # a stop since then is meant for this worker
    environment.one_process("work")
    queue = open_queue(options)  # what is wrong with the study is said once
    if not queue.cells and not artefact_work.lines_of(outputs, options.study):
        problem = f"no list of cells under {outputs}; peftbench plan ... --save makes it"
        raise ConfigError(f"study {options.study}: {problem}")
    codes = share(options, began) if options.workers > 1 else _work(options, queue, began)
    code = run.summed_up(queue.sweep(), codes) if queue.cells else 0
    code = code or _artefacts_summed_up(outputs, artefact_work.lines_of(outputs, options.study))
    return STOPPED if code == 1 and STOPPED in codes else code


def _artefacts_summed_up(outputs: Path, lines: Sequence[LineStatus]) -> int:
    """Say how the lines of artefacts stand, where there are any, and give their exit code."""
    if not lines:
        return 0
    print(artefact_work.in_words(lines))
    if failed := artefact_work.by_state(lines)["failed"]:
        return 100 + min(99, failed)
    return int(artefact_work.is_any_left(outputs, lines))


def stop(arguments: Sequence[str]) -> int:
    """`peftbench stop STUDY`: every worker leaves after its step; the same `work` goes on from there."""
    parser = Parser(prog="peftbench stop")
    parser.add_argument("study", help="name of the study, a folder under the outputs")
    parser.add_argument("--outputs", default="outputs", help="where the records lie")
    options = parser.parse_args(arguments)
    from peftbench.study import status, work

    outputs = expanded(options.outputs)
    running = [cell for cell in status.cells_of(outputs, options.study) if cell.state == "running"]
    work.stop(outputs / options.study)
    print(f"{options.study}: workers are asked to leave; {quantity(len(running), 'cell is', 'cells are')} running")
    return 0


def open_queue(options: Namespace) -> "Queue":
    """The open cells of the study, as they are listed now."""
    from peftbench.study.queue import Queue

    return Queue(expanded(options.outputs), options.study, known_classes(options.searchpath))


def _work(options: Namespace, queue: "Queue", began: float) -> list[int]:
    """Be one worker; gives the exit codes of cells that were refused, or that it was stopped.

    Args:
        began: when the command began (s), by the folder's clock.

    Raises:
        Stopped: a signal came.
    """
    from peftbench.study import work

    leaving = work.Leaving(queue.outputs / queue.study, options.until, began)
    made = artefact_work.Artefacts(queue.outputs, queue.study)
    try:
        with leaving:
            return work.work([work.Cells(queue, Brief(queue.outputs)), made], options.cells, options.wait)
    except stopping.Stopped:
        if leaving.reason is None:
            raise
        stopping.leave_on_signals()
        print(f"left: {leaving.reason}")
        return [STOPPED] if leaving.is_stopped else []


def share(options: Namespace, began: float) -> list[int]:
    """Be as many workers as were asked for, each a process with its share of the cores; gives those that did not end
    well, by their exit codes."""
    environment.share_threads(options.workers)
    processes = multiprocessing.get_context("spawn")
    workers = [processes.Process(target=_as_worker, args=(options, began)) for _ in range(options.workers)]
    with stopping.workers_first(lambda: None):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for worker in workers:
        if worker.exitcode and worker.exitcode < 0:
            print(f"a worker was ended by signal {-worker.exitcode}", file=sys.stderr)
    return [worker.exitcode or 0 for worker in workers]


def _as_worker(options: Namespace, began: float) -> None:
    stopping.leave_on_signals()
    environment.prepare()
    try:
        sys.exit(max(_work(options, open_queue(options), began), default=0))
    except BadInput as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    except stopping.Stopped as stopped:
        sys.exit(stopped.exit_code)


class Brief:
    """A line for every cell that ends."""

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs

    def already_done(self, record: Record, path: Path) -> None:
        """Another worker was faster."""

    def elsewhere(self, folder: Path, owner: str) -> None:
        """As well."""

    def searched(self, search: Search) -> None:
        """See `cell.Screen`."""
        from peftbench.commands import screen

        screen.searched(search)

    def predicted(self, record: Record, path: Path) -> None:
        """See `cell.Screen`."""
        print(f"predicted: {path.parent.relative_to(self._outputs)}", flush=True)

    def ended(self, outcome: "Outcome") -> None:
        """See `cell.Screen`."""
        from peftbench.commands import screen

        record = outcome.record
        said = f"{record.headline.name} {screen.score(record)}" if outcome.error is None else record.reason
        folder = outcome.path.parent.relative_to(self._outputs)
        print(f"{record.status}: {folder}: {said}, {record.time.total_s:.1f} s", flush=True)
