"""What selective methods cost beside full fine-tuning and LoRA: step time, memory, and how both grow.

    python scripts/bench_selective.py steps     step times on MiniLM's shape, batch 32 x 64 tokens, bf16
    python scripts/bench_selective.py memory    peak resident memory, every method in a process of its own
    python scripts/bench_selective.py crossover sampled against dense gradient of one matrix, by density
    python scripts/bench_selective.py growth [PNG] scoring and selection against model size and budget; a plot too

Prints JSON. Methods take turns, so that a slow moment of the machine meets all of them; medians are reported.
"""

import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from whole_runs import precisions  # type: ignore[import-not-found]

from peftbench.backbone.model import Model, compute_precision, load_model
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data.tokens import Tokens
from peftbench.ground.machine import process_state
from peftbench.methods.base import Tuner
from peftbench.runner import budgets, deltas
from peftbench.runner.provenance import peak_memory_mb, reset_peak_memory
from peftbench.sparse.gradients import dense, sampled
from peftbench.training.trainer import Trainer

BATCH, WIDTH, ROUNDS, WARM = 32, 64, 15, 3
PEER = Path(__file__).parent / "peers" / "selective_steps.py"
MATRICES, DENSITIES = ((384, 384), (1536, 384)), (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
LINEAR = "scope.kinds=[query,key,value,attention_output,intermediate,output]"
METHODS = {
    "full": ["method=full"],
    "lora r8": ["method=lora"],
    "bitfit": ["method=bitfit"],
    "random masking, 0.1% of the matrices": ["method=random_masking", "budget=10617"],
    "random masking, 0.1% of the backbone": ["method=random_masking", "budget.fraction=0.001"],
    "id3": ["method=id3", "budget=20000", "method.steps=200"],
    "id3, all tensors": ["method=id3", "budget=20000", "method.steps=200", "method.kinds=null"],
}


def attached(cell: Cell, model: Model) -> Tuner:
    """The cell's own method on a model."""
    return deltas.attach(cell.attachment, model, cell.seed)


def trainer_of(
    *overrides: str,
    total: int = 200,
    attach: Callable[[Cell, Model], Tuner] = attached,
    batch: int = BATCH,
    width: int = WIDTH,
) -> Trainer:
    """A trainer with random weights and random rows of `width` tokens, ready for the first of `total` steps."""
    words = ["model.weights=random", "task=sst2", f"protocol.batch_size={batch}", "tracker=none", *overrides]
    cell: Cell = budgets.resolve(compose.cell_from(words))
    model, _ = load_model(cell.model, 2, cell.seed)
    tuner = attach(cell, model)
    compute_precision(model, cell.protocol.precision, [*tuner.trainables().values(), *dict(model.head()).values()])
    rows, vocabulary = 4 * batch, int(cell.model.config["vocab_size"])
    random = torch.Generator().manual_seed(cell.seed)
    ids = torch.randint(1000, vocabulary, (rows * width,), generator=random, dtype=torch.int32).numpy()
    starts = torch.arange(0, rows * width + 1, width).numpy()
    labels = torch.randint(0, 2, (rows,), generator=random).numpy()
    train = Tokens("train", ids, starts, torch.full((rows,), width, dtype=torch.int32).numpy(), labels, 0)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, train, {}, "accuracy", cell.seed, log_every=10**9)
    trainer.begin(total)
    return trainer


def stepper(*overrides: str) -> Callable[[], None]:
    """A function that makes one optimizer step."""
    trainer = trainer_of(*overrides)
    assert trainer.train is not None
    rows = torch.arange(BATCH).numpy()
    count = [0]

    def step() -> None:
        trainer.step(count[0], rows)
        count[0] += 1

    return step


