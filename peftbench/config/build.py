"""A composed configuration in, a validated `Cell` out. `study`, which asks for cells, may hold the former; what runs
them sees the latter alone."""

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from peftbench.config import checks, sizes
from peftbench.config import words as yaml_words
from peftbench.config.few_labels import ReadoutSpec, SelfTrain, Shots
from peftbench.config.objective import ObjectiveSpec
from peftbench.config.spec import (
    Budget,
    Cell,
    DataSpec,
    MethodSpec,
    ModelSpec,
    Protocol,
    Scope,
    Select,
    TaskSpec,
    TrackerSpec,
)
from peftbench.config.tasks import JointTask, joint_name
from peftbench.config.userfiles import SEARCHPATH
from peftbench.config.validate import parse, show, spelled_out
from peftbench.config.words import COMPOSE_ERRORS, GROUPS, PARTS, composed, one_line, origin, words, words_for_globs
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.files import DELTA_FILE

OTHERS = {  # parts that are their keys alone
    "protocol": Protocol,
    "select": Select,
    "shots": Shots,
    "readout": ReadoutSpec,
    "selftrain": SelfTrain,
    "objective": ObjectiveSpec,
    "tracker": TrackerSpec,
}


@dataclass(frozen=True)
class Plain:
    """A cell as plain data.

    Attributes:
        choices: the word chosen in every group.
        raw: all keys with their values, as its record has them.
        like: the method that budget.like names: what a word means may change.
    """

    choices: dict[str, str]
    raw: dict[str, Any]
    like: dict[str, Any] | None = None

    def having(self, **values: Any) -> "Plain":
        """A copy with these values of keys at the top."""
        return Plain(dict(self.choices), {**copy.deepcopy(self.raw), **values}, copy.deepcopy(self.like))


def build(config: DictConfig) -> Cell:
    """Turn a composed configuration (Hydra's part included) into a cell.

    Raises:
        ConfigError: unknown keys, wrong types, impossible values: one line each.
    """
    return build_plain(plain(config))


def plain(config: DictConfig) -> Plain:
    """What a cell is built from, out of a composed configuration: needs no method's class, so no torch.

    Raises:
        ConfigError: a method's yaml lacks what it must give, budget.like names none, or an interpolation leads nowhere.
    """
    choices = {str(key): value for key, value in config.hydra.runtime.choices.items()}
    _check_method_yaml(config, choices)
    raw = resolved(config)
    return Plain(choices, raw, _like(config, raw))


def resolved(config: DictConfig) -> dict[str, Any]:
    """As `words.resolved`, with the whole of every task that task.tasks names in the place of its word.

    Raises:
        ConfigError: as there, or it is no list of two or more different tasks.
    """
    raw = yaml_words.resolved(config)
    task = raw.get("task")
    if not isinstance(task, dict) or task.get("tasks", "???") == "???":
        return raw
    names, paths = task["tasks"], _searchpaths(config)
    if not (isinstance(names, list) and len(names) > 1 and len({str(name) for name in names}) == len(names)):
        problem = "must be a list of two or more different tasks, [cola,mrpc]"
        raise ConfigError(f"task.tasks={shown(show(names))}: {problem}")
    known = words_for_globs("task", paths)
    if unknown := [name for name in names if name not in known]:
        raise ConfigError([f"task.tasks={shown(show(name))}: no such task; {near(name, known)}" for name in unknown])
    every = [{"name": name, **resolved(composed([*paths, f"task={name}"]))["task"]} for name in sorted(names)]
    if several := [one["name"] for one in every if "tasks" in one]:
        raise ConfigError(f"task.tasks={several[0]}: is itself several tasks; name these")
    return {**raw, "task": {**task, "tasks": every}}


def build_plain(data: Plain, to_come: Collection[Path] = ()) -> Cell:
    """As `build`, from plain data.

    Args:
        to_come: folders of runs that the cell may start from before they have left their delta; its fingerprint is
            another one then.

    Raises:
        ConfigError: as `build`.
    """
    choices, raw = data.choices, data.raw
    if data.like is not None:
        raw = {**raw, "budget": {**raw["budget"], "like": data.like}}
    if absent := [group for group in PARTS if not isinstance(raw.get(group), dict) or not choices.get(group)]:
        raise ConfigError([f"{group}: must be chosen; {near('', words(group))}" for group in absent])
    missing = [f"{path}: must be given, as {path}=..." for path in _missing(raw)]
    parts, wrong = _parts(raw, choices)
    top = {key: value for key, value in raw.items() if key not in GROUPS}
    wrong += checks.top(top, to_come)
    objective = parts["objective"]
    if objective is not None:
        wrong += checks.folder_of_a_run("objective.old", objective.old, to_come)
    if problems := [*missing, *wrong]:
        raise ConfigError(problems)
    for key in (*checks.OF_THE_RUNNER, "label"):  # the last is in the method's name
        del top[key]
    old = objective.old if objective.asks_old else None
    cell = Cell(**parts, **top, init_sha256=_delta_sha256(top["init_from"]), old_sha256=_delta_sha256(old))
    checks.together(cell, to_come)
    return cell


