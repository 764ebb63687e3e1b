"""Break a real small sweep in every way we can think of, and see whether anything is lost or wrong.

    python scripts/faults.py [--kills 100] [--rounds 3] [--seed 0] [--work DIR]

A reference sweep runs undisturbed. Then every fault is injected into the same sweep in real processes; the sweep is
started again without it, and must finish with valid records whose scores, deltas and predictions are the reference's,
bit for bit, without running a finished cell again. Prints what was injected and what was lost, as JSON; figures of
calls with different seeds add up.
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peftbench.record import find_records, read_record, record_status

SWEEP = [
    "run", "-m", "study=faults", "model=bert_tiny", "model.weights=random", "model.config.vocab_size=2000",
    "task=sst2", "data=sample", "data.limit=48", "protocol.max_length=24", "protocol.batch_size=8",
    "protocol.max_steps=8", "protocol.evaluate_every=4", "tracker.log_every=1", "progress=false",
    "checkpoint_every=0", "method=bitfit,lora,id3", "budget.like=bitfit", "seed=0,1",
]  # fmt: skip
CELLS = 6
QUIET = "tracker=none"
PLAIN = (sys.executable, "-m", "peftbench")

# Every phase of a run -> the function that goes wrong in it, and the calls of it among which one is drawn.
PHASES = {
    "load": ("peftbench.runner.learner", "load_model", 3),
    "train": ("peftbench.training.forward", "Forward.logits", 10),
    "evaluate": ("peftbench.training.evaluation", "Evaluator.predict", 3),
    "write": ("peftbench.runner.run", "keep_predictions", 2),
}

# What a process runs whose training is to go wrong: the command itself, with that function replaced.
WRAPPER = """
import sys
module, name, kind, at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sys.argv = ["peftbench", *sys.argv[5:]]
import importlib
import torch

def owner_of(module, path):
    *names, last = path.split(".")
    for name in names:
        module = getattr(module, name)
    return module, last

def wrong(result):
    if kind == "exception":
        raise RuntimeError("injected")
    if kind == "memory":
        raise torch.OutOfMemoryError("injected: out of memory")
    return result * float("nan")

seen = 0
def broken(plain):
    def call(*args, **kwargs):
        global seen
        seen += 1
        result = plain(*args, **kwargs)
        return wrong(result) if seen == at else result
    return call

