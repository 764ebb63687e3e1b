"""This bench beside what people would use instead: whole processes, alternating, on real RTE and MRPC.

    python scripts/bench.py cell --data GLUE [--rounds 3] [--steps 60]   one cell against Trainer + peft; [--png FILE]
    python scripts/bench.py base --data GLUE --weights MPNET             cells of base size against Trainer + peft
    python scripts/bench.py large                                        every method on BERT-large, 16 rows, in 12 GiB
    python scripts/bench.py sweep --data GLUE [--steps 20]               36 cells against 36 scripts
    python scripts/bench.py limit [--model bert_base_cased]              share of the matrix-product rate, CPU or GPU
    python scripts/bench.py commands                                     --help, count

Prints JSON: medians with least and greatest, and the ratio pair by pair; of `cell`, `base` and `large` a Markdown
table. Both sides have the same model, rows, batch size, steps, learning rate; their scores stand beside the times. The
Trainer runs in fp32, in bf16 and, where little trains, with bf16 weights; tables have the fastest of them, by name.
What `base` and `large` measure is kept in a file (--kept) at once: the same command goes on where it was stopped, and
more --rounds add to it, on another day too. MPNET is the folder of all-mpnet-base-v2.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from whole_runs import Sample, ours, precisions, process, products_rate, theirs  # type: ignore[import-not-found]

from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.data import sources
from peftbench.data.tokens import tokenize, tokenizer_for
from peftbench.ground.environment import cores

METHODS = {  # the peer's word -> what an experiment of that name says in ours
    "full": "defaults: [override /method: full]",
    "head": "defaults: [override /method: head]",
    "bitfit": "defaults: [override /method: bitfit]",
    "lora": "defaults: [override /method: lora]",
    "lora_six": "defaults: [override /method: lora]\n"
    "method: {kinds: [query, key, value, attention_output, intermediate, output]}",
    "top": "defaults: [override /method: full]\nscope: {layers: 5}",
}
TASKS, SEEDS = ("rte", "mrpc"), range(3)


def cell(data: Path, work: Path, rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """One cell per task, taking turns: our LoRA and Trainer + peft, our ID3 and its authors' package, all in turn.

    Every row has the rates at which the machine multiplied matrices before the rounds (GFLOP/s): ratios move with them.
    """
    weights = weights_folder(compose.cell_from(["tracker=none"]).model)
    assert weights is not None
    turns = {  # name -> style of the peer
        "lora": {**{f"best in {style}": style for style in precisions("lora")}, "run_glue": "run_glue"},
        "id3": {f"selective-optimizers in {style}": style for style in precisions("id3")},
    }
    words = {"lora": ["method=lora"], "id3": ["method=id3", "budget=20000"]}
    samples: dict[str, list[Sample]] = {}
    rates = []
    for _ in range(rounds):
        rates.append(products_rate())
        for task, method in itertools.product(TASKS, turns):
            line = [f"task={task}", *words[method]]
            samples.setdefault(f"{task} {method} ours", []).append(ours(line, data, work, steps))
            for peer, style in turns[method].items():
                name = f"{task} {method} {peer}"
                samples.setdefault(name, []).append(theirs(style, task, method, data, weights, work, steps))
    measured = {}
    for name, values in samples.items():
        own = samples[f"{' '.join(name.split()[:2])} ours"]
        measured[name] = {
            **summary(values),
            "tokens_per_s": round(tokens(data, name.split()[0]) * 32 * steps / median(values)),
            "products_gflops": rates,
        }
        if values is not own:
            pairs = list(zip(own, values, strict=True))
            measured[name] |= {
                "ours_to_theirs_time": round(statistics.median(a.seconds / b.seconds for a, b in pairs), 3),
                "ours_to_theirs_memory": round(statistics.median(a.peak_mb / b.peak_mb for a, b in pairs), 3),
            }
    return measured


def fastest(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """What `cell` found, of every peer its fastest precision alone."""
    groups: dict[str, list[str]] = {}
    for name in measured:
        groups.setdefault(name.partition(" in ")[0], []).append(name)
    least = [min(names, key=lambda name: float(measured[name]["seconds"][0])) for names in groups.values()]
    return {name: measured[name] for name in least}


def tokens(data: Path, task: str) -> float:
    """Tokens of a training row on average, without padding."""
    one = compose.cell_from([f"task={task}", "tracker=none", "data=folder", f"data.path={data}"])
    rows = sources.load(one.data, one.task.parts[0], ["train"])["train"]
    with tempfile.TemporaryDirectory() as cache:
        made = tokenize(rows, tokenizer_for(one.model, weights_folder(one.model)), one.protocol.max_length, Path(cache))
    return float(made.lengths.mean())


def median(samples: Sequence[Sample]) -> float:
    """Median seconds."""
    return statistics.median(sample.seconds for sample in samples)


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Median, least and greatest."""
    seconds = [sample.seconds for sample in samples]
    return {
        "seconds": [median(samples), min(seconds), max(seconds)],
        "peak_mb": statistics.median(sample.peak_mb for sample in samples),
        "accuracy": [sample.accuracy for sample in samples],
    }