def peer_stepper(matrices_alone: bool, style: str) -> Callable[[], None]:
    """ID3 as people run the authors' package: it steps in a process of its own, without this bench's kernels.

    Args:
        matrices_alone: candidates are the layers' linear maps, as in ours; otherwise everything but the classifier.
        style: fp32 or bf16 (autocast).

    Raises:
        SystemExit: when it steps, the process has ended.
    """
    spec = compose.cell_from(["tracker=none"]).model
    asked = {"model_type": spec.model_type, "config": dict(spec.config), "rows": BATCH, "width": WIDTH}
    line = json.dumps({**asked, "matrices_alone": matrices_alone, "style": style})
    peer = subprocess.Popen([sys.executable, str(PEER), line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None
    assert peer.stdout is not None
    asks, answers = peer.stdin, peer.stdout

    def step() -> None:
        print(file=asks, flush=True)
        if not answers.readline():
            raise SystemExit(f"{PEER.name} ended")

    return step


def own_time() -> float:
    """Seconds of processor time of this process; of the wall where a GPU computes, whose time no process counts."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def alternating(
    steppers: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Median, least and greatest milliseconds of a step, the steppers taking turns; a GPU's work is waited for.

    Args:
        clock: gives seconds: of the wall, or this process's own (`own_time`) beside other work.
    """
    settle = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for round_ in range(rounds + WARM):
        for name, step in steppers.items():
            settle()
            start = clock()
            step()
            settle()
            if round_ >= WARM:
                times[name].append(1000 * (clock() - start))
    return {
        name: {"median_ms": round(statistics.median(t), 3), "min_ms": round(min(t), 3), "max_ms": round(max(t), 3)}
        for name, t in times.items()
    }


def steps() -> dict[str, Any]:
    """Step times of every method and of the peer, and the ratios that matter: to its fastest precision."""
    ours = {name: stepper(*words) for name, words in METHODS.items()}
    peers = {"peer's id3": True, "peer's id3, all tensors": False}
    styles = precisions("id3")
    theirs = {f"{name} in {style}": peer_stepper(alone, style) for name, alone in peers.items() for style in styles}
    milliseconds = alternating({**ours, **theirs})
    ms = {name: row["median_ms"] for name, row in milliseconds.items()}
    best = {name: min((f"{name} in {style}" for style in styles), key=ms.__getitem__) for name in peers}
    matrices, backbone = (f"random masking, 0.1% of the {part}" for part in ("matrices", "backbone"))
    pairs = [
        (matrices, "lora r8"),
        (backbone, "lora r8"),
        ("id3", "full"),
        ("id3, all tensors", "full"),
        ("id3", best["peer's id3"]),
        ("id3, all tensors", best["peer's id3, all tensors"]),
    ]
    ratios = {f"{ours} / {other}": ms[ours] / ms[other] for ours, other in pairs}
    return {"steps": milliseconds, "ratios": {name: round(value, 3) for name, value in ratios.items()}}


def memory() -> dict[str, Any]:
    """Peak resident MiB of 10 steps, each method in its own process, and the share of full fine-tuning."""
    peaks = {}
    for name in METHODS:
        done = subprocess.run([sys.executable, __file__, "peak", name], capture_output=True, text=True, check=True)
        peaks[name] = json.loads(done.stdout)
    return {"peak_mb": peaks, "of full": {name: round(mb / peaks["full"], 3) for name, mb in peaks.items()}}


def peak(name: str) -> float:
    """Peak resident MiB of this process over 10 steps of one method."""
    step = stepper(*METHODS[name])
    reset_peak_memory()
    for _ in range(10):
        step()
    return peak_memory_mb()


def crossover() -> dict[str, Any]:
    """Milliseconds of both products for one matrix of MiniLM's, by precision, tokens and density."""
    timings, device = [], process_state().device
    for (out, width), precision, tokens in itertools.product(MATRICES, (torch.bfloat16, torch.float32), (512, 2048)):
        x, dy = (torch.randn(tokens, size, device=device).to(precision) for size in (width, out))
        for density in DENSITIES:
            ids = torch.randperm(out * width)[: max(1, round(density * out * width))].sort().values.int().to(device)
            products = {f.__name__: functools.partial(f, x, dy, ids) for f in (sampled, dense)}
            medians = {name: row["median_ms"] for name, row in alternating(products, rounds=30).items()}
            facts = {"matrix": f"{out}x{width}", "dtype": str(precision), "tokens": tokens, "density": density}
            timings.append({**facts, **medians})
    return {"crossover_ms": timings}


def growth() -> dict[str, Any]:
    """Scoring and selection by themselves: milliseconds a step against model size and budget, and the fitted growth."""
    sizes = ["bert_tiny", "bert_mini", "bert_small", "bert_medium", "bert_base_cased", "bert_large_cased"]
    by_size = [selection_ms(f"model={model}", "budget=20000") for model in sizes]
    by_budget = [selection_ms("model=minilm_l6", f"budget={budget}") for budget in (2_000, 20_000, 200_000, 2_000_000)]
    return {
        "by_size": dict(zip(sizes, by_size, strict=True)),
        "by_budget": by_budget,
        "exponent_of_entries": exponent([(row["entries"], row["ms"]) for row in by_size[2:]]),
        "exponent_of_budget": exponent([(row["budget"], row["ms"]) for row in by_budget]),
        "ns_per_entry": round(1e6 * by_size[-1]["ms"] / by_size[-1]["entries"], 3),
    }


def selection_ms(*overrides: str) -> dict[str, float]:
    """Median milliseconds that ID3 adds to a backward pass which makes the same dense gradients and drops them."""
    random = torch.Generator().manual_seed(0)
    takers = {}
    for name, words in {"bare": ["method=full", LINEAR], "id3": ["method=id3", "method.steps=200", *overrides]}.items():
        trainer = trainer_of(*words, *[word for word in overrides if word.startswith("model=")])
        tensors = [p for _, p in trainer.model.backbone() if p.requires_grad]
        gradients = [torch.randn(p.shape, generator=random).to(p) for p in tensors]
        takers[name] = functools.partial(one_selection, trainer, tensors, gradients, itertools.count())
        entries = sum(p.numel() for p in tensors)
    milliseconds = alternating(takers, rounds=7)
    budget = next(int(word.partition("=")[2]) for word in overrides if word.startswith("budget="))
    return {
        "entries": entries,
        "budget": budget,
        "ms": round(milliseconds["id3"]["median_ms"] - milliseconds["bare"]["median_ms"], 2),
        "bare_ms": milliseconds["bare"]["median_ms"],
    }


def one_selection(
    trainer: Trainer,
    tensors: Sequence[torch.nn.Parameter],
    gradients: Sequence[torch.Tensor],
    numbers: Iterator[int],
) -> None:
    """What a step does around the model's own products: gradients arrive, the tuner chooses, values are written."""
    step = next(numbers)
    trainer.tuner.before_backward(step, last=True)
    torch.autograd.backward(tensors, gradients)
    trainer.tuner.after_backward(step)
    trainer.tuner.after_step(step)
    trainer.optimizer.zero_grad(set_to_none=True)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """b of the least-squares fit y = a x^b."""
    x, y = np.log(np.array(points)).T
    return round(float(np.polyfit(x, y, 1)[0]), 2)


def draw(curves: dict[str, Any], path: Path) -> None:
    """Both growths side by side, as a PNG."""
    import matplotlib.pyplot as plt  # 25 MB that no measured process should hold

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    panels = [
        (
            "entries",
            list(curves["by_size"].values()),
            "candidate entries (bert_tiny ... bert_large_cased)",
            "entries",
        ),
        ("budget", curves["by_budget"], "budget (MiniLM-L6)", "budget"),
    ]
    for axis, (key, rows, label, name) in zip(axes, panels, strict=True):
        axis.loglog([row[key] for row in rows], [row["ms"] for row in rows], "o-", color="#0072b2")
        axis.set(xlabel=label, title=f"grows as {name}^{curves[f'exponent_of_{name}']}")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("scoring and selection, ms per step")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the part that the command line names."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": steps,
        "memory": memory,
        "crossover": crossover,
        "growth": growth,
    }
    if len(sys.argv) == 3 and sys.argv[1] == "peak":
        print(peak(sys.argv[2]))
    elif len(sys.argv) == 3 and sys.argv[1] == "growth":
        figures = growth()
        print(json.dumps(figures, indent=1))
        draw(figures, Path(sys.argv[2]))
    elif len(sys.argv) == 2 and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](), indent=1))
    else:
        sys.exit(f"usage: python {Path(__file__).name} {'|'.join(parts)}")


if __name__ == "__main__":
    main()
