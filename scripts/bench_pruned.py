"""What Light-PEFT's pruning saves for real: steps and forward passes of the pruned backbone beside the whole one.

    python scripts/bench_pruned.py [--model minilm_l6] [--rounds 15]

Random weights, 32 rows of 64 random tokens, bf16. LoRA on the same maps, Light-PEFT before it prunes and Light-PEFT
afterwards take turns in one process. Prints JSON: milliseconds, entries, and ratios of medians and of the least times.
"""

import argparse
import json
from collections.abc import Callable

import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from bench_selective import BATCH, alternating, trainer_of  # type: ignore[import-not-found]

from peftbench.training.trainer import Trainer

MAPS = "method.kinds=[query,key,value,attention_output,intermediate,output]"
METHODS = {
    "lora": ["method=lora", MAPS, "method.dropout=0.05"],
    "before": ["method=light_peft", "method.estimation=199"],  # of 200 steps: it does not come to its end
    "after": ["method=light_peft", "method.estimation=1"],
}


def stepper(trainer: Trainer) -> Callable[[], None]:
    """One optimizer step."""
    rows = torch.arange(BATCH).numpy()
    return lambda: trainer.step(trainer.fit.steps, rows)


def passer(trainer: Trainer) -> Callable[[], None]:
    """One forward pass at rest."""
    assert trainer.train is not None
    batch = trainer.forward.batch(trainer.train, torch.arange(BATCH).numpy())

    @torch.no_grad()
    def run() -> None:
        trainer.model.module.eval()
        trainer.forward.logits(batch)

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="minilm_l6", help="whose shape")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    trainers = {name: trainer_of(*words, f"model={asked.model}") for name, words in METHODS.items()}
    for trainer in trainers.values():
        stepper(trainer)()  # the first is the whole estimation of one of them
    times = alternating(
        {
            f"{what} {name}": make(t)
            for name, t in trainers.items()
            for what, make in (("step", stepper), ("pass", passer))
        },
        asked.rounds,
    )
    ratios = {
        f"{what}, after / {other}": [
            round(times[f"{what} after"][which] / times[f"{what} {other}"][which], 3)
            for which in ("median_ms", "min_ms")
        ]
        for what in ("step", "pass")
        for other in ("lora", "before")
    }
    layers = {
        name: sum(p.numel() for n, p in t.model.backbone() if n.startswith(t.model.layout.layers))
        for name, t in trainers.items()
    }
    entries = {**layers, "ratio": round(layers["after"] / layers["before"], 3)}
    print(json.dumps({"entries of the layers": entries, "ratios": ratios, **times}, indent=1))


if __name__ == "__main__":
    main()
