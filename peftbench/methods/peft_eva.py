"""EVA's start of LoRA (Paischer et al. 2024, arXiv 2410.07170): what the maps read decides what their factors read."""

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import nn

from peftbench.ground.errors import ConfigError
from peftbench.ground.machine import process_state
from peftbench.ground.quantity import quantity
from peftbench.methods.base import Training
from peftbench.methods.peft_tuners import ADAPTER, PeftTuner

BATCHES = 1000  # at most, until the directions stay as they are


class EvaTuner(PeftTuner):
    """LoRA whose A (rank, in) holds the directions in which a map's input varies most when training begins; B is zero.

    peft finds them, batch by batch, among the tokens that are no padding. As many stay at every map: `rho` is 1.
    """

    _begun = False  # the directions are there

    def check_steps(self, steps: int) -> None:
        """Any number will do.

        Raises:
            ConfigError: several processes train together, and each would find directions of its own rows; or another
                method steps single entries of the factors.
        """
        if process_state().num_processes > 1:
            raise ConfigError("method.config.init_lora_weights=eva: one process trains; several are not supported")
        if not all(parameter.requires_grad for parameter in self.trainables().values()):
            raise ConfigError("method.inner: EVA draws its factors when training begins; it must train alone")

    def prepare(self, training: Training) -> None:
        """Find the directions, unless that was done when training began.

        Raises:
            ConfigError: they still change after 1,000 batches.
        """
        if self._begun:
            return
        found = _directions(self._model.module, self._wrapper, training)
        with torch.no_grad():
            for name, directions in found.items():
                self._wrapper.get_submodule(name).lora_A[ADAPTER].weight.copy_(directions)
        self._begun = True

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        super().load_delta(tensors)
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        """Whether the directions were found."""
        return {"begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self._begun = bool(state["begun"])


def _directions(module: nn.Module, wrapper: Any, training: Training) -> Mapping[str, torch.Tensor]:
    """The right singular vectors (rank, in) of what every adapted map reads, by its name in peft's wrapper."""
    from peft import get_eva_state_dict

    passes, inside = training.passes(BATCHES), [torch.empty(0)]  # which tokens of the batch are no padding

    def begun(_: nn.Module, __: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        inside[:] = [inputs["attention_mask"].bool()]

    def read(inputs: tuple[torch.Tensor, ...], _: Any, __: str) -> torch.Tensor:
        tokens = inputs[0]
        if tokens.shape[:-1] == inside[0].shape:
            return tokens[inside[0]]
        return tokens.new_empty(0, tokens.shape[-1])  # DeBERTa's relative positions go through queries and keys, too

    def forward(_: Any, __: Any) -> None:
        wrapper.base_model.enable_adapter_layers()  # B is zero; where the head is frozen they alone have a gradient
        with torch.enable_grad():
            if next(passes, StopIteration) is StopIteration:
                raise ConfigError(
                    f"method.config.eva_config.tau: the directions still change after {quantity(BATCHES, 'batch')}"
                )

    handle = module.register_forward_pre_hook(begun, with_kwargs=True)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):  # a line for what has no tokens
            found: Mapping[str, torch.Tensor] = get_eva_state_dict(
                wrapper,
                [{}],  # no batch of peft's: the forward pass brings its own
                forward_fn=forward,
                prepare_model_inputs_fn=lambda batch, _: batch,
                prepare_layer_inputs_fn=read,
                show_progress_bar=False,
            )
    finally:
        handle.remove()
        module.zero_grad(set_to_none=True)
    return found