def _check_method_yaml(config: DictConfig, choices: Mapping[str, str]) -> None:
    """What the yaml of a method must give, or interpolations of others lead nowhere."""
    if not choices.get("method"):
        return
    given = config.get("method")
    required = ("_target_", "default_lr")
    if absent := [key for key in required if not isinstance(given, DictConfig) or key not in given]:
        raise ConfigError(f"method={choices['method']}: its yaml file does not give {' and '.join(absent)}")


def _like(config: DictConfig, raw: dict[str, Any]) -> dict[str, Any] | None:
    """The method that budget.like names, where it names one.

    Raises:
        ConfigError: there is no such method.
    """
    budget = raw.get("budget")
    word = budget.get("like") if isinstance(budget, dict) else None
    if word is None:
        return None
    paths = _searchpaths(config)
    if word not in (known := words_for_globs("method", paths)):
        raise ConfigError(f"budget.like={shown(show(word))}: there is no such method; {near(str(word), known)}")
    other = OmegaConf.merge(config)  # a copy, so that what its yaml takes from other groups is the cell's own
    assert isinstance(other, DictConfig)
    try:
        with open_dict(other):
            other.method = composed([*paths, f"method={word}"]).method
        _check_method_yaml(other, {"method": word})
    except COMPOSE_ERRORS as error:
        raise ConfigError(f"budget.like={word}: {one_line(error)}") from None
    return dict(vars(MethodSpec.from_keys(word, resolved(other)["method"])))


def _searchpaths(config: DictConfig) -> list[str]:
    return [item for item in config.hydra.overrides.hydra if item.startswith(SEARCHPATH)]


def _parts(raw: Mapping[str, Any], choices: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The dataclass of every group, None where it is not possible, and a line for whatever is wrong with them."""
    problems = [f"{origin('model', choices)}{problem}" for problem in sizes.problems_of(raw["model"])]

    def possible(group: str, make: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except ConfigError as error:
            problems.extend(f"{_whose(group, problem, raw, choices)}{problem}" for problem in error.every)
            return None

    named = {group: {"name": choices[group], **raw[group]} for group in ("model", "task", "data", "budget")}
    if choices["budget"] == "none":  # a budget given by its keys is known by them
        values = {key: value["name"] if key == "like" and value else value for key, value in raw["budget"].items()}
        shown_parts = [f"{value}" if key == "entries" else f"{key}-{value}" for key, value in values.items() if value]
        named["budget"]["name"] = "-".join(shown_parts) or "none"
    several = raw["task"].get("tasks")
    if isinstance(several, list):
        named["task"]["name"] = joint_name([one["name"] for one in several])
    kind_of_task = TaskSpec if several is None else JointTask
    model = possible("model", parse, ModelSpec, named["model"], "model")
    scope = dict(raw["scope"])
    if model and not problems:
        scope["layers"] = possible("scope", checks.layers, scope.get("layers"), model.depth)
    label = raw.get("label")
    name = choices["method"] if label is None else f"{choices['method']}_{label}"
    if label is not None and name in words("method"):
        problems.append(f"label={shown(show(label))}: {name} is a method of its own; another label")
    method = MethodSpec.from_keys(name, raw["method"])
    arguments = possible("method", spelled_out, method.target, method.arguments)
    if like := raw["budget"].get("like"):
        spelled = possible("budget", spelled_out, like["target"], like["arguments"], "budget.like")
        named["budget"]["like"] = {**like, "arguments": like["arguments"] if spelled is None else spelled}
    parts = {
        "model": model,
        "task": None if several == "???" else possible("task", parse, kind_of_task, named["task"], "task"),
        "data": possible("data", parse, DataSpec, named["data"], "data"),
        "method": method if arguments is None else replace(method, arguments=arguments),
        "scope": possible("scope", parse, Scope, scope, "scope"),
        "budget": possible("budget", parse, Budget, named["budget"], "budget"),
        **{group: possible(group, parse, kind, raw[group], group) for group, kind in OTHERS.items()},
    }
    return parts, problems


def _whose(group: str, problem: str, raw: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """What a line begins with where a user's own yaml file is at fault: see `words.origin`."""
    rates = raw["protocol"].get("lr"), raw["method"].get("default_lr")
    if problem.startswith("protocol.lr=") and rates[0] == rates[1]:  # where none is typed it is the method's own
        group = "method"
    if problem.startswith("budget.like."):
        like = raw["budget"]["like"]["name"]
        return origin("method", {"method": like}).replace("method=", "budget.like=", 1)
    return origin(group, choices)


def _missing(node: Any, path: str = "") -> list[str]:
    if isinstance(node, Mapping):
        return [key for name in node for key in _missing(node[name], f"{path}.{name}" if path else str(name))]
    return [path] if node == "???" else []


def _delta_sha256(folder: str | None) -> str | None:
    """The hash of the delta in a folder; where it is still to come, that of the folder's name stands for it."""
    if folder is None:
        return None
    try:
        content = (Path(folder) / DELTA_FILE).read_bytes()
    except FileNotFoundError:
        content = str(Path(folder).resolve()).encode()
    return hashlib.sha256(content).hexdigest()
