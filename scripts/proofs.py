"""What the proofs on clusters share: a study of small cells, a worker stopped in the middle of one, and what must hold.

Every host of the cluster is this machine, so that workers can be found among its processes.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from peftbench.ground.files import CHECKPOINT_FILE, DELTA_FILE, RECORD_FILE
from peftbench.record import MEASURED, find_records, read_record, record_status
from peftbench.study import lock

STUDY = "proof"
WORDS = [
    f"study={STUDY}", "model=bert_tiny", "model.weights=random", "task=sst2", "data=sample", "tracker=none",
    "protocol.evaluate_every=100", "checkpoint_every=1", "progress=false",
]  # fmt: skip
SWEEP = ["protocol.max_steps=400", "method=bitfit,lora", "seed=0,1,2,3,4,5"]
CELLS = 12
SCRIPTS = Path(__file__).resolve().parent
PATIENCE = 600  # seconds for a cluster to get somewhere
ENDED = re.compile(r"^done: (\S+): ", re.MULTILINE)


def begin(work: Path) -> Path:
    """List the study's cells for workers; gives the folder of outputs."""
    outputs = work / "shared"
    check("the cells listed", peftbench(outputs, "plan", *WORDS, *SWEEP, f"outputs={outputs}", "--save") == 0)
    return outputs


def check_end(outputs: Path, before: Mapping[str, bytes], screens: Iterable[Path]) -> None:
    """Check that no cell was lost, run twice, or came out wrong.

    Args:
        before: contents of records that were finished before the last fault.
        screens: files of what every worker printed.
    """
    after = contents(outputs)
    check(f"every cell is done ({len(after)})", len(after) == CELLS)
    ended = Counter(name for path in screens for name in ENDED.findall(path.read_text(errors="replace")))
    check("every cell ended once", set(ended) == set(after) and set(ended.values()) == {1})
    workers = {read_record(outputs / folder / RECORD_FILE).worker for folder in after}
    check(f"by several workers ({len(workers)})", len(workers) > 1)
    check("records that were finished are as they were", all(after[path] == kept for path, kept in before.items()))
    check("no lock or checkpoint is left", not [*outputs.rglob(f"{lock.FILE}*"), *outputs.rglob("checkpoint.*")])
    alone = outputs.with_name("alone")
    check("a plain sweep beside it", peftbench(alone, "run", "-m", *WORDS, *SWEEP, f"outputs={alone}") == 0)
    here, there = outcomes(outputs, STUDY), outcomes(alone, STUDY)
    for part in ("record", "delta", "predictions"):
        same = [here[cell][part] == parts[part] for cell, parts in there.items() if cell in here]
        check(f"{part}: as of the plain sweep, bit for bit, {sum(same)} of {CELLS}", sum(same) == CELLS)


def check(what: str, so: bool) -> None:
    """Say what was checked; leave if it is not so."""
    print(f"{'ok  ' if so else 'NOT '} {what}", flush=True)
    if not so:
        sys.exit(1)


def wait(until: Callable[[], object], what: str) -> None:
    """Wait for something to be so; leave if that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not until():
        if time.monotonic() > deadline:
            check(f"waited {PATIENCE} s for {what}", False)
        time.sleep(0.1)


def peftbench(outputs: Path, *words: str) -> int:
    """The exit code of a command with a cache of its own; its screen goes to a file beside the outputs."""
    outputs.mkdir(parents=True, exist_ok=True)
    with (outputs / "screen.txt").open("ab") as screen:
        line = [sys.executable, "-m", "peftbench", *words]
        return subprocess.run(line, stdout=screen, stderr=screen, env=variables(outputs), check=False).returncode


def variables(outputs: Path) -> dict[str, str]:
    """The environment of commands and workers."""
    paths = [str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    own = {"PEFTBENCH_CACHE": str(outputs / "cache"), "PYTHONPATH": ":".join(filter(None, paths))}
    return {**os.environ, **own, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def training(outputs: Path) -> list[int]:
    """Process numbers of workers that are in the middle of a cell, with a checkpoint."""
    folders = [path.parent for path in outputs.glob(f"{STUDY}/*/*/{CHECKPOINT_FILE}")]
    locks = [folder / lock.FILE for folder in folders if not (folder / RECORD_FILE).exists()]
    owners = [lock.owner_of(path) for path in locks if lock.alive(path)]
    return [owner.pid for owner in owners if owner is not None]


def workers(outputs: Path) -> set[int]:
    """Process numbers of all workers of the study."""
    line, numbers = "\0".join(["peftbench", "work", STUDY, "--outputs", str(outputs), ""]), set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if line in path.read_text(errors="replace"):
                numbers.add(int(path.parent.name))
    return numbers


def stop_one(outputs: Path) -> int:
    """Stop a worker that stays in the middle of a cell thereby; gives its process number."""
    while True:
        wait(lambda: training(outputs), "a worker in the middle of a cell")
        for number in training(outputs):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGSTOP)
                if number in training(outputs):
                    return number
                os.kill(number, signal.SIGCONT)


def contents(outputs: Path) -> dict[str, bytes]:
    """The bytes of every finished record, by its folder."""
    paths = [path for path in find_records(outputs / STUDY) if record_status(path) == "done"]
    return {str(path.parent.relative_to(outputs)): path.read_bytes() for path in paths}


def outcomes(outputs: Path, study: str, keys: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """What must not differ of every finished cell, part by part, by its folder within the study.

    Args:
        keys: of the record; none: all but those that are measured. Folders under `outputs` are named alike.
    """
    found = {}
    for path in find_records(outputs / study):
        if record_status(path) == "done":
            raw = asdict(read_record(path))
            kept = {key: raw[key] for key in raw if (key in keys if keys else key not in MEASURED)}
            files = {"delta": [path.parent / DELTA_FILE], "predictions": sorted(path.parent.glob("predictions/*.tsv"))}
            parts = {name: " ".join(map(digest, paths)) for name, paths in files.items()}
            parts["record"] = json.dumps(kept, sort_keys=True).replace(str(outputs), "outputs")
            found[str(path.parent.relative_to(outputs / study))] = parts
    return found


def digest(path: Path) -> str:
    """A file's name and the SHA-256 of its content."""
    return f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}"
