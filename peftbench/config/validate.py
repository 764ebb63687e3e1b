"""Plain data in, frozen dataclasses out: pydantic checks, and each problem becomes one line for a person."""

import dataclasses
import importlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from peftbench.config.members import member
from peftbench.config.spec import MethodSpec
from peftbench.ground.errors import ConfigError, near, shown
from peftbench.ground.quantity import quantity

Spec = TypeVar("Spec")
OURS = re.compile(r"peftbench\.methods\.\w+\.\w+", re.ASCII)  # the classes whose modules may always be imported


@cache
def _adapter(spec: Any) -> TypeAdapter[Any]:
    return TypeAdapter(spec)


def parse(spec: type[Spec], raw: Mapping[str, Any], path: str) -> Spec:
    """Make a dataclass from a mapping, whose keys lie at `path`.

    Raises:
        ConfigError: a line for each thing that is wrong with it.
    """
    allowed = [item.name for item in dataclasses.fields(spec)]  # type: ignore[arg-type]
    unknown = [key for key in raw if key not in allowed]
    problems = [f"{path}.{shown(key)}: there is no such key; {near(key, allowed)}" for key in unknown]
    known = {key: value for key, value in raw.items() if key in allowed}
    try:
        # JSON mode takes lists for tuples and is strict about everything else: "8" is no number, true is no 1.
        parsed: Spec = _adapter(cast(Any, spec)).validate_json(json.dumps(known), strict=True)
    except ValidationError as error:
        raise ConfigError([*problems, *_validation_lines(error, known, path)]) from None
    except ConfigError as error:  # a method's own, which knows its keys as method's
        raise ConfigError([*problems, *_under(path, error)]) from None
    if problems:
        raise ConfigError(problems)
    return parsed


def _validation_lines(error: ValidationError, raw: Any, path: str) -> list[str]:
    phrases_of: dict[str, tuple[Any, list[str]]] = {}
    whole: set[str] = set()  # parts that do not fit together, which are not shown
    for item in error.errors():
        value, steps = raw, []
        for step in item["loc"]:  # between the real keys, pydantic names the members of a union
            if isinstance(value, Mapping) and step in value:
                value = value[step]
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            elif item["type"] != "missing" or step != item["loc"][-1]:
                continue
            steps.append(str(step))
        key = ".".join([path, *steps])
        phrases_of.setdefault(key, (value, []))[1].append(_phrase(item))
        if item["type"] == "refused":
            whole.add(key)
    return [
        f"{key}: {' or '.join(dict.fromkeys(phrases))}"
        if phrases == ["must be given"] or key == path or (isinstance(value, Mapping) and key in whole)
        else f"{key}={shown(show(value))}: {' or '.join(dict.fromkeys(phrases))}"
        for key, (value, phrases) in phrases_of.items()
        if not any(other.startswith(f"{key}.") for other in phrases_of)  # of a union's other form
    ]


def show(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return (value or "''") if isinstance(value, str) else json.dumps(value)


def _phrase(item: Mapping[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    phrases = {
        "missing": "must be given",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
        "bool_type": "must be true or false",
        "string_type": "must be a text",
        "tuple_type": "must be a list, [a, b]",
        "dict_type": "must be a mapping of keys to values",
        "finite_number": "must be a finite number",
    }
    if kind in phrases:
        return phrases[kind]
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return "must be " + expected[0] if len(expected) == 1 else near(item["input"], expected)
    bounds = {
        "greater_than": "must be greater than {gt:g}",
        "greater_than_equal": "must be at least {ge:g}",
        "less_than": "must be less than {lt:g}",
        "less_than_equal": "must be at most {le:.10g}",
    }
    if kind in bounds:
        return bounds[kind].format(**context)
    if kind in ("too_short", "string_too_short", "too_long", "string_too_long"):
        noun = "character" if kind.startswith("string") else "entry"
        if kind.endswith("short"):
            return f"must have at least {quantity(context['min_length'], noun)}"
        return f"must have at most {quantity(context['max_length'], noun)}"
    return str(item["msg"])


def method_class(target: str) -> type:
    """The dataclass that a method's `_target_` names.

    Raises:
        ConfigError: there is none, or it is not a method.
    """
    module, _, name = target.rpartition(".")
    try:
        method = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"method._target_={shown(target)}: no such class can be imported") from None
    if not (dataclasses.is_dataclass(method) and isinstance(method, type) and hasattr(method, "attach")):
        raise ConfigError(f"method._target_={shown(target)}: not a method (a dataclass with attach)")
    return method


def classes_of(spec: MethodSpec) -> set[str]:
    """The classes that a method names: its own, and those of methods within it."""
    return {spec.target, *targets(spec.arguments)}


def unknown_class(spec: MethodSpec, known: Collection[str]) -> str | None:
    """A class that a method names and that nobody here vouches for; None: all are this package's, or in `known`.

    Importing is running: of a method that a stranger's file describes this comes before `make_method`.
    """
    unknown = sorted(name for name in classes_of(spec) if not is_known(name, known))
    return shown(unknown[0]) if unknown else None


def is_known(target: str, known: Collection[str]) -> bool:
    """Whether a class may be imported: it is this package's, or in `known`."""
    return target in known or OURS.fullmatch(target) is not None


def make_method(spec: MethodSpec) -> Any:
    """The method that a spec describes.

    Raises:
        ConfigError: its class or its arguments are not possible.
    """
    return parse(method_class(spec.target), spec.arguments, "method")


def spelled_out(target: str, raw: Mapping[str, Any], path: str = "method") -> dict[str, Any]:
    """A method's arguments, checked, with what its class reads from files in the place of their names.

    Raises:
        ConfigError: a line for whatever is wrong with them, those of methods within included.
    """
    try:
        arguments: dict[str, Any] = member(method_class(target), "spelled_out")(raw)
    except ConfigError as error:
        raise ConfigError([*_under(path, error)]) from None
    if problems := [*_method_problems(target, arguments, path)]:
        raise ConfigError(problems)
    return arguments


def _method_problems(target: str, raw: Mapping[str, Any], path: str) -> Iterator[str]:
    try:
        kind = method_class(target)
    except ConfigError as error:
        yield from _under(path, error)
    else:
        try:
            parse(kind, raw, path)
        except ConfigError as error:
            yield from error.every
    for key, inner in _methods_within(raw, path):
        spec = MethodSpec.from_keys(key, inner)
        yield from _method_problems(spec.target, spec.arguments, key)


def targets(raw: Any) -> Iterator[str]:
    """Every `_target_` in plain data."""
    items = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, (list, tuple)) else ()
    for key, item in items:
        if key == "_target_":
            yield str(item)
        yield from targets(item)


def _under(path: str, error: ConfigError) -> Iterator[str]:
    """The lines of an error about a method's keys, which are somewhere else than under method."""
    return (line.replace("method.", f"{path}.", 1) if line.startswith("method.") else line for line in error.every)


def _methods_within(raw: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The nearest mappings with a `_target_`, each with the key that leads to it."""
    items = raw.items() if isinstance(raw, Mapping) else enumerate(raw) if isinstance(raw, list) else ()
    for key, item in items:
        if isinstance(item, Mapping) and "_target_" in item:
            yield f"{path}.{key}", item
        else:
            yield from _methods_within(item, f"{path}.{key}")
