"""Linear maps with a method's own entries beside them: what LoRA, AdaLoRA, HUT and linear adapters share."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.config.spec import Scope
from peftbench.ground.errors import DataError
from peftbench.methods.base import ParameterTuner, require


class AdaptedLinear(nn.Module):
    """A linear map under a method: `weight` (out, in) and `bias` (out,) are the frozen map's own, by their own names.

    Attributes:
        factors: names of the parameters that train; one that a map does not have is None there.
    """

    factors: ClassVar[tuple[str, ...]]

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features

    def fold(self) -> None:
        """Put what was learned into weight and bias; called without gradients."""
        raise NotImplementedError

    def merged(self) -> nn.Linear:
        """The plain linear map, with what was learned folded in."""
        with torch.no_grad():
            self.fold()
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


Adapted = TypeVar("Adapted", bound=AdaptedLinear)


def wrap(model: Model, inside: Scope, make: Callable[[nn.Linear], Adapted]) -> dict[str, Adapted]:
    """Put a module made from it in the place of every linear map that a scope covers; by name, in forward order.

    Raises:
        ConfigError: the scope covers none.
    """
    return wrap_these(model, model.linears(inside), inside, make)


def wrap_these(
    model: Model, linears: Sequence[tuple[str, nn.Linear]], inside: Scope, make: Callable[[nn.Linear], Adapted]
) -> dict[str, Adapted]:
    """The same of some of the linear maps."""
    require(linears, "no linear map", inside)
    wrapped = {name: make(base) for name, base in linears}
    for name, module in wrapped.items():
        model.module.set_submodule(name, module)
    return wrapped


def named_factors(wrapped: Mapping[str, AdaptedLinear]) -> dict[str, nn.Parameter]:
    """The factors that the maps have, named "<linear map>.<factor>"."""
    return {
        f"{name}.{factor}": parameter
        for name, layer in wrapped.items()
        for factor in layer.factors
        if (parameter := getattr(layer, factor)) is not None
    }


class MapsTuner(ParameterTuner, Generic[Adapted]):
    """The factors of every wrapped linear map, named "<linear map>.<factor>"."""

    def __init__(self, model: Model, wrapped: Mapping[str, Adapted]) -> None:
        self._model, self.wrapped = model, dict(wrapped)
        super().__init__(named_factors(wrapped))

    def merge(self) -> str | None:
        """Fold what was learned into every map and put the plain ones back."""
        for name, layer in self.wrapped.items():
            self._model.module.set_submodule(name, layer.merged())
        self.wrapped, self._trainables = {}, {}
        return None


def packed(kept: torch.Tensor) -> torch.Tensor:
    """A pattern (count,) bool as one bit each, the first in the highest place: uint8."""
    return torch.from_numpy(np.packbits(kept.cpu().numpy()))


def unpacked(name: str, tensors: Mapping[str, torch.Tensor], count: int) -> torch.Tensor:
    """The stored bits of this name as a pattern (count,) bool.

    Raises:
        DataError: they are not so many.
    """
    bits = tensors[name].cpu()
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise DataError(f"the delta does not fit: {name} is {bits.dtype} {tuple(bits.shape)}, not {count} bits")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))
