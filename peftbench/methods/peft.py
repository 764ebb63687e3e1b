"""Any method of huggingface/peft that is put inside a backbone, trained by this bench's own loop."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from torch import nn

from peftbench.backbone.dropout import replace_dropout
from peftbench.backbone.model import NORMS, Model
from peftbench.config.bounds import MOST, PathText, refuse
from peftbench.config.spec import Kind, Scope
from peftbench.ground.errors import ConfigError, shown
from peftbench.ground.files import write_atomically
from peftbench.ground.quantity import quantity
from peftbench.methods import dial, peft_prompts, peft_types
from peftbench.methods.base import ParameterTuner, narrowed, require
from peftbench.methods.peft_eva import EvaTuner
from peftbench.methods.peft_tuners import AdaLoRATuner, PeftTuner, wrapped

DECOMPOSED = ("pissa", "olora")  # starts of LoRA's factors at directions of the weight


@dataclass(frozen=True)
class Peft:
    """A type of peft with its configuration, attached to the linear maps (or norms) of some kinds.

    Attributes:
        type: peft's name for it, in small letters.
        config: keys of peft's configuration; what is not given has peft's default.
        kinds: where it acts; the scope narrows it.
        targets: modules by name, or by the end of their names, in the place of kinds.
        adapter_config: a folder whose adapter_config.json gives type, config and targets.
    """

    type: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[Kind, ...] | None = ("query", "value")
    targets: tuple[str, ...] | None = None
    adapter_config: PathText | None = None
    dial: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        """Raises:
        ConfigError: peft is not installed, has no such type or key, or a value is not possible.
        """
        if self.type is None:
            refuse(f"type must be given, or adapter_config; the types are {', '.join(peft_types.TYPES)}")
        if self.adapter_config is not None:
            refuse("adapter_config is only for method itself, not for one within another")
        peft_types.check(self.type, self.config)

    @classmethod
    def spelled_out(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with what adapter_config.json says in the place of its folder.

        Raises:
            ConfigError: there is no such file, or it says what cannot be done here.
        """
        folder = arguments.get("adapter_config")
        return {**arguments, **(_from_file(folder, arguments) if isinstance(folder, str) else {})}

    @classmethod
    def own_tokens(cls, arguments: Mapping[str, Any]) -> int:
        """How many tokens come before those of every row and take positions of the backbone."""
        facts = peft_types.TYPES.get(str(arguments["type"]))
        return int(arguments["config"]["num_virtual_tokens"]) if facts is not None and facts.is_prompt else 0

    def within(self, model: Model, scope: Scope, entries: int) -> "Peft":
        """The same with the key of its size where it trains most within a budget.

        Raises:
            ConfigError: the type has no such key, or the budget is too small.
        """
        assert self.type is not None
        key = self._facts.dial
        if self._facts.share is not None:
            return self._share_within(model, scope, entries)
        if key is None:
            limited = "limit it with scope.layers or method.kinds"
            raise ConfigError(f"budget: {quantity(entries, 'entry')}; peft's {self.type} takes none; {limited}")
        return dial.largest(
            lambda value: replace(self, config={**self.config, key: value}),
            lambda method: dial.trained_entries(method, model, scope),
            entries,
            f"peft's {self.type}",
            key,
            peft_types.fitting(self.type, self.config, self._sides(model, scope)),
        )

    def _share_within(self, model: Model, scope: Scope, entries: int) -> "Peft":
        """The same of a type whose size is a share of entries: as many of its smallest parts as the budget holds."""
        assert self.type is not None
        kind, maps = self.type, self._targets(model, scope).values()
        every = peft_types.parts(kind, (module.get_parameter("weight").shape for module in maps))
        return dial.largest(
            lambda number: replace(self, config={**self.config, **peft_types.of_parts(kind, number, every)}),
            lambda method: dial.trained_entries(method, model, scope),
            entries,
            f"peft's {kind}",
            "entries of a map",
            range(1, every + 1),
        )

    def attach(self, model: Model, scope: Scope) -> ParameterTuner:
        """See `Method`.

        What peft draws with a seed of its own follows torch's generator, too, unless config gives that seed.

        Raises:
            ConfigError: nothing to attach to, or peft refuses the configuration for these modules.
        """
        if self._facts.is_prompt:
            return self._attach_prompt(model, scope)
        targets = self._targets(model, scope)
        self._check_decomposed(targets)
        if not next(model.module.parameters()).is_meta:
            return self._put_in(model, targets)
        return self._counted(targets) if self._facts.by_shape else self._without_values()._put_in(model, targets)

    def _put_in(self, model: Model, targets: Mapping[str, nn.Module]) -> PeftTuner:
        """Attach to these modules."""
        wrapper, trainables = _wrap(model.module, self._made(self._acts_on(model, list(targets))))
        if not any(parameter.numel() for parameter in trainables.values()):
            raise ConfigError(f"method.config: nothing of peft's {self.type} would train here")
        replace_dropout(model.module, model.noise)
        return self._tuner(model, wrapper, trainables, self._facts.merges)

    def _attach_prompt(self, model: Model, scope: Scope) -> ParameterTuner:
        assert self.type is not None
        if self.targets is not None:
            raise ConfigError(f"method.targets: peft's {self.type} is put in no module by name")
        return peft_prompts.attach(model, self.type, self.config, self._facts, narrowed(scope, self.kinds))

    def export_peft(self, tuner: PeftTuner | peft_prompts.PromptTuner, model: Model, folder: Path) -> None:
        """Write what was learned and the head in peft's format: `PeftModel.from_pretrained` loads the same logits.

        Raises:
            ConfigError: a module is adapted that the weights lacked: peft keeps a module whole or adapts it, not both.
        """
        named = getattr(tuner.config, "target_modules", None) or ()
        if both := [name for name in model.drawn if name.rpartition(".")[0] in named]:
            raise ConfigError(f"{both[0]}: the weights lacked it and peft adapted it; its format cannot hold both")
        saved_whole = dict(model.head()) | model.drawn
        tensors = dict(tuner.exported())
        tensors |= {tuner.exported_whole(name): tensor.detach() for name, tensor in saved_whole.items()}
        config = {
            **tuner.config.to_dict(),
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": None,
            "inference_mode": True,
            "modules_to_save": sorted({*model.layout.head, *(name.rpartition(".")[0] for name in model.drawn)}),
        }
        stored = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        write_atomically(folder / "adapter_model.safetensors", save(stored, metadata={"format": "pt"}))
        write_atomically(folder / peft_types.CONFIG_FILE, json.dumps(config, indent=2, default=sorted).encode())

    @property
    def _facts(self) -> peft_types.PeftType:
        assert self.type is not None
        return peft_types.TYPES[self.type]

    @property
    def _tuner(self) -> Callable[..., PeftTuner]:
        """What does the type's own work beside the loop's."""
        if self.type == "adalora":
            return AdaLoRATuner
        return EvaTuner if self._start == "eva" else PeftTuner

    @property
    def _start(self) -> str:
        """Where LoRA's factors start, if it is said in a word."""
        start = self.config.get("init_lora_weights")
        return start if isinstance(start, str) else ""

    def _without_values(self) -> "Peft":
        """The same where weights have no values to be decomposed: its factors are as large, wherever they start."""
        return replace(self, config={**self.config, "init_lora_weights": True}) if self._start in DECOMPOSED else self

    def _check_decomposed(self, targets: Mapping[str, nn.Module]) -> None:
        """See that weights have as many directions as factors are to start at: peft would take fewer.

        Raises:
            ConfigError: one has not.
        """
        if self._start not in DECOMPOSED:
            return
        rank = self.config.get("r", 8)  # peft's default
        shortest = min(side for module in targets.values() for side in module.get_parameter("weight").shape)
        if rank > shortest:
            raise ConfigError(f"method.config.r={rank}: above the shortest side of a map here, which is {shortest}")

    def _targets(self, model: Model, scope: Scope) -> dict[str, nn.Module]:
        """The modules to attach to, by name."""
        inside = scope if self.targets is not None else narrowed(scope, self.kinds)
        modules = {
            name: module
            for name, module in model.module.named_modules()
            if _fits(module, self._facts.on)
            and not model.is_head(name)
            and model.place(name).within(inside)
            and (self.targets is None or _ends(name, self.targets))
        }
        require(modules, f"no {self._facts.on} for peft's {self.type}", inside)
        return modules

    def _sides(self, model: Model, scope: Scope) -> set[int]:
        """Of all matrices that it is attached to."""
        if not self._facts.divides:
            return set()
        return {
            side for module in self._targets(model, scope).values() for side in module.get_parameter("weight").shape
        }

    def _acts_on(self, model: Model, targets: list[str]) -> dict[str, Any]:
        """peft's keys for where it acts: modules by their whole names, so that no other is meant."""
        if self.type == "ia3":
            return {"target_modules": targets, "feedforward_modules": self._inner(model, targets)}
        if self.type == "lily":  # maps of one target share a factor: those of all layers, not each with itself
            return _by_ending(model, targets)
        return {"target_modules": targets}

    def _inner(self, model: Model, targets: Iterable[str]) -> list[str]:
        """The maps whose input is scaled and not their output: IA3's, in the feed-forward sub-layer.

        Raises:
            ConfigError: a name that is given is none of the targets'.
        """
        endings = self.config.get("feedforward_modules")
        if endings is not None:
            for ending in endings:
                if not any(_ends(name, [ending]) for name in targets):
                    raise ConfigError(
                        f"method.config.feedforward_modules: {shown(ending)} is no map that is scaled here"
                    )
            return [name for name in targets if _ends(name, endings)]
        return [name for name in targets if "output" in model.place(name).kinds]

    def _made(self, acts_on: Mapping[str, Any]) -> Any:
        """peft's configuration, with its keys for where it acts."""
        assert self.type is not None
        config = {**self.config, **acts_on}
        if self.type == "frod":
            config["progressbar"] = False
        if self.type == "adalora":  # the loop knows it, and says so before the first step
            config["total_step"] = self.config.get("tinit", 0) + self.config.get("tfinal", 0) + 1
        if self._facts.seed is not None and config.get(self._facts.seed) is None:
            config[self._facts.seed] = int(torch.randint(MOST, ()))
        return peft_types.make(self.type, config)

    def _counted(self, targets: Mapping[str, nn.Module]) -> ParameterTuner:
        """What would train where there are no weights: one real map of every shape tells it for all of that shape."""
        shapes: dict[tuple[int, int, bool], dict[str, torch.Size]] = {}
        trainables = {}
        for name, module in targets.items():
            assert isinstance(module, nn.Linear)
            shape = (module.in_features, module.out_features, module.bias is not None)
            if shape not in shapes:
                alone = nn.Sequential(OrderedDict(map=nn.Linear(*shape)))
                _, parameters = _wrap(alone.requires_grad_(False), self._made({"target_modules": ["map"]}))
                shapes[shape] = {inside.removeprefix("map."): p.shape for inside, p in parameters.items()}
            for inside, size in shapes[shape].items():
                trainables[f"{name}.{inside}"] = nn.Parameter(torch.empty(size, device="meta"))
        return ParameterTuner(trainables)


