"""Several cells on one frozen backbone, one pass forward and back for all their batches: an experiment, with its bench.

    python scripts/fused_cells.py time [--batch 32] [--widths 16,64]   step times for 2, 4 and 8 cells
    python scripts/fused_cells.py same                                 losses beside those of the cells alone

The tokens of all cells are packed into one sequence, so that the maps which no cell trains see one large matrix. What
a cell trains, its embeddings, attention, dropout, pooler and head remain its own modules and see its own tokens alone,
in the shapes and with the random numbers that they would see if the cell trained by itself. Backbones of the BERT
family; methods that train biases, LoRA's factors, the head, or whole modules.

Not part of the engine: on the CPUs that it was measured on it does not pay (docs/performance.md), and one process per
core does.
"""

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
import torch
from bench_selective import alternating, trainer_of  # type: ignore[import-not-found]
from torch import nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftbench.backbone.attention import attention
from peftbench.backbone.dropout import Drop, Dropout
from peftbench.backbone.model import Model
from peftbench.methods.lora import LoRALinear

ATTENTION = "peftbench_fused"  # the name under which transformers finds `attention_of_each`
METHODS = ("lora", "bitfit", "head")
ROUNDS = 7


class Packing:
    """Which tokens and rows of a packed step belong to which cell."""

    def __init__(self) -> None:
        self.batches: Sequence[Mapping[str, Any]] = ()

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and width of each cell's batch."""
        return [tuple(batch["input_ids"].shape) for batch in self.batches]

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each cell's part of packed tokens (1, tokens, ...) or of rows (rows, ...)."""
        rows = [rows for rows, _ in self.shapes]
        if x.shape[0] == 1 and x.ndim > 2:
            return x.split([rows * width for rows, width in self.shapes], dim=1)
        return x.split(rows)

    @staticmethod
    def join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put parts such as `split` gives together again."""
        return torch.cat(list(parts), dim=1 if parts[0].shape[0] == 1 and parts[0].ndim > 2 else 0)


class Joint(nn.Module):
    """In the place of one module of each cell; `own` are those modules, which stay in their cells' models too."""

    def __init__(self, packing: Packing, own: Sequence[Any]) -> None:
        super().__init__()
        self.packing = packing
        self.own: tuple[Any, ...] = tuple(own)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each cell's module on its own part."""
        parts = self.packing.split(x)
        return self.packing.join([module(part) for module, part in zip(self.own, parts, strict=True)])


class JointBias(Joint):
    """Linear maps that share a frozen weight and have biases of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, in) -> (1, tokens, out)."""
        biases = [m.bias.expand(part.shape[1], -1) for m, part in zip(self.own, self.packing.split(x), strict=True)]
        return torch.addmm(torch.cat(biases), x[0], self.own[0].weight.t())[None]


class JointLoRA(Joint):
    """Linear maps that share a frozen map and have low-rank terms of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, in) -> (1, tokens, out)."""
        plain = functional.linear(x, self.own[0].weight, self.own[0].bias)
        parts = zip(self.own, self.packing.split(plain), self.packing.split(x), strict=True)
        return self.packing.join([_with_term(module, part, inside) for module, part, inside in parts])


def _with_term(module: LoRALinear, plain: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    low = module.scaling * functional.linear(module.dropout(x), module.lora_A)
    return torch.addmm(plain.flatten(0, -2), low.flatten(0, -2), module.lora_B.t()).view_as(plain)


class JointDropout(Joint):
    """Dropout whose random numbers each cell draws from its own stream, for its own tokens."""

    def __init__(self, packing: Packing, own: Sequence[Any]) -> None:
        super().__init__(packing, own)
        self.p: float = own[0].p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…) -> the same shape."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        parts = zip(self.own, self.packing.split(x), strict=True)
        return self.packing.join([Drop.apply(part, m.noise.key(), m.p) for m, part in parts])


class JointEmbeddings(Joint):
    """Each cell's embeddings of its own rows, packed."""

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """Nothing -> (1, tokens, hidden)."""
        embedded = []
        for module, batch in zip(self.own, self.packing.batches, strict=True):
            types = batch.get("token_type_ids")
            embedded.append(module(input_ids=batch["input_ids"], token_type_ids=types).flatten(0, 1))
        return torch.cat(embedded)[None]


class JointRows(Joint):
    """What comes after the layers (pooler, head): each cell's module on its own rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, hidden) or (rows, hidden) -> (rows, ...)."""
        parts = self.packing.split(x)
        if x.ndim > 2:
            parts = tuple(part[0].unflatten(0, shape) for part, shape in zip(parts, self.packing.shapes, strict=True))
        return torch.cat([module(part) for module, part in zip(self.own, parts, strict=True)])


