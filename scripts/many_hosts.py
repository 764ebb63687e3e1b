"""Several hosts work on one study in one shared folder while everything goes wrong; nothing may be lost or wrong.

    sudo python scripts/many_hosts.py [--minutes 30] [--hosts 4] [--cells 240] [--older CHECKOUT] [--seed 0]

A host is a worker with process numbers, a host name, a network and a clock of its own (unshare). First one worker
runs the study undisturbed, which gives the reference. Then hosts share it, study after study until the time is over,
while they are killed, stopped beyond the heartbeat, their clocks jump by minutes, the folder is read-only or full for a
moment, workers are asked to leave, and a runner of an older version (--older: its source) takes part. A host that ended
is started again with the same command; cells that workers leave alone are asked for. Prints figures as
JSON and exits with 1 where one is not what it should be.

Of the undisturbed worker, per cell, in seconds of wall time (means over all cells but the first, which pays for
imports): `between_s` passes from the end of a cell's run to the start of the next one's, for claiming, composing,
checking what is there, and writing the record; `fixed_s` passes in the run and is neither training nor evaluation;
`overhead_s` is the sum of both. `busy` is the share of time that is not between runs. `processor_s` is the processor's
time per cell for all of it, training included, which says more than the others where the machine has other work.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from peftbench.ground.files import RECORD_FILE
from peftbench.record import find_records, read_record, record_status
from peftbench.study import status
from peftbench.study.lock import DEAD

CELL = [
    "model=bert_tiny", "model.weights=random", "model.config.vocab_size=2000", "task=sst2", "data=sample",
    "data.limit=48", "protocol.max_length=24", "protocol.batch_size=8", "protocol.max_steps=8", "tracker=none",
    "protocol.evaluate_every=4", "progress=false", "checkpoint_every=0", "method=bitfit,lora,id3", "budget.like=bitfit",
]  # fmt: skip
ENDED = re.compile(r"done: (\S+): .* s$")
PATIENCE = 600  # seconds without a new record after which what is missing counts as lost
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


class Host:
    """A machine with one worker, which is started again whenever it ends."""

    def __init__(self, number: int, work: Path, source: Path | None = None) -> None:
        self.name, self.work, self.source = f"host{number}", work, source
        self.own = work / self.name
        self.own.mkdir(exist_ok=True)
        (self.own / "sitecustomize.py").write_text(CLOCK)
        self.process: subprocess.Popen[str] | None = None
        self.ended: list[tuple[float, float, str]] = []  # of every cell: when its line came, processor time, folder

    def start(self, *words: str) -> None:
        """Start the command with these words, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            return
        paths = [str(self.own), str(self.source or Path(__file__).resolve().parents[1])]
        variables = {
            **os.environ, "PYTHONPATH": ":".join(paths), "HOST_CLOCK": str(self.own / "clock"), "OMP_NUM_THREADS": "1",
            "PEFTBENCH_CACHE": str(self.own / "cache"), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        inside = f'hostname {self.name}; exec "$@"'
        line = ["unshare", "--pid", "--uts", "--net", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inside]
        self.process = subprocess.Popen(
            [*line, "sh", sys.executable, "-m", "peftbench", *words], env=variables, cwd=self.own, text=True,
            stdout=subprocess.PIPE, stderr=(self.own / "errors.txt").open("a"), start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()

    def wait(self) -> None:
        """Wait until it has ended, and all that it said is read."""
        assert self.process is not None
        self.reader.join()
        self.process.wait()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if match := ENDED.search(line):
                self.ended.append((time.monotonic(), processor_seconds(process.pid), match[1]))

    def send(self, number: int) -> None:
        """Send a signal to all its processes."""
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


def processor_seconds(parent: int) -> float:
    """What the processor gave so far to the children of a process that only waits for them."""
    seconds = 0.0
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with suppress(OSError):
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


class Driver:
    """The hosts, their faults, and what is found."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.random, self.options = random.Random(options.seed), options
        self.shared = work / "shared"
        self.shared.mkdir()
        self.has_disk = self._mount("size=2g")  # of its own, so that it can be closed and filled
        self.hosts = [Host(number, work) for number in range(options.hosts)]
        self.older = None if options.older is None else Host(options.hosts, work, options.older.resolve())
        self.faults: collections.Counter[str] = collections.Counter()
        self.seen: dict[Path, str] = {}  # hash of every record when it was first seen
        self.errors = {"lost": 0, "wrong": 0, "written twice": 0}
        self.cells_left_alone = 0
        self.words = [*CELL, f"seed=range({max(1, options.cells // 3)})", f"outputs={self.shared}"]
        self.until: list[tuple[float, str, Host]] = []  # what of a fault is to be undone, and when

    def _mount(self, options: str) -> bool:
        line = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.shared)]
        return subprocess.run(line, capture_output=True).returncode == 0

    def alone(self) -> dict[str, float]:
        """One worker, undisturbed: the reference, and what a cell costs beside training and evaluation."""
        self.plan("reference", "checkpoint_every=300")  # as it is by default
        host = self.hosts[0]
        host.start("work", "reference", "--outputs", str(self.shared))
        host.wait()
        self.reference = self.state("reference")
        if len(self.reference) != self.cells:
            raise SystemExit("the undisturbed study did not finish; see errors.txt")
        (first, processor_first, _), *others = host.ended
        last, processor_last, _ = others[-1]
        times = [read_record(self.shared / folder / RECORD_FILE).time for _, _, folder in others]
        ran = sum(one.total_s for one in times)
        between, fixed = last - first - ran, sum(one.setup_s for one in times)
        per_cell = {"overhead_s": between + fixed, "between_s": between, "fixed_s": fixed}
        per_cell["processor_s"] = processor_last - processor_first
        mean = {name: round(seconds / len(others), 3) for name, seconds in per_cell.items()}
        return {**mean, "busy": round(ran / (last - first), 3)}

    def plan(self, study: str, *more: str) -> None:
        """List a study's cells."""
        line = [sys.executable, "-m", "peftbench", "plan", f"study={study}", *self.words, *more, "--save"]
        listed = subprocess.run(line, check=True, capture_output=True, text=True, cwd=self.shared).stdout.splitlines()
        self.cells = sum(line.startswith(f"{study}/") for line in listed)

    def disturbed(self, study: str) -> None:
        """All hosts and all faults until every cell of the study is done."""
        self.plan(study)
        done, progress = 0, time.monotonic()
        next_fault = time.monotonic() + 10
        while done < self.cells and time.monotonic() - progress < PATIENCE:
            if time.monotonic() - progress > 2 * DEAD and (number := self.left_alone(study)):
                self.cells_left_alone += number
                self.hosts[0].end()
                self.hosts[0].start("run", "-m", f"study={study}", *self.words, "rerun=failed")
                progress = time.monotonic()
            for host in self.hosts:
                host.start("work", study, "--outputs", str(self.shared))
            if time.monotonic() >= next_fault:
                self.disturb(study)
                next_fault = time.monotonic() + self.random.expovariate(1 / self.options.every)
            self.undo()
            time.sleep(1)
            if (now := self.look(study)) > done:
                done, progress = now, time.monotonic()
        self.undo(everything=True)
        for host in [*self.hosts, *([self.older] if self.older else [])]:
            host.end()
        states = self.state(study)
        self.errors["lost"] += len(self.reference.keys() - states.keys())
        self.errors["wrong"] += sum(states[cell] != kept for cell, kept in self.reference.items() if cell in states)
        self.look(study)

    def left_alone(self, study: str) -> int:
        """How many cells are tried again only if somebody asks: failed on two hosts, or with three deaths."""
        return status.by_state(status.cells_of(self.shared, study))["failed"]

    def disturb(self, study: str) -> None:
        """One fault, for some seconds or for good."""
        host, now = self.random.choice(self.hosts), time.monotonic()
        kinds = ["kill", "kill", "pause", "clock", "stop"]
        kinds += ["read-only", "full disk"] if self.has_disk else []
        kinds += ["older version"] if self.older else []
        kind = self.random.choice(kinds)
        if kind == "kill":
            host.send(signal.SIGKILL)
        elif kind == "pause":
            host.send(signal.SIGSTOP)
            self.until.append((now + DEAD + self.random.uniform(5, 40), kind, host))
        elif kind == "clock":
            (host.own / "clock").write_text(str(self.random.uniform(-900, 900)))
        elif kind == "stop":
            subprocess.run(
                [sys.executable, "-m", "peftbench", "stop", study, "--outputs", str(self.shared)], check=False
            )
        elif kind == "read-only":
            if not self._mount("remount,ro"):  # a file is open for writing; another time
                return
            self.until.append((now + self.random.uniform(1, 10), kind, host))
        elif kind == "full disk":
            with suppress(OSError), (self.shared / "ballast").open("wb") as file:
                while True:
                    file.write(bytes(1 << 20))
            self.until.append((now + self.random.uniform(1, 10), kind, host))
        elif self.older:
            self.older.start("run", "-m", f"study={study}", *self.words)
        self.faults[kind] += 1

    def undo(self, everything: bool = False) -> None:
        """End the faults whose time is over."""
        for entry in [entry for entry in self.until if everything or time.monotonic() >= entry[0]]:
            self.until.remove(entry)
            _, kind, host = entry
            if kind == "pause":
                host.send(signal.SIGCONT)
            elif kind == "read-only":
                self._mount("remount,rw")
            else:
                (self.shared / "ballast").unlink(missing_ok=True)

    def look(self, study: str) -> int:
        """How many cells are done; a finished record whose bytes change was written twice."""
        done = 0
        for path in find_records(self.shared / study):
            with suppress(OSError):
                content = path.read_bytes()
                if path in self.seen or record_status(path) == "done":
                    done += 1
                    digest = hashlib.sha256(content).hexdigest()
                    self.errors["written twice"] += self.seen.setdefault(path, digest) != digest
                    self.seen[path] = digest
        return done

    def state(self, study: str) -> dict[str, str]:
        """Of every finished cell what must not differ."""
        states = {}
        for path in find_records(self.shared / study):
            record = read_record(path)
            if record.status == "done":
                delta = hashlib.sha256((path.parent / "delta.safetensors").read_bytes()).hexdigest()
                states[str(path.parent.relative_to(self.shared / study))] = repr(
                    [record.metrics.evaluations, record.counts, record.hashes.delta, delta]
                )
        return states


def main(arguments: Sequence[str] | None = None) -> int:
    """Run hosts and faults, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--cells", type=int, default=240, help="of each study")
    parser.add_argument("--every", type=float, default=15, help="seconds between two faults, on average")
    parser.add_argument("--older", type=Path, help="source of an older version, whose `run -m` takes part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an empty folder to work in")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        driver = Driver((options.work or Path(made)).resolve(), options)
        try:
            alone = driver.alone()
            end, studies = time.monotonic() + 60 * options.minutes, 0
            while not studies or time.monotonic() < end:
                driver.disturbed(f"many{studies}")
                studies += 1
        finally:
            driver.undo(everything=True)
            for host in [*driver.hosts, *([driver.older] if driver.older else [])]:
                host.end()
            if driver.has_disk:
                subprocess.run(["umount", str(driver.shared)], check=False)
    faults = {"faults": sum(driver.faults.values()), "injected": dict(driver.faults)}
    print(json.dumps({"hosts": options.hosts, "studies": studies, "cells": driver.cells * studies} | faults | alone
                     | {"left alone": driver.cells_left_alone} | driver.errors, indent=1))  # fmt: skip
    return int(any(driver.errors.values()))


if __name__ == "__main__":
    sys.exit(main())
