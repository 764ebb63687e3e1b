"""Cells of base-size encoders beside Trainer + peft at its best: `bench.py base`. Every run is kept as it is made.

    python scripts/bench_base.py TOKENIZER FOLDER model=...   random weights of a shape, with the tokenizer of another

A line of the file is one run with the day, the load of the machine before it (least of the last minute's; 0 is idle)
and the rate of products of its round: ratios are of runs of one round, and rounds may be of several days. A peer
runs in every precision that a user may choose; its fastest is the one that ours is compared with.
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whole_runs import Sample, ours, precisions, products_rate, spread, theirs  # type: ignore[import-not-found]

from peftbench.config import compose
from peftbench.ground.files import write_atomically

Run = dict[str, Any]
RANDOM = "roberta_base"  # whose weights are random; the other has its own
MODELS = ("all_mpnet_base", RANDOM)
TASKS = ("rte", "mrpc")
KEPT = "protocol.keep_prefix=true"
OURS = {
    "lora": ["method=lora"],
    "bitfit": ["method=bitfit"],
    "full": ["method=full"],
    "random masking": ["method=random_masking", "budget.fraction=0.001"],
    "id3": ["method=id3", "budget=20000"],
    # the goal is of steps, and no start costs one anything: Fisher's, the default, takes 1,024 passes before the first
    "lst from magnitude, kept": ["method=lst", "method.init=magnitude", KEPT],
    "head, kept": ["method=head", KEPT],
}
OTHERS = {
    "lora": "Trainer",
    "bitfit": "Trainer",
    "full": "Trainer",
    "id3": "selective-optimizers",
}  # method -> its peer
PEERS = {  # name -> style and method
    f"{method}, {peer} in {style}": (style, method) for method, peer in OTHERS.items() for style in precisions(method)
}
RATES = {"full": 3e-5}  # learning rates that are not the usual one
ORDER = sorted({**OURS, **PEERS}, key=lambda name: name.partition(",")[0])  # what is compared runs one after the other
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Goal:
    """What one run is to take of another.

    Attributes:
        what: seconds (of the whole process), peak_mb, or train_s (of the optimizer steps alone).
        run, other: names; of a peer without its precision.
        at_most: the ratio.
    """

    what: str
    run: str
    other: str
    at_most: float


GOALS = [
    Goal("seconds", "lora", "lora, Trainer", 0.5),
    Goal("peak_mb", "lora", "lora, Trainer", 0.6),
    Goal("seconds", "bitfit", "bitfit, Trainer", 0.5),
    Goal("peak_mb", "bitfit", "bitfit, Trainer", 0.6),
    Goal("seconds", "full", "full, Trainer", 0.7),
    Goal("train_s", "random masking", "lora", 1.0),
    Goal("train_s", "id3", "full", 1.05),
    Goal("seconds", "id3", "id3, selective-optimizers", 0.5),
    Goal("train_s", "lst from magnitude, kept", "full", 0.1),
    Goal("train_s", "head, kept", "full", 0.1),
]
WORDS = {"seconds": "whole process", "peak_mb": "peak memory", "train_s": "steps alone"}


def measure(
    data: Path, weights: Path, file: Path, models: Sequence[str], tasks: Sequence[str], rounds: int, steps: int
) -> Iterator[Run]:
    """Every run that is not in the file yet, round by round; each is written there before the next begins.

    Args:
        data: GLUE in the layout of the official download.
        weights: folder of all-mpnet-base-v2; its tokenizer serves the random weights, too.
    """
    runs = read(file)
    there = {identity(run) for run in runs}
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        for number, model, task in itertools.product(range(rounds), models, tasks):
            missing = [name for name in ORDER if (number, model, task, name, steps) not in there]
            if not missing:
                continue
            folder = random_weights(model, weights, work) if model == RANDOM else weights
            rate = products_rate()
            for name in missing:
                facts = {"round": number, "model": model, "task": task, "run": name, "steps": steps}
                facts |= {"day": time.strftime("%Y-%m-%d"), "load": round(os.getloadavg()[0], 2)}
                sample = one(name, model, task, data, folder, work, steps)
                runs.append({**facts, "products_gflops": rate, **asdict(sample)})
                write_atomically(file, "".join(json.dumps(run) + "\n" for run in runs).encode())
                yield runs[-1]


def identity(run: Run) -> tuple[Any, ...]:
    """What tells one run of the file from another."""
    return tuple(run[key] for key in ("round", "model", "task", "run", "steps"))


def one(name: str, model: str, task: str, data: Path, weights: Path, work: Path, steps: int) -> Sample:
    """One run of that name."""
    method = name.partition(",")[0]
    rate = {"lr": RATES[method]} if method in RATES else {}
    if name in PEERS:
        return theirs(PEERS[name][0], task, method, data, weights, work, steps, **rate)
    words = [f"task={task}", f"model={model}", f"model.weights={weights}", *OURS[name]]
    return ours([*words, *(["model.sha256=null"] if model == RANDOM else [])], data, work, steps, **rate)


def random_weights(model: str, tokenizer: Path, work: Path) -> Path:
    """A folder with random weights of a model's shape, made by a process of its own where it is not there yet."""
    folder = work / model
    if not folder.exists():
        subprocess.run([sys.executable, __file__, str(tokenizer), str(folder), f"model={model}"], check=True)
    return folder


