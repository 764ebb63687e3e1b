"""Steps of ID3 by its authors' package, `selective-optimizers` 0.4, on random weights, in a process without this bench.

    python scripts/peers/selective_steps.py '{"model_type": ..., "config": {...}, "matrices_alone": true,
                                              "style": "bf16", "rows": 32, "width": 64}'

Makes a step for every line that it reads and answers with a line, so that it can take turns with others. Candidates are
the linear maps of the layers, or everything but the classifier; precision is that of hf_trainer.py's style.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import one_gpu  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from selective_optimizers.wrap import get_selective_optimizer
from transformers import AutoConfig, AutoModelForSequenceClassification


def stepper(asked: dict[str, Any]) -> Callable[[], None]:
    """A function that makes one optimizer step, to its end."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.for_model(asked["model_type"], **asked["config"], num_labels=2)
    module = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").train().to(device)
    head = list(module.classifier.parameters())
    linear = {m.weight for m in module.base_model.encoder.modules() if isinstance(m, torch.nn.Linear)}
    for parameter in module.base_model.parameters():
        parameter.requires_grad_(not asked["matrices_alone"] or parameter in linear)
    body = [parameter for parameter in module.base_model.parameters() if parameter.requires_grad]
    optimizer = get_selective_optimizer(torch.optim.AdamW, "id3")(
        [{"params": body}, {"params": head, "choose_all": True}],
        lr=1e-3,
        budget=20_000 + sum(p.numel() for p in head),
        max_steps=200,
        verify=False,
    )
    size = (asked["rows"], asked["width"])
    ids = torch.randint(1000, asked["config"]["vocab_size"], size, device=device)
    labels, mask = torch.randint(2, size[:1], device=device), torch.ones_like(ids)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=asked["style"] == "bf16"):
            logits = module(input_ids=ids, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_([*body, *head], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def main() -> None:
    """A step a line."""
    step = stepper(json.loads(sys.argv[1]))
    for _ in sys.stdin:
        step()
        print("done", flush=True)


if __name__ == "__main__":
    main()
