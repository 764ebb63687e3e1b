"""Several hosts work on one study in one shared folder while everything goes wrong; nothing may be lost or wrong.

    git worktree add --detach /tmp/older OLDER
    sudo python scripts/many_hosts.py --older /tmp/older [--minutes 30] [--hosts 4] [--cells 240] [--report FILE]

A host is a worker with process numbers, a host name, a network and a clock of its own (unshare). First one worker
runs the study undisturbed, which gives the reference. Then hosts share it, study after study until the time is over
and the last study ended, while they are killed, stopped beyond the heartbeat, their clocks jump by minutes, the folder
is read-only or full for a moment, workers are asked to leave, and a worker of an older version takes part (--older: its
source; the OLDER that was tried: 16bc192). A host that ended is started again with the same command; cells that workers
leave alone are asked for.

Figures go to a file of JSON twice a minute, and to a table at the end; the exit code is 1 where one is not what it
should be, where a kind of fault was never injected, and where no worker had to give up its cell after a pause. `run
twice`: cells that ended more than once, counted over what all hosts said, and finished records whose bytes changed.
`wrong`: cells whose scores, counts, delta or predictions are not those of the undisturbed worker, byte for byte.

Of the undisturbed worker, per cell, in seconds of wall time (means over all cells but the first, which pays for
imports): `between_s` passes from the end of a cell's run to the start of the next one's, for claiming, composing,
checking what is there, and writing the record; `fixed_s` passes in the run and is neither training nor evaluation;
`overhead_s` is the sum of both; `cell_s` is the run. `processor_s` is the processor's time per cell for all of it,
training included, which says more than the others where the machine has other work. `busy_alone` is the share of time
that is not between runs, `load_alone` how many processes wanted to run on the machine (1 on one without other work).
`busy` is the share of the hosts that share a study, from one cell's end to the next of the same worker, where no fault
was going on.
"""

import argparse
import collections
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import proofs  # type: ignore[import-not-found]
from hosts import Host  # type: ignore[import-not-found]

from peftbench.ground.errors import DataError
from peftbench.ground.files import CHECKPOINT_FILE, RECORD_FILE, write_atomically
from peftbench.record import find_records, read_record, record_status
from peftbench.study import agreement, lock, status
from peftbench.study.queue import ROUND

CELL = [
    "model=bert_tiny", "model.weights=random", "model.config.vocab_size=2000", "task=sst2", "data=sample",
    "data.limit=48", "protocol.max_length=24", "protocol.batch_size=8", "protocol.max_steps=40", "tracker=none",
    "progress=false", "protocol.evaluate_every=20", "checkpoint_every=0", "method=bitfit,lora,id3",
    "budget.like=bitfit",
]  # fmt: skip
KINDS = ("kill", "pause", "clock", "stop", "read-only", "full disk", "older version")
OF_THE_FOLDER = ("read-only", "full disk")
PATIENCE = 600  # seconds without a new record after which what is missing counts as lost
MOST_OVERHEAD, LEAST_BUSY = 0.3, 0.95  # seconds per cell; share of time
REPORTED = 30.0  # seconds between two reports


@dataclass(eq=False)
class Fault:
    """A fault that is to be undone: of which kind, from when to when, of which host (None: of all)."""

    kind: str
    begin: float
    end: float
    host: Host | None


