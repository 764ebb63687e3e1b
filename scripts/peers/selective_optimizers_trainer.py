"""ID3 as its authors' package is used: `selective-optimizers` 0.4 under transformers' Trainer, at the Trainer's best.

    python scripts/peers/selective_optimizers_trainer.py --task rte --data GLUE --steps 100 --weights DIR --out DIR

Candidates are the linear maps of the layers; the head trains whole. `--style fp32` or `bf16`, as in hf_trainer.py: no
matrix of the layers is frozen, to be loaded in bf16. Prints one line of JSON, as `hf_trainer.py` does.
"""

from typing import Any

import hf_trainer  # type: ignore[import-not-found]
import torch
from selective_optimizers.wrap import get_selective_optimizer
from transformers import get_linear_schedule_with_warmup

BUDGET = 20_000


def model_for(weights: str, _: str) -> Any:
    """The model with gradients for the layers' matrices and the head alone."""
    model = hf_trainer.model_for(weights, "full")
    linear = {m.weight for m in model.base_model.encoder.modules() if isinstance(m, torch.nn.Linear)}
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(parameter in linear)
    return model


def optimizers_for(model: Any, steps: int, lr: float) -> tuple[Any, Any]:
    """ID3 over the matrices, everything of the head, and the Trainer's usual schedule."""
    head = list(model.classifier.parameters())
    body = [p for p in model.base_model.parameters() if p.requires_grad]
    optimizer = get_selective_optimizer(torch.optim.AdamW, "id3")(
        [{"params": body}, {"params": head, "choose_all": True}],
        lr=lr,
        budget=BUDGET + sum(p.numel() for p in head),
        max_steps=steps,
        verify=False,
    )
    return optimizer, get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)


if __name__ == "__main__":
    hf_trainer.main(model_for, optimizers_for)
