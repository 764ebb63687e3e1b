"""Selective recomputation of activations (Korthikanti et al. 2022, arXiv 2205.05198).

The way back needs much of what the way forward made. What costs next to nothing beside a product of matrices need not
be kept for it: the output of a norm, of gelu, of dropout, of attention's softmax. Autograd keeps how it was made, and
makes it again when it asks for it. Norms, gelu and products keep their own inputs anyway. The same function of the
same numbers gives the same numbers, so nothing changes to the last bit. Of a tensor that is kept, autograd's own check
that nobody changed it in place since is made here: with hooks on what it saves, autograd leaves that out.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Function = Callable[..., torch.Tensor]
_recipes: dict[int, "Recipe"] | None = None  # of what was made and still lives, by address; None: all is kept


@contextmanager
def recomputed_activations() -> Iterator[None]:
    """A forward pass within keeps no output of `made` for the way back."""
    global _recipes
    outer, _recipes = _recipes, {}
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _recipes = outer


def made(function: Function, *inputs: torch.Tensor) -> torch.Tensor:
    """What a function makes of some tensors: a tensor of its own.

    Args:
        function: gives the same numbers again when it is called with these inputs on the way back.
    """
    return remember(function(*inputs), function, *inputs)


def remember(output: torch.Tensor, function: Function, *inputs: torch.Tensor) -> torch.Tensor:
    """The output, of which the way back knows from now on that the function makes it of these inputs."""
    if _recipes is not None and torch.is_grad_enabled() and output.numel() and output.is_contiguous():
        address = output.untyped_storage().data_ptr()
        _recipes[address] = Recipe(output, function, [_found(tensor.detach()) for tensor in inputs])
    return output


class Recipe:
    """How a tensor was made: found by the tensor's address while that lives, held by what needs it on the way back.

    Attributes:
        output: the tensor, as long as it lives.
    """

    def __init__(self, output: torch.Tensor, function: Function, inputs: "list[Kept | Part]") -> None:
        address, device = output.untyped_storage().data_ptr(), output.device.type
        self.output = weakref.ref(output, functools.partial(_forget, address))
        self._version, self._dtype = output._version, output.dtype
        self._function, self._inputs = function, inputs
        low, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self._precision = functools.partial(torch.autocast, device, low, enabled)
        self._uses = 0
        self._again: torch.Tensor | None = None

    def makes(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor at this address is the output, or a view of it, as it was made."""
        output = self.output()
        return output is not None and output._version == self._version and tensor.dtype == self._dtype

    def use(self) -> None:
        """Somebody is going to ask for the tensor, once."""
        if self._uses == 0:
            for part in self._inputs:
                if isinstance(part, Part):
                    part.recipe.use()
        self._uses += 1

    def value(self) -> torch.Tensor:
        """The tensor, made again for the first who asks and held until the last did."""
        value = self._again
        if value is None:
            with torch.no_grad(), self._precision():
                value = self._function(*(_unpack(packed) for packed in self._inputs))
        self._uses -= 1
        self._again = value if self._uses > 0 else None
        return value


@dataclass(frozen=True)
class Part:
    """A view of a tensor that is made again."""

    recipe: Recipe
    size: Sequence[int]
    stride: Sequence[int]
    offset: int


@dataclass(frozen=True)
class Kept:
    """A tensor, and how often it had been changed in place."""

    tensor: torch.Tensor
    version: int


def _found(tensor: torch.Tensor) -> Kept | Part:
    """A tensor, or what gives it where it can be made again."""
    if _recipes is None or tensor.layout != torch.strided:  # a sparse one has no storage
        return Kept(tensor, tensor._version)
    recipe = _recipes.get(tensor.untyped_storage().data_ptr())
    if recipe is None or not recipe.makes(tensor):
        return Kept(tensor, tensor._version)
    return Part(recipe, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def _pack(tensor: torch.Tensor) -> Kept | Part:
    packed = _found(tensor)
    if isinstance(packed, Part):
        packed.recipe.use()
    return packed


def _unpack(packed: Kept | Part) -> torch.Tensor:
    """Raises:
    RuntimeError: the tensor was changed in place.
    """
    if isinstance(packed, Part):
        return packed.recipe.value().as_strided(packed.size, packed.stride, packed.offset)
    if packed.tensor._version != packed.version:
        shape = tuple(packed.tensor.shape)
        raise RuntimeError(f"a tensor {shape} that the way back needs was changed in place")
    return packed.tensor


def _forget(address: int, output: weakref.ref[torch.Tensor]) -> None:
    """The tensor at this address is gone: another one may come to lie there."""
    if _recipes is not None and address in _recipes and _recipes[address].output is output:
        del _recipes[address]