def _wrap(module: nn.Module, config: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    """Let peft change a module in place; returns its wrapper, and what trains of its own.

    Raises:
        ConfigError: peft cannot.
    """
    trained = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    wrapper = wrapped(module, config)
    new = {
        name: p
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in trained and ".ranknum." not in name  # a constant, but not so on meta
    }
    return wrapper, new


def _fits(module: nn.Module, what: str) -> bool:
    if what == "norm":
        return any(norm in type(module).__name__ for norm in NORMS)
    return isinstance(module, nn.Linear) and (what == "linear map" or module.bias is not None)


def _ends(name: str, endings: Sequence[str]) -> bool:
    """Whether a module is meant, by its name or the end of it, as peft reads a list of targets."""
    return any(name == ending or name.endswith("." + ending) for ending in endings)


def _by_ending(model: Model, targets: list[str]) -> dict[str, Any]:
    """Where a type acts by what names have in common in all layers; what is not meant is left out by its whole name."""
    number = re.compile(rf"^{re.escape(model.layout.layers)}\.\d+\.")
    endings = sorted({number.sub("", name) for name in targets})
    others = [name for name, _ in model.module.named_modules() if name not in targets and _ends(name, endings)]
    return {"target_modules": endings, "exclude_modules": others or None}


def _from_file(folder: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What adapter_config.json says; a key that is also given stays as given.

    Raises:
        ConfigError: the file says where it acts in a way that is not known here, or is of another type.
    """
    kind, config, acts_on = peft_types.read(folder)
    path = f"method.adapter_config={folder}"
    if given.get("type") not in (None, kind):
        raise ConfigError(f"{path}: its peft_type is {kind}, and method.type={given['type']}")
    targets = acts_on.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        raise ConfigError(f"{path}: target_modules is a regular expression; give method.kinds and no such key")
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        if acts_on.get(key):
            raise ConfigError(f"{path}: {key} is not read; scope.layers and method.targets say where it acts")
    keys: dict[str, Any] = {"type": kind, "config": {**config, **given.get("config", {})}, "adapter_config": None}
    if kind in peft_types.TYPES and peft_types.TYPES[kind].is_prompt:
        keys |= {"kinds": None}
    elif targets is not None:
        keys |= {"kinds": None, "targets": None if targets == "all-linear" else list(targets)}
    return keys
