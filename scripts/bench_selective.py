"""What selective methods cost beside full fine-tuning and LoRA: step time, memory, and how both grow.

    python scripts/bench_selective.py steps     step times on MiniLM's shape, batch 32 x 64 tokens, bf16
    python scripts/bench_selective.py memory    peak resident memory, every method in a process of its own
    python scripts/bench_selective.py crossover sampled against dense gradient of one matrix, by density
    python scripts/bench_selective.py growth    scoring and selection against model size and budget

Prints JSON. Methods take turns, so that a slow moment of the machine meets all of them; medians are reported.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peftbench import budgets, compose, deltas
from peftbench.config import Cell
from peftbench.data.tokens import Tokens
from peftbench.models import compute_precision, load
from peftbench.provenance import peak_memory_mb, reset_peak_memory
from peftbench.sparse.gradients import dense, sampled
from peftbench.train import Trainer

BATCH, WIDTH, ROUNDS, WARM = 32, 64, 15, 3
METHODS = {
    "full": ["method=full"],
    "lora r8": ["method=lora"],
    "bitfit": ["method=bitfit"],
    "random masking 0.1%": ["method=random_masking", "budget.fraction=0.001"],
    "id3 20k": ["method=id3", "budget=20000", "method.steps=200"],
}


def trainer_of(*overrides: str) -> tuple[Trainer, torch.optim.Optimizer]:
    """A trainer with random weights and random rows of equal length, ready to step."""
    words = ["model.weights=random", "task=sst2", f"protocol.batch_size={BATCH}", "tracker=none", *overrides]
    cell: Cell = budgets.resolve(compose.cell_from(words))
    model, _ = load(cell.model, 2, seed=0)
    tuner = deltas.attach(cell.method, cell.scope, cell.budget, model, seed=0)
    compute_precision(model, "bf16", [*tuner.trainables().values(), *dict(model.head()).values()])
    rows, vocabulary = 4 * BATCH, int(cell.model.config["vocab_size"])
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, vocabulary, (rows * WIDTH,), generator=random, dtype=torch.int32).numpy()
    starts = torch.arange(0, rows * WIDTH + 1, WIDTH).numpy()
    labels = torch.randint(0, 2, (rows,), generator=random).numpy()
    train = Tokens("train", ids, starts, torch.full((rows,), WIDTH, dtype=torch.int32).numpy(), labels, 0)
    trainer = Trainer(model, tuner, cell.protocol, cell.task, train, {}, "accuracy", 0, log_every=10**9)
    optimizer = trainer.begin(total=200)
    return trainer, optimizer


def stepper(*overrides: str) -> Callable[[], None]:
    """A function that makes one optimizer step."""
    trainer, optimizer = trainer_of(*overrides)
    assert trainer.train is not None
    rows = torch.arange(BATCH).numpy()
    count = [0]

    def step() -> None:
        trainer.step(count[0], rows, optimizer)
        count[0] += 1

    return step


def peer_stepper() -> Callable[[], None]:
    """ID3 by the authors' package, `selective-optimizers` 0.4, on the same model and rows, bf16 autocast."""
    from selective_optimizers.wrap import get_selective_optimizer

    trainer, _ = trainer_of("method=full", "scope.kinds=" + "[query,key,value,attention_output,intermediate,output]")
    head = [p for _, p in trainer.model.head()]
    body = list(trainer.tuner.trainables().values())
    optimizer = get_selective_optimizer(torch.optim.AdamW, "id3")(
        [{"params": body}, {"params": head, "choose_all": True}],
        lr=1e-3,
        budget=20_000 + sum(p.numel() for p in head),
        max_steps=200,
        verify=False,
    )
    rows, count = torch.arange(BATCH).numpy(), [0]

    def step() -> None:
        trainer.step(count[0], rows, optimizer)
        count[0] += 1

    return step


def alternating(steppers: dict[str, Callable[[], None]], rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Median, least and greatest milliseconds of a step, the steppers taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for round_ in range(rounds + WARM):
        for name, step in steppers.items():
            start = time.perf_counter()
            step()
            if round_ >= WARM:
                times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"median_ms": round(statistics.median(t), 1), "min_ms": round(min(t), 1), "max_ms": round(max(t), 1)}
        for name, t in times.items()
    }


def steps() -> dict[str, Any]:
    """Step times of every method and of the peer, and the ratios that matter."""
    found = alternating({**{name: stepper(*words) for name, words in METHODS.items()}, "peer id3": peer_stepper()})
    ms = {name: row["median_ms"] for name, row in found.items()}
    ratios = {
        "random masking / lora": ms["random masking 0.1%"] / ms["lora r8"],
        "id3 / full": ms["id3 20k"] / ms["full"],
        "id3 / peer id3": ms["id3 20k"] / ms["peer id3"],
    }
    return {"steps": found, "ratios": {name: round(value, 3) for name, value in ratios.items()}}


def memory() -> dict[str, Any]:
    """Peak resident MiB of 10 steps, each method in its own process, and the share of full fine-tuning."""
    found = {}
    for name in METHODS:
        done = subprocess.run([sys.executable, __file__, "peak", name], capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)
    return {"peak_mb": found, "of full": {name: round(mb / found["full"], 3) for name, mb in found.items()}}


def peak(name: str) -> float:
    """Peak resident MiB of this process over 10 steps of one method."""
    step = stepper(*METHODS[name])
    reset_peak_memory()
    for _ in range(10):
        step()
    return peak_memory_mb()


def crossover() -> dict[str, Any]:
    """Milliseconds of both products for one matrix of MiniLM's, bf16, by density and tokens."""
    found = []
    for out, width in ((384, 384), (1536, 384)):
        for tokens in (512, 2048):
            x, dy = torch.randn(tokens, width).bfloat16(), torch.randn(tokens, out).bfloat16()
            for density in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05):
                ids = torch.randperm(out * width)[: max(1, round(density * out * width))].sort().values
                rows, columns = ids // width, ids % width
                times: dict[str, list[float]] = {"sampled": [], "dense": []}
                for _ in range(30):
                    for product in (sampled, dense):
                        start = time.perf_counter()
                        product(x, dy, rows, columns)
                        times[product.__name__].append(1000 * (time.perf_counter() - start))
                medians = {name: round(statistics.median(t), 3) for name, t in times.items()}
                found.append({"matrix": f"{out}x{width}", "tokens": tokens, "density": density, **medians})
    return {"crossover_ms": found}


def growth() -> dict[str, Any]:
    """ID3's step over full fine-tuning's forward and backward, by model size and by budget."""
    sizes = ["bert_tiny", "bert_mini", "bert_small", "bert_medium", "bert_base_cased"]
    by_size, by_budget = {}, {}
    for model in sizes:
        pair = {
            "full": stepper(f"model={model}", "method=full"),
            "id3": stepper(f"model={model}", "method=id3", "budget=20000", "method.steps=200"),
        }
        by_size[model] = alternating(pair, rounds=5)
    for budget in (2_000, 20_000, 200_000, 2_000_000):
        one = {"id3": stepper("method=id3", f"budget={budget}", "method.steps=200")}
        by_budget[str(budget)] = alternating(one, rounds=5)["id3"]
    return {"by_size": by_size, "by_budget": by_budget}


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
    elif len(sys.argv) == 2 and sys.argv[1] in parts:
        print(json.dumps(parts[sys.argv[1]](), indent=1))
    else:
        sys.exit(f"usage: python {Path(__file__).name} {'|'.join(parts)}")


if __name__ == "__main__":
    main()
