"""Low-rank linear maps (PELA, Guo et al. 2024, arXiv 2310.10700): two thin maps in the place of a wide one.

A backbone of such maps is a folder with a file of facts beside the weights: which maps are low-rank, and what it was
made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from peftbench.config.bounds import Count, Name, NotNegative, Whole
from peftbench.config.spec import WEIGHTS_WORDS, ModelSpec
from peftbench.config.validate import parse
from peftbench.ground import untrusted
from peftbench.ground.errors import ConfigError, DataError, shown

FACTS_FILE = "lowrank.json"
FORMAT: Literal["peftbench-lowrank-1"] = "peftbench-lowrank-1"
MOST_BYTES = 4 << 20  # of the facts
ROUNDING = 1e-6  # of a rank: 0.3333333333 is a third
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LowRankLinear(nn.Module):
    """W2 W1 x + b: `down.weight` is W1 (rank, in), `up.weight` W2 (out, rank), `up.bias` b (out,)."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = down, up

    @classmethod
    def like(cls, whole: nn.Linear, rank: int) -> "LowRankLinear":
        """One of a whole map's shape, without values."""
        kind: dict[str, Any] = {"device": whole.weight.device, "dtype": whole.weight.dtype}
        with torch.no_grad():
            down = nn.utils.skip_init(nn.Linear, whole.in_features, rank, bias=False, **kind)
            up = nn.utils.skip_init(nn.Linear, rank, whole.out_features, bias=whole.bias is not None, **kind)
        return cls(down, up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        product: torch.Tensor = self.up(self.down(x))
        return product

    def product(self) -> torch.Tensor:
        """W2 W1 (out, in)."""
        return self.up.weight @ self.down.weight

    @torch.no_grad()
    def multiplied(self) -> nn.Linear:
        """The plain linear map that it is equal to."""
        whole = nn.Linear(self.down.in_features, self.up.out_features, self.up.bias is not None, device="meta")
        whole.weight = nn.Parameter(self.product().contiguous())
        whole.bias = self.up.bias
        return whole


@dataclass(frozen=True)
class Source:
    """The backbone that was made smaller: its word, and the hash of its weights."""

    model: Name
    sha256: Digest


@dataclass(frozen=True)
class Distilled:
    """How the low-rank maps were trained, and the loss on text that was held out, before and after.

    Attributes:
        text: hash of all texts.
        before, after: mean squared difference of hidden states, mean over states.
    """

    text: Digest
    rows: Count
    steps: Count
    before: NotNegative
    after: NotNegative


@dataclass(frozen=True)
class LowRankFacts:
    """What the facts' file holds.

    Attributes:
        ranks: dotted name of every low-rank map -> its rank.
        ratio: the share of every map's entries that its two factors have, at most.
        entries: of the backbone, before and after.
        distilled: None: the factors are those of the truncated singular value decomposition.
    """

    format: Literal["peftbench-lowrank-1"]
    ranks: Annotated[dict[Name, Count], Field(min_length=1, max_length=10_000)]
    source: Source
    variant: Literal["svd", "svd_distil"]
    ratio: Annotated[float, Field(gt=0, le=1)]
    seed: Whole
    entries: tuple[Count, Count]
    distilled: Distilled | None


def rank_for(inputs: int, outputs: int, ratio: float) -> int:
    """The rank at which the two factors of a map have this share of its entries: floor(ratio in out / (in + out)).

    The paper's code has the same with c = 1 / ratio.
    """
    return int(ratio * inputs * outputs / (inputs + outputs) + ROUNDING)


@torch.no_grad()
def factored(whole: nn.Linear, rank: int) -> LowRankLinear:
    """The best approximation of a map by one of this rank, shared out evenly: from W = U S V, W2 = U sqrt(S) and
    W1 = sqrt(S) V, the largest `rank` singular values alone; so W1 W1^T = W2^T W2 = S. The bias stays.

    Raises:
        DataError: the weight holds numbers that are not finite.
    """
    if not whole.weight.isfinite().all():
        raise DataError("the weights hold numbers that are not finite")
    u, s, v = torch.linalg.svd(whole.weight.double(), full_matrices=False)
    root = s[:rank].sqrt()
    low = LowRankLinear.like(whole, rank)
    low.down.weight.copy_(root.unsqueeze(1) * v[:rank])
    low.up.weight.copy_(u[:, :rank] * root)
    if whole.bias is not None:
        low.up.bias.copy_(whole.bias)
    return low


def put_in(module: nn.Module, ranks: Mapping[str, int]) -> None:
    """Put low-rank maps without values in the place of whole ones.

    Raises:
        DataError: there is no linear map of a name, or its rank is more than its sides.
    """
    maps = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for name, rank in ranks.items():
        whole = maps.get(name)
        if whole is None:
            raise DataError(f"{FACTS_FILE}: ranks.{shown(name)}: the backbone has no linear map of that name")
        if rank > (most := min(whole.in_features, whole.out_features)):
            raise DataError(f"{FACTS_FILE}: ranks.{shown(name)}={rank}: more than the map's {most}")
        module.set_submodule(name, LowRankLinear.like(whole, rank))


def multiply_out(module: nn.Module) -> None:
    """Put whole maps in the place of low-rank ones: larger again, and every library's own."""
    for name, part in list(module.named_modules()):
        if isinstance(part, LowRankLinear):
            module.set_submodule(name, part.multiplied())


def ranks_of(spec: ModelSpec) -> Mapping[str, int]:
    """Which maps of a backbone are low-rank, by the facts beside its weights; empty: none is.

    Raises:
        DataError: the facts cannot be read, or are none.
    """
    if spec.weights in WEIGHTS_WORDS:
        return {}
    path = Path(spec.weights).expanduser() / FACTS_FILE
    try:
        raw = untrusted.read_json(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(raw, dict):
        raise DataError(f"{path}: not the facts of a low-rank backbone: no mapping")
    try:
        return parse(LowRankFacts, raw, "facts").ranks
    except ConfigError as error:
        raise DataError(f"{path}: not the facts of a low-rank backbone: {error.every[0]}") from None


def lowered(whole: type[nn.Module], ranks: Mapping[str, int]) -> Any:
    """A class of transformers whose models have low-rank maps from the start: their weights are loaded as ever."""

    def __init__(self: nn.Module, config: Any, *rest: Any, **keys: Any) -> None:
        whole.__init__(self, config, *rest, **keys)
        put_in(self, ranks)

    return type(whole.__name__, (whole,), {"__init__": __init__})
