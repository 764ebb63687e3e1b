"""The command in a process of its own, forked from one that has imported what commands import, and composed once.

Starting Python with torch and transformers takes longer than most of what a test asks of the command, and Hydra's first
composition half a second.
"""

import atexit
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

COMMANDS = ("count", "run", "studies", "use", "views", "words", "work", "trust")
HEAVY = ("report.page", "report.plots", "report.submission", "report.sync", "runner.apply", "runner.run")
HEAVY += ("study.reproduce", "study.sweep", "study.work")
TIMEOUT = 300.0  # seconds

_forks = multiprocessing.get_context("forkserver")
_imported = [*(f"peftbench.commands.{name}" for name in COMMANDS), *(f"peftbench.{name}" for name in HEAVY)]
_forks.set_forkserver_preload(["__main__", *_imported, "composed"])


@functools.cache
def _begin() -> None:
    """Start the process to fork from; before Python 3.13 it does not look for modules where we do, unless told."""
    plain = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([plain] if plain else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ |= {} if plain is None else {"PYTHONPATH": plain}


class Running:
    """The command at work in a process of its own; looks like `subprocess.Popen` with text and both its pipes."""

    def __init__(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> None:
        """`environment` is all of it; variables that Python or a library reads as it is imported have no effect."""
        _begin()
        self._place = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._place.name) / name for name in ("out", "err"))
        self.args = list(words)
        said = str(self._out), str(self._err)
        self._process = _forks.Process(target=_command, args=(self.args, str(cwd), dict(environment), *said))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float = TIMEOUT) -> int:
        """The exit code, when it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process.pid is not None and self.returncode is None:
            with suppress(ProcessLookupError):  # it ended this moment
                os.kill(self._process.pid, number)

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """Output and errors, when it has ended; one that does not end in time is killed."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        with self._place:
            return self._out.read_text(), self._err.read_text()


def run(words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python -m peftbench` makes of these words; see `Running`."""
    running = Running(words, cwd, environment)
    out, err = running.communicate()
    return subprocess.CompletedProcess(running.args, running.wait(), out, err)


def _command(words: Sequence[str], cwd: str, environment: Mapping[str, str], out: str, err: str) -> None:
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined] # a shell starts it: no worker
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    from peftbench import __main__ as main

    sys.argv = [str(main.__file__), *words]
    try:
        main.main()
    finally:
        atexit._run_exitfuncs()  # a forked process leaves these out
