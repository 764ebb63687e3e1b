"""The method matrix: one row a method. tests/test_methods.py, tests/test_resume.py and the golden losses use it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "golden_losses.json"
OWN = Path(__file__).parent / "data" / "own_method"  # a user's: one Python file and one yaml
sys.path.append(str(OWN))

D, F, L, R = 128, 512, 2, 8  # bert_tiny
BIASES = L * (7 * D + F) + D + D  # layers, embeddings' norm, pooler
EMBEDDINGS = (2000 + 512 + 2) * D + 2 * D
LAYER = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D


@dataclass(frozen=True)
class Row:
    """A method on the two-layer model.

    Attributes:
        overrides: how a user asks for it.
        entries: backbone entries that train, by closed form.
        trains: whether a backbone parameter of the original model may change.
        every: every such parameter does change (not so where single entries are chosen).
        bytes_per_entry: what the delta stores for a trained entry.
        merges: whether the method can be folded into the backbone.
        stored: bytes of the method's part of the delta, where they do not follow from the entries that trained.
    """

    overrides: tuple[str, ...]
    entries: int
    trains: Callable[[str], bool]
    every: bool = True
    bytes_per_entry: int = 4
    merges: bool = True
    stored: int | None = None


def linear_weight(name: str) -> bool:
    return ".layer." in name and "LayerNorm" not in name


def selective(*overrides: str, entries: int = 500, trains: Callable[[str], bool] = linear_weight) -> Row:
    return Row((*overrides, f"budget={entries}"), entries, trains, every=False, bytes_per_entry=8)


def ladder(rungs: int, width: int, inner: int) -> int:
    """Side layers, maps down (one more) and up, gates."""
    layer = 4 * width**2 + 2 * width * inner + 9 * width + inner
    return rungs * layer + (rungs + 1) * (D + 1) * width + (width + 1) * D + rungs


ROWS = {
    "full": Row(("method=full",), EMBEDDINGS + L * LAYER + D * D + D, lambda name: True),
    "full-top": Row(("method=full", "scope.layers=1"), LAYER, lambda name: ".layer.1." in name),
    "head": Row(("method=head",), 0, lambda name: False),
    "bitfit": Row(("method=bitfit",), BIASES, lambda name: name.endswith(".bias")),
    "bitfit-query": Row(("method=bitfit", "method.kinds=[query]"), L * D, lambda name: name.endswith("query.bias")),
    "lora": Row(("method=lora",), L * 4 * D * R, lambda name: False),
    "lora-ffn": Row(
        ("method=lora", "method.kinds=[intermediate,output]", "method.rank=2", "method.dropout=0"),
        L * 2 * (D + F) * 2,
        lambda name: False,
    ),
    "adalora": Row(  # half of the maps one way, half the other: a triplet has the same size in all of them
        (
            "method=adalora",
            "method.kinds=[intermediate,output]",
            "method.rank=3",
            "method.initial=0",
            "method.final=1",
            "method.every=2",
        ),
        2 * L * 3 * (D + F + 1),
        lambda name: False,
        stored=2 * L * (2 * 4 * (D + F + 1) + 1),  # two thirds of the triplets, and which ones they are
    ),
    "light_peft": Row(  # of two heads one goes; terms on attention alone, so that every rank is as large as any other
        ("method=light_peft", "method.kinds=[query,key,value,attention_output]", "method.estimation=3"),
        L * (4 * 2 * D * R + 2 + F),  # and the masks
        lambda name: ".layer." in name and not ("LayerNorm" in name or name.endswith("output.dense.bias")),
        # 2 of 8 terms, half of their ranks; masks of what is left; one bit for each head, neuron and rank
        stored=4 * 8 * (D + D // 2) + 4 * (L + 683) + L * (1 + F // 8 + 4),
    ),
    "linear_adapter": Row(("method=linear_adapter", "method.width=4"), 2 * L * 2 * D * 4, lambda name: False),
    "hut": Row(("method=hut",), 2 * L * (2 * D + 2 * D), lambda name: False),
    "hut-blocks": Row(
        ("method=hut", "method.rank=3", "method.kinds=[query,intermediate]"),
        L * (2 * D * 3 + 2 * D + (D + F) * 3 + 2 * F),
        lambda name: False,
    ),
    "lst": Row(("method=lst", "method.examples=2"), ladder(L, D // 8, F // 8), lambda name: False, merges=False),
    "houlsby": Row(("method=houlsby", "method.width=4"), 2 * L * (2 * D * 4 + 4 + D), lambda name: False, merges=False),
    "houlsby-norms": Row(
        ("method=houlsby", "method.width=4", "method.layer_norm=true"),
        2 * L * (2 * D * 4 + 4 + D) + 4 * L * D,
        lambda name: ".layer." in name and "LayerNorm" in name,
        merges=False,
    ),
    "pfeiffer": Row(("method=pfeiffer", "method.width=4"), L * (2 * D * 4 + 4 + D), lambda name: False, merges=False),
    "gradual_unfreeze": Row(("method=gradual_unfreeze",), EMBEDDINGS + L * LAYER + D * D + D, lambda name: True),
    "random_masking": selective("method=random_masking"),
    "random_masking-anywhere": selective("method=random_masking", "method.per_tensor=false"),
    "random_masking_structured": selective("method=random_masking_structured"),
    "pafi": selective("method=pafi"),
    "largest": selective("method=largest"),
    "fish": selective("method=fish", "method.batches=2"),
    "d3": selective("method=d3", "method.batches=2"),
    "id3": selective("method=id3"),
    "id3-shared": selective("method=id3", "method.adam=shared", "method.kinds=null", trains=lambda name: True),
    "id3-few": selective("method=id3", "method.schedule=cosine", entries=4),
    "id3_lora": selective("method=id3_lora", trains=lambda name: False),
    "random_lora": selective("method=random_lora", trains=lambda name: False),
    "id3_adapter": replace(selective("method=id3_adapter", trains=lambda name: False), merges=False),
    "spafit": Row(
        (
            "method=spafit_4_9_i",
            "method.strata.frozen.last=-1",
            "method.strata.biases.last=0",
            "method.strata.lora.methods.lora.rank=4",
        ),
        (7 * D + F) + (F + 2 * D + 2 * D * 4 * 3) + D,
        lambda name: name.endswith(".bias") and ("layer" in name or "pooler" in name),
        every=False,
    ),
}
if find_spec("peft"):  # an extra of its own; tests/test_peft.py says so where it is absent
    ROWS |= {
        "dora": Row(("method=dora",), L * (4 * D * R + 2 * D), lambda name: False),
        "prompt_tuning": Row(("method=prompt_tuning",), 20 * D, lambda name: False, merges=False),
        "prefix_tuning": Row(("method=prefix_tuning",), 20 * L * 2 * D, lambda name: False, merges=False),
        "ln_tuning": Row(("method=ln_tuning",), 4 * L * D, lambda name: False),
    }

# A user's own method goes through the same checks; its losses are not recorded here.
USERS = {
    "own": Row(("method=shrunk", f"hydra.searchpath=[file://{OWN / 'conf'}]"), L * 4 * (3 * D + F), lambda name: False)
}
EVERY = {**ROWS, **USERS}
