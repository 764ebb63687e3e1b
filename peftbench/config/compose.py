"""Hydra's words in, a validated `Cell` out: DictConfig stops here, and every problem is reported at once."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from peftbench.config import sizes, userfiles
from peftbench.config.bounds import CONTROL, MOST
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
from peftbench.config.userfiles import SEARCHPATH as SEARCHPATH
from peftbench.config.validate import check_method, parse, show
from peftbench.errors import ConfigError, near, shown
from peftbench.files import DELTA_FILE

CONFIG_NAME = "config"
COMPOSE_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    RecursionError,
)  # all are bad overrides
LONGEST_OVERRIDE = 10_000  # characters
PARTS = (
    "model",
    "task",
    "data",
    "method",
    "scope",
    "budget",
    "protocol",
    "select",
    "tracker",
)  # groups a cell is made of
GROUPS = (*PARTS, "experiment")
LISTED = (*GROUPS, "paper")  # what `peftbench list` knows

Plain = tuple[dict[str, str], dict[str, Any]]  # the word chosen in every group, and all keys with their values


def conf_dir() -> Path:
    """Folder of the yaml files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def words(group: str) -> list[str]:
    """The words a user may choose in a group: its yaml files, bases (leading underscore) left out."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml") if not path.stem.startswith("_"))


def words_for_globs(group: str, searchpaths: Sequence[str]) -> list[str]:
    """The same with those of a user's own yaml files, for a sweep over method=glob(...)."""
    with _hydra() as loader:
        found = loader.get_group_options(group, ObjectType.CONFIG, CONFIG_NAME, list(searchpaths))
    return sorted(word for word in found if not word.startswith("_"))


def describe(group: str, word: str) -> str:
    """The first comment of a word's file."""
    first = (conf_dir() / group / f"{word}.yaml").read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in first if not line.startswith("# @")), "")