owner, name = owner_of(importlib.import_module(module), name)
setattr(owner, name, broken(getattr(owner, name)))
from peftbench.cli import main
main()
"""


class Wrong(Exception):
    """The sweep did not come back to what it should be."""


class Driver:
    """Runs the sweep, with and without faults, and compares."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.random = work, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.lost, self.wrong, self.again = 0, 0, 0
        self.seconds = self.undisturbed("reference")
        self.reference = self.state("reference")
        if len(self.reference) != CELLS:
            raise SystemExit("the undisturbed sweep did not finish")

    def undisturbed(self, name: str) -> float:
        """The sweep to its end in a folder of this name; how long it took in seconds."""
        started = time.monotonic()
        self.run(name)
        return time.monotonic() - started

    def start(
        self,
        name: str,
        *words: str,
        command: Sequence[str] = PLAIN,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> subprocess.Popen[str]:
        """The sweep in a process group of its own, writing into a folder of this name; `first` is called in it."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PEFTBENCH_CACHE": str(self.work / name / "cache")}
        line = [*command, *SWEEP, f"outputs={self.work / name}", *(words or [QUIET])]
        return subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=variables | dict(environment or {}), preexec_fn=first,
        )  # fmt: skip

    def run(
        self,
        name: str,
        *words: str,
        command: Sequence[str] = PLAIN,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> tuple[int, str]:
        """The sweep to its end; exit code and screen."""
        process = self.start(name, *words, command=command, environment=environment, first=first)
        screen, _ = process.communicate(timeout=600)
        return process.returncode, screen

    def state(self, name: str) -> dict[str, tuple[bytes, ...]]:
        """Of every finished cell what must not differ: scores, delta, predictions."""
        states = {}
        for path in find_records(self.work / name / "faults"):
            record = read_record(path)
            if record.status == "done":
                scores = repr([record.metrics.evaluations, record.counts, record.fingerprint])
                files = ["delta.safetensors", "predictions/dev.tsv"]
                kept = [(path.parent / file).read_bytes() for file in files]
                states[str(path.parent.relative_to(self.work / name))] = (scores.encode(), *kept)
        return states

    def records(self, name: str) -> dict[str, bytes]:
        """The bytes of every finished record."""
        folder = self.work / name / "faults"
        return {str(p): p.read_bytes() for p in find_records(folder) if record_status(p) == "done"}

    def recover(self, kind: str, name: str, finished: dict[str, bytes]) -> None:
        """Start the sweep again and compare with the reference and with what was finished before."""
        self.counts[kind] += 1
        code, screen = self.run(name)
        states = self.state(name)
        lost = self.reference.keys() - states.keys()
        wrong = [cell for cell in states if states[cell] != self.reference[cell]]
        again = [path for path, content in finished.items() if Path(path).read_bytes() != content]
        self.lost, self.wrong, self.again = self.lost + len(lost), self.wrong + len(wrong), self.again + len(again)
        if code or lost or wrong or again:
            print(f"{kind}: exit {code}, lost {lost}, wrong {wrong}, run again {again}\n{screen}", file=sys.stderr)
        print(f"{self.counts.total()} faults so far", file=sys.stderr)
        self.clear(name)

    def clear(self, name: str) -> None:
        """Remove a folder, also where it is a file system of its own."""
        if os.path.ismount(self.work / name):
            subprocess.run(["umount", self.work / name], check=True)
        shutil.rmtree(self.work / name)

    def kill(self, times: int) -> None:
        """kill -9 at random moments, also of what was just taken up, until so many were done."""
        self.seconds = self.undisturbed("timed")  # the machine may be faster than at the start: few would be killed
        self.clear("timed")
        while self.counts["kill -9"] < times:
            finished: dict[str, bytes] = {}
            for _ in range(self.random.randint(1, 6)):
                process = self.start("killed")
                try:
                    process.wait(self.random.uniform(0.3, 1.1) * self.seconds)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    self.counts["kill -9"] += 1
                process.communicate()
                now = self.records("killed")
                self.again += sum(now.get(path) != content for path, content in finished.items())
                finished = now
            self.counts["kill -9"] -= 1  # `recover` counts one itself
            self.recover("kill -9", "killed", finished)

    def pause(self) -> None:
        """SIGSTOP, a second runner meanwhile, SIGCONT."""
        process = self.start("paused")
        time.sleep(self.random.uniform(0.4, 0.9) * self.seconds)
        os.killpg(process.pid, signal.SIGSTOP)
        other = self.start("paused")
        time.sleep(1)
        os.killpg(process.pid, signal.SIGCONT)
        for one in (process, other):
            one.communicate(timeout=600)
        self.recover("stop and continue beside a second runner", "paused", self.records("paused"))

    def two_runners(self) -> None:
        """Two runners at once: together they run every cell once."""
        both = [self.start("shared") for _ in range(2)]
        screens = [one.communicate(timeout=600)[0] for one in both]
        runs = sum(screen.count("backbone entries") for screen in screens)
        self.again += runs - CELLS
        self.recover("two runners", "shared", self.records("shared"))

    def damage(self, pattern: str, kind: str, change: Callable[[bytes], bytes], stopped: bool = False) -> None:
        """Change bytes of a file of a finished (or stopped) sweep; its cell may be run again, no other."""
        process = self.start("damaged")
        if stopped:
            while process.poll() is None and not list((self.work / "damaged").rglob("checkpoint.safetensors")):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=600)
        files = sorted((self.work / "damaged").rglob(pattern))
        if files:
            path = self.random.choice(files)
            path.write_bytes(change(path.read_bytes()))
            self.recover(kind, "damaged", {p: c for p, c in self.records("damaged").items() if p != str(path)})
        else:  # it finished between our look and our kill
            shutil.rmtree(self.work / "damaged")

    def cut(self, content: bytes) -> bytes:
        """A part of it."""
        return content[: self.random.randrange(len(content))]

    def flip(self, content: bytes) -> bytes:
        """One bit of it the other way round."""
        at = self.random.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << self.random.randrange(8)]) + content[at + 1 :]

    def inject(self, phase: str, kind: str) -> None:
        """An exception, NaN or lack of memory inside a run."""
        module, name, calls = PHASES[phase]
        command = [sys.executable, "-c", WRAPPER, module, name, kind, str(self.random.randint(1, calls))]
        code, screen = self.run("injected", command=command)
        if code != 101 or "Traceback" in screen:  # 0: nothing was injected
            self.wrong += 1
            print(f"{kind} in {phase}: exit {code} instead of 101\n{screen}", file=sys.stderr)
        self.recover(f"{kind} while it should {phase}", "injected", self.records("injected"))

    def no_room(self) -> None:
        """No file may grow beyond a few KiB, as on a full disk."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        size = self.random.choice([0, 100, 3000, 20_000])
        self.run("full", first=limit)
        finished = self.records("full") if (self.work / "full").exists() else {}
        self.recover("no room for files", "full", finished)

    def mounted(self, name: str, options: str) -> bool:
        """Make a folder of a small file system of its own, or mount it anew with other options; needs root."""
        (self.work / name).mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.work / name)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def small_disk(self) -> None:
        """A disk that fills up somewhere in the sweep."""
        if self.mounted("small", f"size={self.random.randint(20, 400)}k"):
            self.run("small")
            finished = self.records("small")
            self.mounted("small", "remount,size=1g")
            self.recover("small disk full", "small", finished)

    def read_only(self) -> None:
        """A file system that becomes read-only between two starts: one line says so, what is finished stays."""
        if not self.mounted("closed", "size=1g"):
            return
        process = self.start("closed")
        time.sleep(self.random.uniform(0.4, 0.9) * self.seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        self.mounted("closed", "remount,ro")
        finished = self.records("closed")
        code, screen = self.run("closed")
        if len(finished) < CELLS and (code != 2 or "Traceback" in screen or "Read-only" not in screen):
            self.wrong += 1
            print(f"read-only: exit {code}\n{screen}", file=sys.stderr)
        self.mounted("closed", "remount,rw")
        self.recover("folder read-only", "closed", finished)

    def no_wandb(self) -> None:
        """W&B is asked for and cannot be reached."""
        environment = {
            "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40, "WANDB_INIT_TIMEOUT": "2",
            "WANDB_MODE": "online",
        }  # fmt: skip
        self.run("lonely", "tracker=wandb", environment=environment)
        self.recover("W&B unreachable", "lonely", self.records("lonely"))


def main() -> None:
    """Inject everything, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="of every other fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="an empty folder to work in")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        driver = Driver(asked.work or Path(made), asked.seed)
        for _ in range(asked.rounds):
            driver.pause()
            driver.two_runners()
            driver.damage("result.json", "record cut short", driver.cut)
            driver.damage("result.json", "record with a flipped bit", driver.flip)
            for name, pattern in (("checkpoint", "checkpoint.safetensors"), ("token cache", "tokens/*.safetensors")):
                driver.damage(pattern, f"{name} cut short", driver.cut, stopped=True)
                driver.damage(pattern, f"{name} with a flipped bit", driver.flip, stopped=True)
            driver.damage("study.json", "list of cells cut short", driver.cut)
            driver.damage(".records.json", "what was seen of records cut short", driver.cut)
            for phase in PHASES:
                driver.inject(phase, "exception")
                driver.inject(phase, "memory")
            driver.inject("train", "nan")
            driver.no_room()
            driver.small_disk()
            driver.read_only()
        if asked.rounds:
            driver.no_wandb()
        driver.kill(asked.kills)
    report = {
        "injected": dict(driver.counts),
        "faults": sum(driver.counts.values()),
        "cells lost": driver.lost,
        "wrong scores": driver.wrong,
        "finished cells run again": driver.again,
    }
    print(json.dumps(report, indent=1))
    sys.exit(1 if driver.lost or driver.wrong or driver.again else 0)


if __name__ == "__main__":
    main()