class Driver:
    """The hosts, their faults, and what is found."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.random, self.options, self.began = random.Random(options.seed), options, time.monotonic()
        self.shared = work / "shared"
        self.shared.mkdir(parents=True)
        self.has_disk = self._mount("size=512m")  # of its own, so that it can be closed and filled
        self.hosts = [Host(f"host{number}", work) for number in range(options.hosts)]
        self.older = None if options.older is None else Host("older", work, options.older.resolve())
        self.asker = Host("asker", work)
        self.all = [*self.hosts, self.asker, *([self.older] if self.older else [])]
        self.deck: list[str] = []  # kinds of faults to come: each comes once before one comes again
        self.injected: collections.Counter[str] = collections.Counter()
        self.faults: list[Fault] = []
        self.open: list[Fault] = []  # those that are not undone yet
        self.interrupted: set[str] = set()  # cells that another start of a worker began
        self.seen: dict[Path, str] = {}  # hash of every record when it was first seen
        self.seconds: dict[str, float] = {}  # of every finished cell's run
        self.changed: set[str] = set()
        self.lost: list[str] = []
        self.wrong: list[str] = []
        self.alone: dict[str, float] = {}
        self.cells = self.studies = 0
        self.left_alone: list[str] = []
        self.reported = 0.0
        self.words = [*CELL, f"seed=range({max(1, options.cells // 3)})", f"outputs={self.shared}"]

    def _mount(self, options: str) -> bool:
        line = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.shared)]
        return subprocess.run(line, capture_output=True).returncode == 0

    def undisturbed(self) -> None:
        """One worker, undisturbed: the reference, and what a cell costs beside training and evaluation."""
        self.plan("reference", "checkpoint_every=300")  # as it is by default
        host = self.hosts[0]
        host.start("work", "reference", "--outputs", str(self.shared))
        host.wait()
        self.reference = proofs.outcomes(self.shared, "reference", agreement.MADE)
        if len(self.reference) != self.cells:
            raise SystemExit(f"the undisturbed study did not finish: {(host.own / 'errors.txt').read_text()[-2000:]}")
        first, *others = host.ended
        host.ended = []
        times = [read_record(self.shared / one.folder / RECORD_FILE).time for one in others]
        ran, passed = sum(one.total_s for one in times), others[-1].at - first.at
        between, fixed = passed - ran, sum(one.setup_s for one in times)
        per_cell = {"overhead_s": between + fixed, "between_s": between, "fixed_s": fixed}
        per_cell["cell_s"] = ran
        per_cell["processor_s"] = others[-1].processor_s - first.processor_s
        self.alone = {name: round(seconds / len(others), 3) for name, seconds in per_cell.items()}
        self.alone |= {"busy_alone": round(ran / passed, 3), "load_alone": round(os.getloadavg()[1], 1)}

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
            if time.monotonic() - progress > 2 * lock.DEAD and (left := self.quarantined(study)):
                if self.asker.start("run", "-m", f"study={study}", *self.words, "rerun=failed"):
                    self.left_alone += left
            for host in self.hosts:
                host.start("work", study, "--outputs", str(self.shared))
            if time.monotonic() >= next_fault:
                self.disturb(study)
                next_fault = time.monotonic() + self.random.expovariate(1 / self.options.every)
            self.undo()
            self.report()
            time.sleep(1)
            if (now := self.look(study)) > done:
                done, progress = now, time.monotonic()
        self.undo(everything=True)
        self.end(patience=60)  # a worker that was paused comes to see that others have done its cell
        self.look(study)
        found = proofs.outcomes(self.shared, study, agreement.MADE)
        self.lost += [f"{study}/{cell}" for cell in self.reference.keys() - found.keys()]
        for cell, parts in found.items():
            differs = [name for name, kept in self.reference.get(cell, {}).items() if parts[name] != kept]
            self.wrong += [f"{study}/{cell}: {', '.join(differs)}"] if differs or cell not in self.reference else []
        self.studies += 1

    def quarantined(self, study: str) -> list[str]:
        """Cells that are tried again only if somebody asks, and why: failed on two hosts, or with three deaths."""
        cells = status.cells_of(self.shared, study)
        return [f"{cell.folder}: {cell.reason}" for cell in cells if cell.state == "failed"]

    def disturb(self, study: str) -> None:
        """The next fault, for some seconds or for good; one that cannot be now comes later."""
        if not self.deck:
            self.deck = ["kill", *(kind for kind in KINDS if self.older or kind != "older version")]
            self.random.shuffle(self.deck)
        free = [host for host in self.hosts if host not in [fault.host for fault in self.open]]
        kind, host = self.deck.pop(), self.random.choice(free)
        checkpoints = self.shared.glob(f"{study}/*/*/{CHECKPOINT_FILE}")
        begun = {str(path.parent.relative_to(self.shared)) for path in checkpoints}
        if self.of_folder(kind) if kind in OF_THE_FOLDER else self.of_host(kind, host, study):
            self.injected[kind] += 1
            self.interrupted |= begun
        else:
            self.deck.insert(0, kind)

    def of_host(self, kind: str, host: Host, study: str) -> bool:
        """A fault of one host, or a word to all of them; gives whether it took place."""
        now = time.monotonic()
        if kind == "kill":
            return bool(host.send(signal.SIGKILL))
        if kind == "pause":
            paused = [fault for fault in self.open if fault.host]
            if len(paused) >= len(self.hosts) // 2 or not host.send(signal.SIGSTOP):
                return False
            lasts = lock.DEAD + self.random.uniform(5, 2 * ROUND)  # others look for dead owners once in a round
            self._begun(Fault(kind, now, now + lasts, host))
        elif kind == "clock":
            (host.own / "clock").write_text(str(self.random.uniform(-900, 900)))
        elif kind == "stop":
            line = [sys.executable, "-m", "peftbench", "stop", study, "--outputs", str(self.shared)]
            return subprocess.run(line, capture_output=True).returncode == 0
        elif self.older:
            return bool(self.older.start("work", study, "--outputs", str(self.shared), "--cells", "3"))
        return True

    def of_folder(self, kind: str) -> bool:
        """A fault of the shared folder, unless it has one already; gives whether it took place."""
        now = time.monotonic()
        if not self.has_disk or any(fault.kind in OF_THE_FOLDER for fault in self.open):
            return False
        if kind == "read-only":
            while not self._mount("remount,ro"):  # a file is open for writing at this moment
                if time.monotonic() > now + 10:
                    return False
                time.sleep(0.02)
        else:
            with suppress(OSError), (self.shared / "ballast").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 20))
        self._begun(Fault(kind, now, time.monotonic() + self.random.uniform(1, 10), None))
        return True

    def _begun(self, fault: Fault) -> None:
        self.faults.append(fault)
        self.open.append(fault)

    def undo(self, everything: bool = False) -> None:
        """End the faults whose time is over."""
        for fault in [fault for fault in self.open if everything or time.monotonic() >= fault.end]:
            self.open.remove(fault)
            if fault.host is not None:
                fault.host.send(signal.SIGCONT)
            elif fault.kind == "read-only":
                self._mount("remount,rw")
            else:
                (self.shared / "ballast").unlink(missing_ok=True)
            fault.end = time.monotonic()

    def look(self, study: str) -> int:
        """How many cells are done; what a finished record took, and whether its bytes changed."""
        done = 0
        for path in find_records(self.shared / study):
            with suppress(OSError, DataError):
                content, folder = path.read_bytes(), str(path.parent.relative_to(self.shared))
                if path in self.seen or record_status(path) == "done":
                    done += 1
                    digest = hashlib.sha256(content).hexdigest()
                    if self.seen.setdefault(path, digest) != digest:
                        self.changed.add(folder)
                    self.seconds.setdefault(folder, json.loads(content)["time"]["total_s"])
        for path in self.shared.glob(f"{study}/*/*/{CHECKPOINT_FILE}"):
            if not (path.parent / lock.FILE).exists():  # a worker that was asked to leave
                self.interrupted.add(str(path.parent.relative_to(self.shared)))
        return done

    def busy(self) -> float | None:
        """The share of time that hosts were in runs, from cell to cell, where no fault was going on."""
        ran = passed = 0.0
        for host in self.hosts:
            faults = [fault for fault in self.faults if fault.host in (None, host)]
            for before, after in itertools.pairwise(host.ended):
                disturbed = any(fault.begin < after.at and fault.end > before.at for fault in faults)
                if before.start == after.start and not disturbed and after.folder not in self.interrupted:
                    ran += self.seconds.get(after.folder, 0.0)
                    passed += after.at - before.at
        return round(ran / passed, 3) if passed else None

    def figures(self) -> dict[str, Any]:
        """What was found so far."""
        ended = collections.Counter(one.folder for host in self.all for one in host.ended)
        twice = sorted(self.changed | {folder for folder, times in ended.items() if times > 1})
        return {
            "minutes": round((time.monotonic() - self.began) / 60, 1), "cores": os.cpu_count(),
            "hosts": len(self.hosts), "studies": self.studies, "cells": self.cells, "done": len(self.seen),
            "lost": len(self.lost), "run twice": len(twice), "wrong": len(self.wrong), **self.alone,
            "busy": self.busy(), "injected": {kind: self.injected[kind] for kind in KINDS},
            "cells of the older version": len(self.older.ended) if self.older else 0,
            "claims lost to a pause": sum(host.said("was paused and lost the cell") for host in self.all),
            "waits for the folder": sum(host.said("this worker tries again") for host in self.all),
            "left alone until asked": len(self.left_alone),
            "named": {"lost": self.lost, "run twice": twice, "wrong": self.wrong, "left alone": self.left_alone},
        }  # fmt: skip

    def report(self) -> None:
        """Keep what was found so far in a file, if the last time was a while ago."""
        if time.monotonic() - self.reported > REPORTED:
            write_atomically(self.options.report, json.dumps(self.figures(), indent=1).encode())
            self.reported = time.monotonic()

    def end(self, patience: float = 0) -> None:
        """Kill all hosts that did not leave by themselves in so many seconds."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(host.runs() for host in self.all):
            time.sleep(0.2)
        for host in self.all:
            host.end()


