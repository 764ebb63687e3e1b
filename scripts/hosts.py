"""Hosts made with `unshare`: a worker with process numbers, a host name, a network and a clock of its own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ENDED = re.compile(r"done: (\S+): .* s$")
# What a host's Python runs first: its clock, which jumps when the file says another number of seconds.
CLOCK = """
import os, time
def shifted(plain=time.time, path=os.environ["HOST_CLOCK"]):
    try:
        with open(path) as file:
            return plain() + float(file.read() or 0)
    except (OSError, ValueError):
        return plain()
time.time = shifted
"""


class Ended(NamedTuple):
    """A cell that a worker said it finished: when, the processor's time by then, and of which start of the host."""

    at: float
    processor_s: float
    folder: str
    start: int


class Host:
    """A machine with one worker, which is started again whenever it ends."""

    def __init__(self, name: str, work: Path, source: Path | None = None) -> None:
        self.name, self.source = name, source
        self.own = work / self.name
        self.own.mkdir(parents=True, exist_ok=True)
        (self.own / "sitecustomize.py").write_text(CLOCK)
        self.process: subprocess.Popen[str] | None = None
        self.starts = 0
        self.ended: list[Ended] = []

    def start(self, *words: str) -> bool:
        """Start the command with these words, unless it runs; gives whether it did."""
        if self.runs():
            return False
        paths = [str(self.own), str(self.source or Path(__file__).resolve().parents[1])]
        variables = {
            **os.environ, "PYTHONPATH": ":".join(paths), "HOST_CLOCK": str(self.own / "clock"), "OMP_NUM_THREADS": "1",
            "PEFTBENCH_CACHE": str(self.own / "cache"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        line = ["setpriv", "--pdeathsig", "KILL"]  # no host outlives this driver
        line += ["unshare", "--pid", "--uts", "--net", "--fork", "--kill-child", "--mount-proc"]
        line += ["sh", "-c", f'hostname {self.name}; exec "$@"', "sh", sys.executable, "-m", "peftbench", *words]
        self.starts += 1
        self.process = subprocess.Popen(
            line, env=variables, cwd=self.own, text=True, stdout=subprocess.PIPE,
            stderr=(self.own / "errors.txt").open("a"), start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(self.process, self.starts), daemon=True)
        self.reader.start()
        return True

    def runs(self) -> bool:
        """Whether its worker is there, stopped ones included."""
        return self.process is not None and self.process.poll() is None

    def wait(self) -> None:
        """Wait until it has ended, and all that it said is read."""
        assert self.process is not None
        self.reader.join()
        self.process.wait()

    def _read(self, process: subprocess.Popen[str], start: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if match := ENDED.search(line):
                self.ended.append(Ended(time.monotonic(), processor_seconds(process.pid), match[1], start))

    def send(self, number: int) -> bool:
        """Send a signal to all its processes; gives whether it runs."""
        if self.process is None or not self.runs():
            return False
        os.killpg(self.process.pid, number)
        return True

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.wait()

    def said(self, words: str) -> int:
        """How many lines of its errors have these words."""
        path = self.own / "errors.txt"
        return sum(words in line for line in path.read_text(errors="replace").splitlines()) if path.exists() else 0


def processor_seconds(parent: int) -> float:
    """What the processor gave so far to the children of a process that only waits for them."""
    seconds = 0.0
    with suppress(OSError):
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds
