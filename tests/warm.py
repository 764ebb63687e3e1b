"""The command in a process of its own, forked from a process that has imported what commands import, and done no more.

Starting Python with torch and transformers takes longer than most of what a test asks of the command.
"""

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMANDS = ("count", "run", "studies", "use", "views", "words", "work", "trust")
HEAVY = ("report.page", "report.plots", "report.submission", "report.sync", "runner.apply", "runner.run")
HEAVY += ("study.reproduce", "study.sweep", "study.work")
TIMEOUT = 300.0  # seconds

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    ["__main__", *(f"peftbench.commands.{name}" for name in COMMANDS), *(f"peftbench.{name}" for name in HEAVY)]
)


def run(words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """What `python -m peftbench` makes of these words; `environment` is all of it.

    Variables that Python or a library reads as it is imported have no effect.
    """
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        child = _forks.Process(target=_command, args=(words, str(cwd), dict(environment), str(out), str(err)))
        child.start()
        child.join(TIMEOUT)
        if child.exitcode is None:
            child.kill()
            child.join()
            raise subprocess.TimeoutExpired(list(words), TIMEOUT)
        return subprocess.CompletedProcess(list(words), child.exitcode, out.read_text(), err.read_text())


def _command(words: Sequence[str], cwd: str, environment: Mapping[str, str], out: str, err: str) -> None:
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
