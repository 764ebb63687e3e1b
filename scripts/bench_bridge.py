"""What the bridge costs beside plain peft: a step of a type inside our module, and one through peft's own model.

    python scripts/bench_bridge.py [--methods dora,vera] [--model minilm_l6] [--rounds 15]

Random weights, 32 rows of 64 random tokens, bf16, under this bench's loop. In the plain form peft's model is called and
its dropout is torch's; configuration and modules are the same. Both take turns in one process, whose own processor time
is counted, so that other work on the machine is not. Prints JSON: milliseconds, and the bridge's share of plain peft's.
"""

import argparse
import copy
import json
import warnings

from bench_pruned import stepper  # type: ignore[import-not-found]
from bench_selective import alternating, own_time, trainer_of  # type: ignore[import-not-found]
from peft import get_peft_model

from peftbench.backbone.model import Model
from peftbench.config.spec import Cell
from peftbench.methods.base import ParameterTuner
from peftbench.methods.peft_prompts import Through
from peftbench.methods.peft_tuners import PeftTuner
from peftbench.training.trainer import Trainer

METHODS = "dora,rslora,vera,ia3,hira,oft,fourierft,road"


def plain(word: str, model: str, bridged: Trainer) -> Trainer:
    """The same type with the same configuration, through peft's own model."""
    assert isinstance(bridged.tuner, PeftTuner)
    config = copy.deepcopy(bridged.tuner.config)

    def attach(_: Cell, backbone: Model) -> ParameterTuner:
        head = [parameter for _, parameter in backbone.head()]
        with warnings.catch_warnings(action="ignore"):
            wrapper = get_peft_model(backbone.module, config)
        own = {name: p for name, p in backbone.backbone() if p.requires_grad}
        for parameter in head:  # peft freezes whatever is not its own
            parameter.requires_grad_(True)
        backbone.readout = Through(backbone.readout, wrapper)
        return ParameterTuner(own)

    return trainer_of(f"method={word}", f"model={model}", attach=attach)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=METHODS, help="words of peft's types, separated by commas")
    parser.add_argument("--model", default="minilm_l6", help="whose shape")
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    found = {}
    for word in asked.methods.split(","):
        bridged = trainer_of(f"method={word}", f"model={asked.model}")
        steppers = {"bridge": stepper(bridged), "peft": stepper(plain(word, asked.model, bridged))}
        times = alternating(steppers, asked.rounds, own_time)
        ratio = times["bridge"]["median_ms"] / times["peft"]["median_ms"]
        found[word] = {**times, "ratio": round(ratio, 3)}
        print(word, json.dumps(found[word]), flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