def write_random_weights(words: Sequence[str], tokenizer: Path, folder: Path) -> None:
    """The encoder as transformers draws it, and a tokenizer of fewer words with the same special tokens."""
    import torch
    from transformers import AutoConfig, AutoModel

    spec = compose.cell_from([*words, "tracker=none"]).model
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(spec.model_type, **spec.config)).save_pretrained(folder)
    for name in TOKENIZER:
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)


def read(file: Path) -> list[Run]:
    """The runs that were measured so far."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def fastest(runs: Sequence[Run]) -> dict[str, str]:
    """Names of runs, for every peer that of its fastest precision, by the median of whole processes.

    Returns:
        name without the precision -> name, in the order of ORDER.
    """
    taken = {name: [run["seconds"] for run in runs if run["run"] == name] for name in ORDER}
    medians = {name: statistics.median(seconds) for name, seconds in taken.items() if seconds}
    names: dict[str, str] = {}
    for name in medians:
        group = name.partition(" in ")[0]
        names[group] = min(names.get(group, name), name, key=medians.__getitem__)
    return names


def ratios(runs: Sequence[Run], goal: Goal) -> list[float]:
    """Of every round that has both; a peer's fastest precision counts."""
    values, names = {(run["round"], run["run"]): run[goal.what] for run in runs}, fastest(runs)
    numbers = sorted({number for number, _ in values})
    pairs = [[values.get((number, names.get(name))) for name in (goal.run, goal.other)] for number in numbers]
    return [one / other for one, other in pairs if one is not None and other is not None]


def tables(runs: Sequence[Run]) -> str:
    """Markdown: for every model, task and number of steps, what runs took, and the ratios beside their goals."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["model"], run["task"], run["steps"]), []).append(run)
    return "\n\n".join(_table(*key, group) for key, group in groups.items())


def _table(model: str, task: str, steps: int, runs: Sequence[Run]) -> str:
    days, rates = sorted({run["day"] for run in runs}), [run["products_gflops"] for run in runs]
    when = days[0] if len(days) == 1 else f"{len(days)} days from {days[0]} to {days[-1]}"
    lines = [
        f"{model}, {task}, {steps} steps, {when}; products of {min(rates):,.0f} to {max(rates):,.0f} GFLOP/s; "
        f"load before a run at most {max(run['load'] for run in runs):.1f}. Medians (least to greatest).",
        "",
        "| run | rounds | seconds | step, ms | peak MiB | accuracy |",
        "|---|---:|---:|---:|---:|---|",
    ]
    names = fastest(runs)
    for name in names.values():
        some = [run for run in runs if run["run"] == name]
        seconds, step = spread([run["seconds"] for run in some]), spread([run["train_s"] / steps for run in some])
        peak = statistics.median(run["peak_mb"] for run in some)
        scores = ", ".join(f"{run['accuracy']:.3f}" for run in some)
        times = f"{_shown(seconds, 1)} | {_shown([1000 * value for value in step], 0)}"
        lines.append(f"| {name} | {len(some)} | {times} | {peak:,.0f} | {scores} |")
    lines += ["", "| ratio | of | at most | measured |", "|---|---|---:|---:|"]
    for goal in GOALS:
        if found := ratios(runs, goal):
            pair = f"{goal.run} / {names[goal.other]}"
            lines.append(f"| {pair} | {WORDS[goal.what]} | {goal.at_most} | {_shown(spread(found), 2)} |")
    return "\n".join(lines)


def _shown(values: Sequence[float], digits: int) -> str:
    middle, least, greatest = (f"{value:,.{digits}f}" for value in values)
    return f"{middle} ({least} to {greatest})"


if __name__ == "__main__":
    write_random_weights(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]))