def markdown(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """What `cell` found, as a table."""
    lines = ["| | seconds (least, greatest) | peak MiB | tokens/s | time, ours / theirs | memory | accuracy |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for name, row in measured.items():
        middle, least, greatest = row["seconds"]
        ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("ours_to_theirs_time", "ours_to_theirs_memory")]
        lines.append(
            f"| {name} | {middle:.1f} ({least:.1f}, {greatest:.1f}) | {row['peak_mb']:,.0f} | {row['tokens_per_s']:,} "
            f"| {' | '.join(ratios)} | {row['accuracy'][0]:.3f} |"
        )
    return "\n".join(lines)


def draw(measured: Mapping[str, Mapping[str, Any]], png: Path) -> None:
    """Seconds and peak memory of `cell` as bars, ours in another colour."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 0.34 * len(measured) + 0.9), sharey=True, layout="constrained")
    colours = ["#0072b2" if name.endswith("ours") else "#bbbbbb" for name in measured]
    values = {"seconds, whole process": [row["seconds"][0] for row in measured.values()]}
    values["peak memory, GiB"] = [row["peak_mb"] / 1024 for row in measured.values()]
    for axis, (title, bars) in zip(axes, values.items(), strict=True):
        drawn = axis.barh(list(measured), bars, color=colours)
        axis.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
        axis.set_xlabel(title)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.12)
    axes[0].invert_yaxis()
    figure.savefig(png, dpi=150)


def sweep(data: Path, work: Path, steps: int) -> dict[str, object]:
    """36 cells (six methods, two tasks, three seeds): our sweep, a script per cell, and both, a process per core.

    Scripts have the precision that is fastest for their method: one run of each tells.
    """
    for name, text in METHODS.items():
        (work / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
        (work / "conf" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}\n")
    line = ["-m", f"hydra.searchpath=[file://{work / 'conf'}]", f"experiment={','.join(METHODS)}"]
    line += [f"task={','.join(TASKS)}", f"seed={','.join(map(str, SEEDS))}"]
    cells = list(itertools.product(METHODS, TASKS, SEEDS))

    weights = weights_folder(compose.cell_from(["tracker=none"]).model)
    assert weights is not None

    def script(method: str, task: str, seed: int, style: str) -> float:
        return float(theirs(style, task, method, data, weights, work, steps, seed).seconds)

    def best_style(method: str) -> str:
        taken = {style: script(method, TASKS[0], 0, style) for style in precisions(method)}
        return min(taken, key=taken.__getitem__)

    styles = {method: best_style(method) for method in METHODS}

    def scripts(at_once: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda cell: script(cell[0], cell[1], cell[2], styles[cell[0]]), cells))
        return round(time.perf_counter() - started, 1)

    both = cores()
    seconds: dict[str, object] = {"precision of scripts": styles, "ours": ours(line, data, work, steps).seconds}
    seconds["scripts"] = scripts(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    seconds[f"ours, {both} at a time"] = ours(
        [*line, "hydra/launcher=local", f"hydra.launcher.n_jobs={both}"], data, work, steps
    ).seconds
    seconds[f"scripts, {both} at a time"] = scripts(both)
    return seconds


def limit(model: str) -> dict[str, object]:
    """A training step beside its matrix products: as model FLOPs per second, and beside the products alone.

    `share` is of the rate of one product over and over, whose operands never leave the cache; `products_alone` is the
    time that all products of the step take one after the other with operands of their own, as a step has them.
    """
    import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
    import torch
    from bench_selective import BATCH, WIDTH, alternating, stepper  # type: ignore[import-not-found]
    from products import products  # type: ignore[import-not-found]

    from peftbench.ground.machine import process_state

    numbers = compose.cell_from([f"model={model}", "tracker=none"]).model.config
    hidden, inner, layers, heads = (
        numbers[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    tokens, device = BATCH * WIDTH, process_state().device
    one, other = (torch.randn(*size, device=device).bfloat16() for size in ((tokens, hidden), (hidden, inner)))

    def over_and_over() -> None:
        for _ in range(100):
            one @ other

    maps = layers * ([(tokens, hidden, hidden)] * 4 + [(tokens, hidden, inner), (tokens, inner, hidden)])
    attention = layers * [
        (BATCH * heads, WIDTH, hidden // heads, WIDTH),
        (BATCH * heads, WIDTH, WIDTH, hidden // heads),
    ]
    linear, batched = (sum(2 * math.prod(sizes) for sizes in some) for some in (maps, attention))
    passes = {"lora": 2, "bitfit": 2, "full": 3}  # frozen weights need no gradient of their own
    steps = {name: stepper(f"method={name}", f"model={model}") for name in passes}
    alone = {f"products of {name}": products(maps, attention, count, device) for name, count in passes.items()}
    times = alternating({"over_and_over": over_and_over, **steps, **alone})
    rate = 100 * 2 * tokens * hidden * inner / times["over_and_over"]["median_ms"]

    def beside(name: str, count: int) -> dict[str, float]:
        step, alone = times[name]["median_ms"], times[f"products of {name}"]["median_ms"]
        return {
            **times[name],
            "share": round((count * linear + 3 * batched) / step / rate, 3),
            "products_alone": round(alone / step, 3),
            "step_to_products": round(step / alone, 3),
        }

    measured = {name: beside(name, count) for name, count in passes.items()}
    return {"device": str(device), "products_gflops": round(rate / 1e6, 1), **measured}


def commands() -> dict[str, object]:
    """Seconds of commands that a person waits for."""
    lines = {
        "--help": ["--help"],
        "count lora, bert_large_cased": ["count", "model=bert_large_cased", "method=lora"],
        "count every method, bert_large_cased": ["count", "model=bert_large_cased", "method=glob(*)"],
        "count --paper spafit": ["count", "--paper", "spafit"],
    }
    return {
        name: statistics.median(
            process([sys.executable, "-m", "peftbench", *line], lambda _: {}, {}).seconds for _ in range(3)
        )
        for name, line in lines.items()
    }


def base(asked: argparse.Namespace) -> str:
    """Runs that are missing, as they come; then the tables of all that there are."""
    import bench_base  # type: ignore[import-not-found]

    file = asked.kept or Path("bench_base.jsonl")
    models, tasks = (asked.models or bench_base.MODELS), bench_base.TASKS
    for run in bench_base.measure(asked.data, asked.weights, file, models, tasks, asked.rounds, asked.steps):
        print(json.dumps(run), file=sys.stderr, flush=True)
    return str(bench_base.tables(bench_base.read(file)))


def large(asked: argparse.Namespace) -> str:
    """Every method on BERT-large's shape with random weights: a step of 16 rows, and whether 12 GiB are enough."""
    import bench_methods  # type: ignore[import-not-found]

    file = asked.kept or Path("bench_large.json")
    limits = argparse.Namespace(
        model="bert_large_cased", rows=16, steps=3, rounds=asked.rounds, limit_gib=12.0, limit_s=1800.0, figures=file
    )
    for method, run in bench_methods.go_on(limits, bench_methods.methods()):
        print(method, json.dumps(run), file=sys.stderr, flush=True)
    return str(bench_methods.table(bench_methods.read(file)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cell", "base", "large", "sweep", "limit", "commands"))
    parser.add_argument("--data", type=Path, help="GLUE in the layout of the official download")
    parser.add_argument("--png", type=Path, help="where to draw what `cell` finds")
    parser.add_argument("--model", default="minilm_l6", help="backbone of `limit`")
    parser.add_argument("--models", type=lambda words: words.split(","), help="which of `base`, separated by commas")
    parser.add_argument("--weights", type=Path, help="of `base`: the folder of all-mpnet-base-v2")
    parser.add_argument("--kept", type=Path, help="file of what `base` or `large` measured so far")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args(arguments)
    if asked.what in ("cell", "base", "sweep") and asked.data is None:
        parser.error("--data GLUE")
    if asked.what == "base" and asked.weights is None:
        parser.error("--weights MPNET")
    if asked.what in ("base", "large"):
        print({"base": base, "large": large}[asked.what](asked))
    elif asked.what == "limit":
        print(json.dumps(limit(asked.model), indent=1))
    elif asked.what == "commands":
        print(json.dumps(commands(), indent=1))
    else:
        with tempfile.TemporaryDirectory() as made:
            beside_peers(asked, Path(made))


def beside_peers(asked: argparse.Namespace, work: Path) -> None:
    """`cell` and `sweep`."""
    data = asked.data.resolve()
    if asked.what == "sweep":
        print(json.dumps(sweep(data, work, asked.steps), indent=1))
        return
    measured = cell(data, work, asked.rounds, asked.steps)
    print(json.dumps(measured, indent=1))
    print(markdown(fastest(measured)))
    if asked.png:
        draw(fastest(measured), asked.png)


if __name__ == "__main__":
    main()