def judged(figures: dict[str, Any]) -> list[tuple[str, Any, str, bool]]:
    """Of every figure that has to be something: its name, value, what it should be, and whether it is."""
    rows = [(name, figures[name], "0", figures[name] == 0) for name in ("lost", "run twice", "wrong")]
    overhead, busy = figures.get("overhead_s"), figures["busy"]
    rows += [("overhead_s", overhead, f"at most {MOST_OVERHEAD}", overhead is not None and overhead <= MOST_OVERHEAD)]
    rows += [("busy", busy, f"at least {LEAST_BUSY}", busy is not None and busy >= LEAST_BUSY)]
    felt = [(name, figures[name]) for name in ("cells of the older version", "claims lost to a pause")]
    return rows + [(name, n, "at least 1", n > 0) for name, n in [*figures["injected"].items(), *felt]]


def table(figures: dict[str, Any]) -> str:
    """All figures as a markdown table."""
    rows = [(name, value, should, "yes" if so else "NO") for name, value, should, so in judged(figures)]
    known = {"injected", "named", *(name for name, *_ in rows)}
    rows += [(name, value, "", "") for name, value in figures.items() if name not in known]
    lines = ["| figure | value | should be | is it |", "|---|---:|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--cells", type=int, default=240, help="of each study")
    parser.add_argument("--every", type=float, default=15, help="seconds between two faults, on average")
    parser.add_argument("--older", type=Path, help="source of an older version, a worker of which takes part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a new folder to work in; what hosts said is kept there")
    parser.add_argument("--report", type=Path, default=Path("many_hosts.json"), help="where figures are kept")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run hosts and faults, report."""
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = (options.work or Path(tempfile.mkdtemp(prefix="many-hosts-"))).resolve()
    driver, finished = Driver(work, options), False
    try:
        driver.undisturbed()
        end = time.monotonic() + 60 * options.minutes
        while not driver.studies or time.monotonic() < end:
            driver.disturbed(f"many{driver.studies}")
        finished = True
    finally:
        driver.undo(everything=True)
        driver.end()
        figures = driver.figures() | {"finished": finished}
        if driver.has_disk:
            subprocess.run(["umount", "--lazy", str(driver.shared)], check=False)
        write_atomically(options.report, json.dumps(figures, indent=1).encode())
        print(table(figures))
        if options.work is None:
            shutil.rmtree(work)
    return int(not all(so for *_, so in judged(figures)))


if __name__ == "__main__":
    sys.exit(main())
