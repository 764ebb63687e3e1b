"""LoRA (Hu et al. 2021, arXiv 2106.09685)."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from peftbench.backbone.dropout import Dropout
from peftbench.backbone.model import Model
from peftbench.config.bounds import Count, Positive, Share
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import write_atomically
from peftbench.methods.base import narrowed
from peftbench.methods.maps import AdaptedLinear, MapsTuner, wrap


class LoRALinear(AdaptedLinear):
    """A linear map with a low-rank term: W x + b + (alpha / rank) B A x, equation 3 of the paper.

    `weight` (out, in) and `bias` (out,) are the frozen map's own parameters under their own names; `lora_A`
    (rank, in) starts as in the released code (kaiming-uniform, a = sqrt 5), `lora_B` (out, rank) at zero.
    """

    factors: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B")

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: nn.Module) -> None:
        super().__init__(base)
        self.scaling = alpha / rank
        self.dropout = dropout
        self.lora_A, self.lora_B = new_factors(base, rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        plain = functional.linear(x, self.weight, self.bias)
        low = self.scale() * functional.linear(self.dropout(x), self.lora_A)  # the scale where there is least to scale
        return plus_product(plain, low, self.lora_B)

    def scale(self) -> float | torch.Tensor:
        """What the term is multiplied by between A and B: a number, or one for each rank (rank,)."""
        return self.scaling

    def update(self) -> torch.Tensor:
        """The low-rank term as a matrix (out, in)."""
        return self.scaling * (self.lora_B @ self.lora_A).detach()

    def fold(self) -> None:
        """The low-rank term goes into the weight."""
        self.weight.copy_(self.weight.float() + self.update())


def new_factors(base: nn.Linear, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank, in) and B (out, rank) of a linear map, as LoRA starts."""
    a = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return a, nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))


def plus_product(plain: torch.Tensor, low: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """plain + low B^T: (..., out), (..., rank), (out, rank) to (..., out)."""
    return torch.addmm(plain.flatten(0, -2), low.flatten(0, -2), b.t()).view_as(plain)


class LoRATuner(MapsTuner[LoRALinear]):
    """The factors of every wrapped linear map."""

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """(alpha / rank) B A of every wrapped map."""
        for name, layer in self.wrapped.items():
            yield f"{name}.weight", layer.update()


@dataclass(frozen=True)
class LoRA:
    """Low-rank terms beside frozen linear maps."""

    rank: Count = 8
    alpha: Positive = 16
    dropout: Share = 0.1
    kinds: tuple[Kind, ...] | None = ("query", "value")
    dial: ClassVar[str | None] = "rank"

    def attach(self, model: Model, scope: Scope) -> LoRATuner:
        """See `Method`.

        Factors are named "<linear map>.lora_A" and "<linear map>.lora_B".
        """
        return LoRATuner(
            model,
            wrap(
                model,
                narrowed(scope, self.kinds),
                lambda base: LoRALinear(base, self.rank, self.alpha, Dropout(self.dropout, model.noise)),
            ),
        )

    def export_peft(self, tuner: LoRATuner, model: Model, folder: Path) -> None:
        """Write the adapter and the head in PEFT's format: `peft.PeftModel.from_pretrained` loads the same logits.

        Raises:
            ConfigError: a wrapped map is one that the weights lacked: PEFT keeps a map whole or adapts it, not both.
        """
        if both := [name for name in tuner.wrapped if f"{name}.weight" in model.drawn]:
            raise ConfigError(f"{both[0]}: the weights lacked it and LoRA trained it; PEFT's format cannot hold both")
        prefix = "base_model.model."
        tensors = {
            f"{prefix}{name}.{factor}.weight": getattr(layer, factor).detach().float().contiguous()
            for name, layer in tuner.wrapped.items()
            for factor in ("lora_A", "lora_B")
        }
        tensors |= {prefix + name: p.detach().float().contiguous() for name, p in model.head()}
        tensors |= {prefix + name: tensor.contiguous() for name, tensor in model.drawn.items()}
        saved_whole = {*model.readout.modules(model.layout), *(name.rpartition(".")[0] for name in model.drawn)}
        config = {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": next(iter(tuner.wrapped.values())).lora_A.shape[0],
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "target_modules": sorted(tuner.wrapped),
            "modules_to_save": sorted(saved_whole),
        }
        write_atomically(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
        write_atomically(folder / "adapter_config.json", json.dumps(config, indent=2).encode())
