"""Give the command hundreds of malformed inputs, made from kinds, and see that each gets a line that is one.

    python scripts/malformed.py [--draw N] [--seed 0] [--kind KIND ...] [--seconds 5]

Every input must end with exit code 2 or 3, at most six lines of at most 200 characters that name the field and the
(shortened) value, within the time, with no traceback and with nothing left behind. Libraries are imported once; each
input has a forked process and a folder of its own. Prints a table by kind, and every input that fell short.
"""

import argparse
import collections
import importlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import malformed_artefacts as of_artefacts  # type: ignore[import-not-found]
import malformed_commands as of_commands  # type: ignore[import-not-found]
import malformed_files as of_files  # type: ignore[import-not-found]
import malformed_kinds as of_words  # type: ignore[import-not-found]
from malformed_input import TINY, Input, unnamed  # type: ignore[import-not-found]

from peftbench import __version__, cli
from peftbench.config import compose
from peftbench.ground.environment import cores
from peftbench.ground.errors import LONGEST_LINE, MOST_LINES

HEAVY: tuple[str, ...] = (
    "runner.run",
    "runner.apply",
    "runner.counts",
    "report.page",
    "report.plots",
    "report.submission",
)
HEAVY += ("study.cell", "study.sweep", "study.reproduce", "commands.run", "commands.views")
HANG = 60.0  # seconds after which an input is given up


def tree(folder: Path) -> dict[str, int]:
    """What lies in a folder, the cache of file hashes apart."""
    sizes = {str(path.relative_to(folder)): path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()}
    sizes |= {f"{path.relative_to(folder)}/": 0 for path in folder.rglob("*") if path.is_dir()}
    return {name: size for name, size in sizes.items() if not name.startswith("cache/")}


def problem(made: Input, seconds: float) -> str | None:
    """Give the command an input; what is wrong with its answer."""
    with tempfile.TemporaryDirectory(prefix="malformed") as place:
        folder = Path(place).resolve() / "here"
        folder.mkdir()
        if made.files:
            made.files(folder)
        before, started = tree(folder), time.monotonic()
        code, text = _answer(made, folder)
        took = time.monotonic() - started
        left = sorted(tree(folder).items() ^ before.items())
    lines = text.splitlines()
    wrong = {
        f"exit code {code}": code not in (2, 3),
        "a traceback": "Traceback" in text,
        f"{len(lines)} lines": not 1 <= len(lines) <= MOST_LINES,
        f"a line of {max(map(len, lines), default=0)} characters": any(len(line) > LONGEST_LINE for line in lines),
        f"{took:.1f} s": took > seconds,
        f"left {left[:2]}": bool(left),
    }
    wrong |= {f"does not name {name!r}": True for name in unnamed(made, text)}
    if not any(wrong.values()):
        return None
    return "; ".join(name for name, is_so in wrong.items() if is_so) + f" | {text[:300]!r}"


def _answer(made: Input, folder: Path) -> tuple[int, str]:
    """The exit code, and what was said, in a process of its own; one that hangs is killed."""
    environment = {
        "HF_HUB_OFFLINE": "1", "PEFTBENCH_CACHE": str(folder / "cache"), "HOME": str(folder.parent),
        "WANDB_MODE": "offline",
    } | made.environment  # fmt: skip
    said = folder.parent / "said"
    if any(name.startswith("PYTHON") for name in environment):  # Python itself reads it
        with said.open("wb") as file:
            done = subprocess.run(
                [sys.executable, "-m", "peftbench", *made.words], cwd=folder, env={**os.environ, **environment},
                stdout=file, stderr=file, timeout=HANG,
            )  # fmt: skip
        return done.returncode, said.read_text()
    child = os.fork()
    if child == 0:
        _be_the_command(made.words, folder, environment, said)
    deadline = time.monotonic() + HANG
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1]), said.read_text(errors="replace")


def _be_the_command(words: Sequence[str], folder: Path, environment: Mapping[str, str], said: Path) -> None:
    code: int | str | None = 1
    try:
        os.environ.update(environment)
        os.chdir(folder)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["peftbench", *words]
        cli.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def warm(folder: Path) -> None:
    """Import what the commands need, and make a folder of weights and studies of runs, once for all inputs."""
    for name in HEAVY:
        importlib.import_module(f"peftbench.{name}")
    compose.cell_from(TINY)
    of_files.MODEL[:] = [of_files.a_model(folder)]
    of_artefacts.COPY[:] = [lambda place: shutil.copytree(of_files.MODEL[0], place / of_artefacts.WEIGHTS)]
    here = folder / "runs"
    here.mkdir()
    for words in of_commands.words_of_runs():
        code, said = _answer(Input("", words, []), here)
        if code:
            raise RuntimeError(said)
    of_commands.STUDY[:] = [here / of_commands.OUTPUTS]


def every() -> list[Input]:
    """All inputs, in a fixed order, once `warm` has made what they are made of."""
    kinds = [kind for module in (of_words, of_files, of_commands, of_artefacts) for kind in module.KINDS]
    return [made for kind in kinds for made in kind()]


def check(inputs: Sequence[Input], seconds: float) -> Iterator[tuple[Input, str | None]]:
    """Each input with what is wrong with its answer; on all cores, in forked processes. `warm` comes first."""
    _inputs[:] = inputs  # forked processes have them: functions are not sent
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("fork")) as others:
        yield from zip(inputs, others.map(_nth, range(len(inputs)), itertools.repeat(seconds)), strict=True)


_inputs: list[Input] = []


def _nth(number: int, seconds: float) -> str | None:
    return problem(_inputs[number], seconds)


def main() -> None:
    """Check all inputs, or those that were asked for, and say how each kind fared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", type=int, help="only so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--kind", nargs="+", default=[""], help="only kinds that begin so")
    parser.add_argument("--seconds", type=float, default=5.0, help="that an answer may take")
    asked = parser.parse_args()
    fell: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder))
        inputs = [made for made in every() if made.kind.startswith(tuple(asked.kind))]
        if asked.draw:
            inputs = random.Random(asked.seed).sample(inputs, min(asked.draw, len(inputs)))
        count: collections.Counter[str] = collections.Counter(made.kind.partition(":")[0] for made in inputs)
        for number, (made, wrong) in enumerate(check(inputs, asked.seconds), 1):
            if number % 100 == 0:
                print(f"{number} of {len(inputs)}, {fell.total()} fell short", file=sys.stderr, flush=True)
            if wrong:
                fell[made.kind.partition(":")[0]] += 1
                words = " ".join(word for word in made.words if word not in TINY)
                print(f"{made.kind} | {words[:150]} {dict(made.environment) or ''} | {wrong}", flush=True)
    print(f"{'kind':<16}{'inputs':>8}{'right':>8}")
    for kind, number in count.items():
        print(f"{kind:<16}{number:>8}{number - fell[kind]:>8}")
    print(f"peftbench {__version__}: {len(inputs) - fell.total()} of {len(inputs)} malformed inputs get their line")
    sys.exit(bool(fell))


if __name__ == "__main__":
    main()
