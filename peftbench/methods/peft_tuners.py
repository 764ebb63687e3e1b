"""What peft put into a backbone, as a tuner: stored and merged as peft does it, told of steps by the loop's hooks."""

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from peftbench.backbone.model import Model
from peftbench.ground.errors import ConfigError, first_line
from peftbench.ground.quantity import quantity
from peftbench.methods.base import ParameterTuner, Training, check_fit

ADAPTER = "default"  # peft's name for the only adapter


class PeftTuner(ParameterTuner):
    """What peft put into the module; its wrapper around the module is used for saving and merging alone."""

    def __init__(self, model: Model, wrapper: Any, trainables: Mapping[str, nn.Parameter], merges: bool) -> None:
        super().__init__(trainables)
        self._model, self._wrapper, self._merges = model, wrapper, merges

    @property
    def config(self) -> Any:
        """peft's configuration of what is attached."""
        return self._wrapper.peft_config[ADAPTER]

    def delta(self) -> Mapping[str, torch.Tensor]:
        """What peft stores of this type, under peft's names: with projections and indices where it keeps them."""
        from peft import get_peft_model_state_dict

        stored: dict[str, torch.Tensor] = get_peft_model_state_dict(self._wrapper, save_embedding_layers=False)
        return {name: tensor.detach() for name, tensor in stored.items()}

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        from peft import set_peft_model_state_dict

        check_fit(self.delta(), tensors)
        with warnings.catch_warnings(action="ignore"):
            set_peft_model_state_dict(self._wrapper, dict(tensors))

    def merge(self) -> None:
        """Let peft fold everything into the weights and put the plain modules back.

        Raises:
            ConfigError: peft has no merging for this type.
        """
        self._require_merging()
        self._wrapper.merge_and_unload()
        self._trainables = {}

    def update(self, before: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The change of every parameter that merging changes.

        Raises:
            ConfigError: peft has no merging for this type.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._require_merging()
        for name, layer in self._model.module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                merged = copy.deepcopy(layer)
                merged.merge()
                for inside, parameter in merged.get_base_layer().named_parameters():
                    plain = f"{name}.{inside}"
                    change = parameter.detach().float() - before[plain].to(parameter.device).float()
                    if bool(change.any()):
                        yield plain, change

    def exported(self) -> Mapping[str, torch.Tensor]:
        """What peft stores of this type, under peft's names."""
        return self.delta()

    def exported_whole(self, name: str) -> str:
        """The name under which peft finds a parameter of the module that is stored whole."""
        return f"base_model.model.{name}"

    def facts(self) -> dict[str, Any]:
        """The version of peft."""
        return version()

    def _require_merging(self) -> None:
        if not self._merges:
            raise ConfigError(f"peft's {self.config.peft_type.value.lower()} cannot be merged into the backbone")


class AdaLoRATuner(PeftTuner):
    """peft's AdaLoRA: its penalty and its allocation of ranks are called by the loop's own hooks.

    peft adds the penalty only to a loss that the model computes, and wants its allocator called between two steps.
    """

    _trained = False  # E holds what was learned, not the zeros that it starts with

    def delta(self) -> Mapping[str, torch.Tensor]:
        """All modes at their first size, masked ones as zeros: peft's own form fits no freshly attached model."""
        with self._unpruned():
            return super().delta()

    def load_delta(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """See `Tuner`."""
        with self._unpruned():
            super().load_delta(tensors)
        self._trained = True

    @contextmanager
    def _unpruned(self) -> Iterator[None]:
        ranks, self.config.rank_pattern = self.config.rank_pattern, None
        yield
        self.config.rank_pattern = ranks

    def check_steps(self, steps: int) -> None:
        """Refuse a run in which tinit and tfinal leave no step in between.

        Raises:
            ConfigError: so it is, or another method steps single entries of these.
        """
        tinit, tfinal = self.config.tinit, self.config.tfinal
        if tinit + tfinal >= steps:
            raise ConfigError(
                f"method.config: tinit={tinit} and tfinal={tfinal} leave nothing of {quantity(steps, 'step')}"
            )
        if not all(parameter.requires_grad for parameter in self._trainables.values()):
            raise ConfigError(
                "method.inner: peft's adalora ranks its modes by every entry's gradient; it must train alone"
            )

    def prepare(self, training: Training) -> None:
        """Tell the allocator how long training is."""
        self._allocator.set_total_step(training.steps)

    def settles(self) -> int:
        """Until the last phase more modes take part than will stay."""
        return self.config.total_step - self.config.tfinal if self._prunes else 0

    def penalty(self) -> torch.Tensor:
        """orth_reg_weight times the mean over factors of |A A^T - I| and |B^T B - I| (Frobenius)."""
        squares = [p @ p.T if "lora_A" in n else p.T @ p for n, p in self._trainables.items() if "lora_E" not in n]
        away = [(square - torch.eye(len(square), device=square.device)).norm() for square in squares]
        weighted: torch.Tensor = self.config.orth_reg_weight * torch.stack(away).mean()
        return weighted

    def after_step(self, step: int) -> bool:
        """Allocate ranks; counted from 1, so that the last step is the one that peft ends with."""
        self._trained = True
        if self._prunes:  # where nothing is to go, peft's allocator fails
            self._wrapper.base_model.update_and_allocate(step + 1)
        return False

    def kept(self) -> int:
        """Entries of the modes whose E is not zero; before training as many as the target has, spread evenly."""
        if not self._trained:
            return super().kept() * self.config.target_r // self.config.init_r
        modes = {name: e for name, e in self._trainables.items() if "lora_E" in name}
        return sum(int(e.count_nonzero()) * self._entries_of_one(name) for name, e in modes.items())

    def kept_bounds(self) -> tuple[int, int]:
        """None: peft prunes all modes that tie. At most target_r a map, of the widest maps."""
        if not self._prunes:
            return super().kept_bounds()
        modes = [name for name in self._trainables if "lora_E" in name]
        sizes = sorted(self._entries_of_one(name) for name in modes for _ in range(self.config.init_r))
        return 0, sum(sizes[-self.config.target_r * len(modes) :])

    @property
    def _prunes(self) -> bool:
        return bool(self.config.target_r < self.config.init_r)

    def _entries_of_one(self, name: str) -> int:
        """Entries of a mode of the map with this E."""
        a, b = (self._trainables[name.replace("lora_E", factor)] for factor in ("lora_A", "lora_B"))
        return 1 + a.shape[1] + b.shape[0]

    def state_dict(self) -> dict[str, Any]:
        """peft's running averages, which lie in plain dicts, and the ranks so far."""
        ranks = {name: list(map(bool, rank)) for name, rank in (self.config.rank_pattern or {}).items()}
        averages = {name: dict(getattr(self._allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {"ranks": ranks, "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up such a state."""
        self.config.rank_pattern = dict(state["ranks"]) or None
        device = next(iter(self._trainables.values())).device  # a checkpoint is read into the CPU's memory
        for name, average in state["averages"].items():
            setattr(self._allocator, name, {of: values.to(device) for of, values in average.items()})

    @property
    def _allocator(self) -> Any:
        return self._wrapper.base_model.rankallocator


def version() -> dict[str, Any]:
    """The version of peft, which decides what a configuration means."""
    import peft

    return {"peft": peft.__version__}


def wrapped(module: nn.Module, config: Any) -> Any:
    """Let peft change a module in place; gives its wrapper. What trained before still does.

    Raises:
        ConfigError: peft cannot, or would take another value than the one that was given.
    """
    from peft import get_peft_model

    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kind = config.peft_type.value.lower()
    try:
        with warnings.catch_warnings(record=True, action="always") as said:
            wrapper = get_peft_model(module, config)
    except MemoryError:
        raise
    except Exception as error:  # whatever it raises: the numbers are a person's
        raise ConfigError(f"method.config: peft's {kind} refuses it here: {first_line(error)}") from None
    if (other := _replaced(config, [str(warning.message) for warning in said])) is not None:
        raise ConfigError(f"method.config: peft's {kind} would not take it here: {other}")
    for parameter in trained:  # peft freezes whatever is not its own, the head too
        parameter.requires_grad_(True)
    return wrapper


def _replaced(config: Any, warnings_of_peft: Iterable[str]) -> str | None:
    """The warning with which peft takes a value of its own in the place of a given one, if there is one."""
    for message in warnings_of_peft:
        setting = re.search(r"Setting (\w+) to (\w+)", message)
        if "Adjusted" in message or (setting and str(getattr(config, setting[1], setting[2])) != setting[2]):
            return message.partition("\n")[0]
    return None