def load(overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration, Hydra's own part included.

    Raises:
        ConfigError: an override cannot be applied; all such overrides are listed.
    """
    overrides = [longhand(override) for override in overrides]
    userfiles.check(overrides)
    refused = any(_refused(override) for override in overrides)
    try:
        if not refused:
            return _compose(overrides)
        reason = ""
    except COMPOSE_ERRORS as error:
        reason = _one_line(error)
    raise ConfigError(list(_override_problems(overrides).values()) or [reason])


def longhand(override: str) -> str:
    """`budget=20000` (or a sweep, `budget=5000,20000`) as Hydra needs it: budget.entries=20000."""
    match = re.fullmatch(r"budget=(\d+(?:,\d+)*)", override)
    return f"budget.entries={match[1]}" if match else override


def cell_from(overrides: Sequence[str]) -> Cell:
    """The cell that these overrides describe, with every problem of all of them in one `ConfigError`."""
    overrides = [longhand(override) for override in overrides]
    userfiles.check(overrides)  # before anything looks for what is wrong by composing again
    try:
        return build(load(overrides))
    except ConfigError as error:
        wrong = _override_problems(overrides)
        good = [override for override in overrides if override not in wrong]
        if len(good) == len(overrides):
            raise
        # Values are looked at too, so that one mistyped key does not hide a bad number.
        raise ConfigError([*error.every, *_value_problems(good)]) from None


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
    return choices, _with_like(config, resolved(config))


def build_plain(found: Plain) -> Cell:
    """As `build`, from plain data.

    Raises:
        ConfigError: as `build`.
    """
    choices, raw = found
    if absent := [group for group in PARTS if not isinstance(raw.get(group), dict) or not choices.get(group)]:
        raise ConfigError([f"{group}: must be chosen; {near('', words(group))}" for group in absent])
    problems = [f"{path}: must be given, as {path}=..." for path in _missing(raw)]
    parts = _parts(raw, choices, problems)
    top = {key: value for key, value in raw.items() if key not in GROUPS}
    _check_top(top, problems)
    if problems:
        raise ConfigError(problems)
    for key in OF_THE_RUNNER:
        del top[key]
    cell = Cell(**parts, **top, init_sha256=_delta_sha256(top["init_from"]))
    _check_together(cell)
    return cell


def _check_method_yaml(config: DictConfig, choices: Mapping[str, str]) -> None:
    """What the yaml of a method must give, or interpolations of others lead nowhere."""
    if not choices.get("method"):
        return
    given = config.get("method")
    wanted = ("_target_", "default_lr")
    if absent := [key for key in wanted if not isinstance(given, DictConfig) or key not in given]:
        raise ConfigError(f"method={choices['method']}: its yaml file does not give {' and '.join(absent)}")


def _with_like(config: DictConfig, raw: dict[str, Any]) -> dict[str, Any]:
    """The same with the method that budget.like names in the place of its word: what it means may change.

    Raises:
        ConfigError: there is no such method.
    """
    budget = raw.get("budget")
    word = budget.get("like") if isinstance(budget, dict) else None
    if word is None:
        return raw
    paths = [item for item in config.hydra.overrides.hydra if item.startswith(SEARCHPATH)]
    if word not in (known := words_for_globs("method", paths)):
        raise ConfigError(f"budget.like={shown(show(word))}: there is no such method; {near(str(word), known)}")
    whole = OmegaConf.merge(config)  # a copy, so that what its yaml takes from other groups is the cell's own
    assert isinstance(whole, DictConfig)
    try:
        with open_dict(whole):
            whole.method = _compose([*paths, f"method={word}"]).method
        _check_method_yaml(whole, {"method": word})
    except COMPOSE_ERRORS as error:
        raise ConfigError(f"budget.like={word}: {_one_line(error)}") from None
    method = resolved(whole)["method"]
    arguments = {key: value for key, value in method.items() if key not in ("_target_", "default_lr")}
    like = {"name": word, "target": str(method["_target_"]), "arguments": arguments}
    return {**raw, "budget": {**raw["budget"], "like": like}}


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, interpolations resolved, without Hydra's own part.

    Raises:
        ConfigError: an interpolation leads nowhere.
    """
    try:
        found = OmegaConf.to_container(_without_hydra(config), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from None
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _parts(raw: Mapping[str, Any], choices: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    """The dataclass of every group; a part that is not possible is None, and a line in `problems` says why."""
    named = {group: {"name": choices[group], **raw[group]} for group in ("model", "task", "data", "budget")}
    if choices["budget"] == "none":  # a budget given by its keys is known by them
        said = {key: value["name"] if key == "like" and value else value for key, value in raw["budget"].items()}
        given = [f"{value}" if key == "entries" else f"{key}-{value}" for key, value in said.items() if value]
        named["budget"]["name"] = "-".join(given) or "none"
    sizes.check(raw["model"], problems)
    model = parse(ModelSpec, named["model"], "model", problems)
    scope = dict(raw["scope"])
    if model and not problems:
        scope["layers"] = _layers(scope.get("layers"), model.depth, problems)
    method = {key: value for key, value in raw["method"].items() if key not in ("_target_", "default_lr")}
    target = str(raw["method"].get("_target_"))
    check_method(target, method, problems)
    if like := raw["budget"].get("like"):
        check_method(like["target"], like["arguments"], problems, "budget.like")
    return {
        "model": model,
        "task": parse(TaskSpec, named["task"], "task", problems),
        "data": parse(DataSpec, named["data"], "data", problems),
        "method": MethodSpec(choices["method"], target, method),
        "scope": parse(Scope, scope, "scope", problems),
        "budget": parse(Budget, named["budget"], "budget", problems),
        "protocol": parse(Protocol, raw["protocol"], "protocol", problems),
        "select": parse(Select, raw["select"], "select", problems),
        "tracker": parse(TrackerSpec, raw["tracker"], "tracker", problems),
    }


@contextmanager
def _hydra() -> Iterator[ConfigLoader]:
    """Hydra over our yaml files; inside a Hydra job there is one already, which is put back afterwards."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="peftbench"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().hydra = running


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _hydra():
        return compose(CONFIG_NAME, overrides=list(overrides), return_hydra_config=True)


def _without_hydra(config: DictConfig) -> DictConfig:
    # masked_copy keeps the parent-less tree, so that ${...} still finds its keys
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def _override_problems(overrides: Sequence[str]) -> dict[str, str]:
    """What is wrong with each override that cannot be applied: group choices first, then keys on top of them."""
    problems: dict[str, str] = {}
    applied = [item for item in overrides if item.startswith(SEARCHPATH)]
    others = [item for item in overrides if not item.startswith(SEARCHPATH)]
    for override in sorted(others, key=lambda item: item.partition("=")[0] not in GROUPS):
        if refused := _refused(override):
            problems[override] = refused
            continue
        try:
            _compose([*applied, override])
            applied.append(override)
        except COMPOSE_ERRORS as error:
            problems[override] = _explain(override, error, applied)
    return problems


def _refused(override: str) -> str | None:
    """What is wrong with an override that Hydra would take, or choke on."""
    if len(override) > LONGEST_OVERRIDE:
        return f"{shown(override)}: longer than {LONGEST_OVERRIDE:,} characters"
    key, _, value = override.lstrip("+~").partition("=")
    if key.partition("@")[0] in GROUPS and re.search(r"[/\\]|\.\.", value):
        return f"{key}={shown(value)}: must be a word, not a path; peftbench list {key.partition('@')[0]}"
    return None


def _explain(override: str, error: Exception, applied: Sequence[str]) -> str:
    key, equals, value = override.partition("=")
    key = key.lstrip("+~")
    if not equals or not key:
        return f"{shown(override)}: not of the form key=value"
    text = str(error)
    if isinstance(error, YAMLError):
        return f"{shown(override)}: no valid yaml: {_one_line(error)}"
    if f"Could not find '{key}/{value}'" in text and (conf_dir() / key).is_dir():
        return f"{key}={shown(value)}: there is no {key} called '{shown(value)}'; {near(value, words(key))}"
    if "Ambiguous value" in text:
        return f"{shown(override)}: several values; a sweep needs -m (peftbench run -m ...)"
    if "Could not override" in text or "not in struct" in text or "Could not find" in text:
        return f"{shown(key)}: there is no such key; {near(key, _keys(applied, key))}"
    if isinstance(error, OverrideParseException) and re.search(r"[=#(){}\[\],'\"\s]", value):
        return f"{shown(key)}={shown(value)}: cannot be read; a text with such signs is quoted: '{shown(key)}=\"...\"'"
    return f"{shown(key)}={shown(value)}: {_one_line(error)}"


def _keys(applied: Sequence[str], like: str) -> list[str]:
    """Every key that an override such as `like` may name, once the overrides in `applied` are."""
    config = _compose(applied)
    if like.startswith("hydra."):
        return _walk(OmegaConf.to_container(config.hydra), "hydra")
    known = OmegaConf.to_container(_without_hydra(config))
    assert isinstance(known, dict)
    return [*GROUPS, *_walk(known, "")]


def _walk(node: Any, path: str) -> list[str]:
    here = [path] if path else []
    if not isinstance(node, Mapping):
        return here
    return here + [key for name in node for key in _walk(node[name], f"{path}.{name}" if path else str(name))]


def _value_problems(overrides: Sequence[str]) -> list[str]:
    try:
        build(load(overrides))
    except ConfigError as error:
        return error.every
    return []


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).split("See https://")[0].split("full_key:")[0]).strip()


def _missing(node: Any, path: str = "") -> list[str]:
    if isinstance(node, Mapping):
        return [key for name in node for key in _missing(node[name], f"{path}.{name}" if path else str(name))]
    return [path] if node == "???" else []


def _layers(value: Any, depth: int, problems: list[str]) -> list[int] | None:
    """Layer numbers from a list or a range like "6-11", checked against the depth of the backbone."""
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,4})-(\d{1,4})", value)):
        layers = list(range(int(match[1]), int(match[2]) + 1))
    elif isinstance(value, int) and not isinstance(value, bool):
        layers = [value]
    elif isinstance(value, list) and all(type(item) is int for item in value):
        layers = value
    else:
        problems.append(f"scope.layers={shown(show(value))}: must be a range like 2-5 or a list like [0,5]")
        return None
    if not layers or min(layers) < 0 or max(layers) >= depth:
        problems.append(f"scope.layers={shown(show(value))}: outside the backbone, which has layers 0 to {depth - 1}")
        return None
    return sorted(set(layers))


TOP = {"seed": int, "study": str, "outputs": str, "cache": str, "predict_test": bool, "progress": bool, "rerun": str}
TOP |= {"cells_per_gpu": int}
LEAST = {"seed": 0, "cells_per_gpu": 1}
OF_THE_RUNNER = ("rerun", "cells_per_gpu")  # say how cells are run, not what a cell is
RERUN = ("unfinished", "failed", "all")


def _check_top(top: Mapping[str, Any], problems: list[str]) -> None:
    allowed = [*TOP, "init_from", "checkpoint_every", *GROUPS]
    problems.extend(f"{key}: there is no such key; {near(key, allowed)}" for key in top if key not in allowed)
    for key, kind in TOP.items():
        if type(top.get(key)) is not kind:
            wanted = {int: "a whole number", str: "a text", bool: "true or false"}[kind]
            problems.append(f"{key}={shown(show(top.get(key)))}: must be {wanted}")
        elif kind is str and CONTROL.search(top[key]):
            problems.append(f"{key}={shown(top[key])}: must not hold control codes")
        elif kind is int and not LEAST[key] <= top[key] <= MOST:
            problems.append(f"{key}={shown(top[key])}: must be at least {LEAST[key]} and at most {MOST}")
    if isinstance(top.get("study"), str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", top["study"]):
        problems.append(f"study={shown(top['study'])}: must be letters, digits, '.', '_' and '-' (it names a folder)")
    if isinstance(top.get("rerun"), str) and top["rerun"] not in RERUN:
        problems.append(f"rerun={shown(top['rerun'])}: must be one of {', '.join(RERUN)}")
    every = top.get("checkpoint_every")
    if every is not None and (type(every) not in (int, float) or not 0 <= every < math.inf):
        problems.append(f"checkpoint_every={shown(show(every))}: must be a number of seconds, or null")
    start = top.get("init_from")
    if start is not None and not (isinstance(start, str) and (Path(start) / DELTA_FILE).is_file()):
        problems.append(f"init_from={shown(show(start), 100)}: no {DELTA_FILE} there (it must be the folder of a run)")


def _check_together(cell: Cell) -> None:
    """What is possible by itself and yet not together."""
    problems = []
    names = cell.task.metric_names()
    if cell.task.headline not in names:
        problems.append(f"task.headline={cell.task.headline}: not scored; {near(cell.task.headline, names)}")
    if cell.task.train is None and cell.init_from is None:
        problems.append(f"task={cell.task.name}: has no training rows; give init_from=<folder of an MNLI run>")
    if cell.protocol.accumulation > cell.protocol.batch_size:
        problems.append(
            f"protocol.accumulation={cell.protocol.accumulation}: more parts than "
            f"protocol.batch_size={cell.protocol.batch_size} has rows"
        )
    if cell.protocol.max_length > (limit := cell.model.positions):
        problems.append(f"protocol.max_length={cell.protocol.max_length}: {cell.model.name} has {limit} positions")
    if problems:
        raise ConfigError(problems)


def _delta_sha256(folder: str | None) -> str | None:
    if folder is None:
        return None
    return hashlib.sha256((Path(folder) / DELTA_FILE).read_bytes()).hexdigest()