def attention_of_each(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each cell: (1, heads, tokens, size) -> (1, tokens, heads, size)."""
    own: Sequence[nn.Module] = module.own  # type: ignore[assignment]
    packing: Packing = module.packing  # type: ignore[assignment]
    attended, start = [], 0
    for each, batch in zip(own, packing.batches, strict=True):
        rows, width = batch["input_ids"].shape
        inside = slice(start, start := start + rows * width)
        q, k, v = (x[0, :, inside].unflatten(1, (rows, width)).transpose(0, 1) for x in (query, key, value))
        out, _ = attention(each, q, k, v, batch["inside"], dropout, **others)
        attended.append(out.flatten(0, 1))
    return torch.cat(attended)[None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attention_of_each)


class Fused:
    """The models of several cells as one: `forward` takes a batch of each."""

    def __init__(self, models: Sequence[Model]) -> None:
        """Let the models share the tensors that none of them trains, and join them."""
        first = models[0].module
        frozen = {name: p for name, p in first.named_parameters() if not p.requires_grad}
        for model in models[1:]:
            for name, parameter in model.module.named_parameters():
                if name in frozen:
                    parameter.data = frozen[name].data
        self.packing = Packing()
        layout = models[0].layout
        rows = {*layout.head, *layout.kinds.get("pooler", ())}
        memo: dict[int, Any] = {id(parameter): parameter for parameter in first.parameters()}
        for name, module in first.named_modules():
            own = [model.module.get_submodule(name) for model in models]
            if name in layout.kinds["embeddings"][:1]:
                memo[id(module)] = JointEmbeddings(self.packing, own)
            elif name in rows:
                memo[id(module)] = JointRows(self.packing, own)
            elif (joint := joint_of(self.packing, own)) is not None:
                memo[id(module)] = joint
        self.module = copy.deepcopy(first, memo)
        config: Any = self.module.config
        config._attn_implementation = ATTENTION
        for name, module in self.module.named_modules():
            if name.startswith(layout.layers) and not isinstance(module, Joint):
                module.own = tuple(model.module.get_submodule(name) for model in models)
                module.packing = self.packing
        self.module.train()

    def forward(self, batches: Sequence[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        """Logits (rows, labels) fp32 of each cell."""
        self.packing.batches = [{**batch, "inside": _mask(batch["attention_mask"])} for batch in batches]
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])[None]
        return self.packing.split(self.module(input_ids=ids).logits.float())


def _mask(inside: torch.Tensor) -> torch.Tensor | None:
    """What may be attended to, (rows, 1, 1, tokens); None: everything."""
    return None if bool(inside.all()) else inside.bool()[:, None, None, :]


def joint_of(packing: Packing, own: Sequence[nn.Module]) -> Joint | None:
    """What stands for a module of each cell in the fused model; None: the module itself, since nobody trains it."""
    if all(isinstance(module, LoRALinear) for module in own):
        return JointLoRA(packing, own)
    if isinstance(own[0], Dropout):
        return JointDropout(packing, own)
    trained = {name for module in own for name, p in module.named_parameters(recurse=False) if p.requires_grad}
    if not trained:
        return None
    if isinstance(own[0], nn.Linear) and trained == {"bias"}:
        return JointBias(packing, own)
    return Joint(packing, own)


class Group:
    """Cells that differ by their seeds, with one row of optimizer steps for all of them or one for each."""

    def __init__(self, count: int, batch: int, width: int, *words: str) -> None:
        self.cells = [trainer_of(*words, f"seed={seed}", batch=batch, width=width) for seed in range(count)]
        self.rows = torch.arange(batch).numpy()
        self.fused: Fused | None = None
        for trainer in self.cells:
            trainer.model.module.train()

    def together(self) -> list[float]:
        """A step of all cells in one pass; gives their losses."""
        if self.fused is None:
            self.fused = Fused([trainer.model for trainer in self.cells])
        batches = [trainer.forward.batch(trainer.train, self.rows) for trainer in self.cells]
        with self.cells[0].forward.autocast():
            logits = self.fused.forward([batch.inputs for batch in batches])
        return self._finish([functional.cross_entropy(z, b.labels) for z, b in zip(logits, batches, strict=True)])

    def one_by_one(self) -> list[float]:
        """A step of each cell, one after the other; gives their losses."""
        losses = []
        for trainer in self.cells:
            loss = trainer.loss(self.rows) / len(self.rows)
            losses += self._finish([loss], [trainer])
        return losses

    def _finish(self, losses: list[torch.Tensor], cells: Sequence[Any] = ()) -> list[float]:
        torch.stack(losses).sum().backward()
        for trainer in cells or self.cells:
            nn.utils.clip_grad_norm_(trainer.parameters.values(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
        return [loss.item() for loss in losses]


def measure(batch: int, width: int, *words: str) -> dict[str, Any]:
    """Milliseconds of one cell's step: by itself, by itself on one thread, and in groups, taking turns."""
    alone, threads = Group(1, batch, width, *words), torch.get_num_threads()
    groups = {count: Group(count, batch, width, *words) for count in (2, 4, 8)}

    def on_one_thread() -> None:
        torch.set_num_threads(1)
        alone.one_by_one()
        torch.set_num_threads(threads)

    turns = {"alone": (alone.one_by_one, 1), "alone, one thread": (on_one_thread, 1)}
    turns |= {f"{count} together": (group.together, count) for count, group in groups.items()}
    times = alternating({name: step for name, (step, _) in turns.items()}, ROUNDS)
    medians = {name: round(times[name]["median_ms"] / cells, 1) for name, (_, cells) in turns.items()}
    medians[f"a process per core, if all {threads} stay as fast"] = round(medians["alone, one thread"] / threads, 1)
    return medians


def same(*more: str) -> dict[str, Any]:
    """Losses of six steps of three cells: together and one by one."""
    differences = {}
    for precision in ("fp32", "bf16"):
        for method in METHODS:
            words = (f"method={method}", f"protocol.precision={precision}", *more)
            one, other = Group(3, 8, 24, *words), Group(3, 8, 24, *words)
            pairs = [(one.together(), other.one_by_one()) for _ in range(6)]
            worst = max(abs(a - b) for together, alone in pairs for a, b in zip(together, alone, strict=True))
            differences[f"{method} {precision}"] = {"losses": pairs[-1][0], "greatest difference": worst}
    return differences


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "same"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--widths", default="16,64")
    asked = parser.parse_args()
    if asked.what == "same":
        print(json.dumps(same(), indent=1))
        return
    for width in map(int, asked.widths.split(",")):
        for method in METHODS:
            print(
                json.dumps({"width": width, "method": method, **measure(asked.batch, width, f"method={method}")}),
                flush=True,
            )


if __name__ == "__main__":
    main()
