"""YAML in, `Recipe` out. Every mistake is one sentence that begins with its place, `recipe.steps[0].compress.keep`."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from laconic.allocate import Plan, plan_from, read_plan
from laconic.compress import Step
from laconic.errors import UserError, must_be, unknown
from laconic.methods import METHODS, Method
from laconic.methods.problem import placed, sentence
from laconic.methods.spelling import method_from, named
from laconic.recipe.schema import Evaluation, Recipe
from laconic.recipe.steps import STEPS

ROOT = "recipe"
_PATH = re.compile(r"[A-Za-z_][\w-]*|\[\d+\]")


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with each `key=value` of `overrides` put in place.

    Raises:
        UserError: the file cannot be read, or what it says is no recipe.
    """
    try:
        spelled = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"The recipe '{path}' cannot be read: {reason}.") from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"The recipe '{path}' is not YAML: {where}.") from error
    if not isinstance(spelled, dict):
        raise must_be(f"The recipe '{path}'", "a mapping with model and steps", spelled)
    for override in overrides:
        _put(spelled, override)
    return recipe_from(spelled)


def recipe_from(spelled: Mapping[str, Any]) -> Recipe:
    """The recipe that a mapping spells, as read from YAML.

    Raises:
        UserError: an unknown or missing key, or a value out of range; the sentence begins with its place.
    """
    values = dict(spelled)
    if isinstance(values.get("evaluate"), dict):
        values["evaluate"] = _build(Evaluation, values["evaluate"], f"{ROOT}.evaluate")
    if "steps" in values:
        values["steps"] = _steps(values["steps"])
    return _build(Recipe, values, ROOT)


def method_or_step(value: object, place: str) -> Method | Step:
    """What the command line's `--method` names: a method of one matrix, or a step such as `shrink-heads:keep=0.75`.

    Raises:
        UserError: an unknown name or parameter, or a value out of range; the sentence begins with `place`.
    """
    name, parameters = named(value, place)
    steps = {step.name: step for step in STEPS}
    if name in steps:
        return _build(steps[name], parameters, f"{place}.{name}")
    methods = [method.name for method in METHODS]
    if name not in methods:
        raise unknown("method", name, [*methods, *steps])
    return method_from(value, place)


def _steps(spelled: object) -> tuple[Step, ...]:
    place = f"{ROOT}.steps"
    if not isinstance(spelled, (list, tuple)) or not spelled:
        raise must_be(place, "a list of steps, each {name: {parameter: value}}", spelled)
    return tuple(_step(line, f"{place}[{index}]") for index, line in enumerate(spelled))


def _step(line: object, place: str) -> Step:
    if isinstance(line, str):
        line = {line: {}}
    if not isinstance(line, dict) or len(line) != 1:
        raise must_be(place, "a step's name or {name: {parameter: value}}", line)
    name, parameters = next(iter(line.items()))
    kinds = {step.name: step for step in STEPS}
    if name not in kinds:
        raise placed(unknown("step", str(name), kinds), place)
    place = f"{place}.{name}"
    if parameters is not None and not isinstance(parameters, dict):
        raise must_be(place, "a mapping of parameters", parameters)
    return _build(kinds[name], parameters or {}, place)


def _build(kind: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """The dataclass `kind` of these values: unknown keys first, then missing ones, then each value."""
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise placed(unknown("key", str(key), known), place)
    for name, field in known.items():
        if name not in values and _is_required(field):
            raise UserError(f"{place}.{name} is missing; give it a value.")
    hints = get_type_hints(kind)
    read = {key: _read(hints[key], value, f"{place}.{key}") for key, value in values.items()}
    try:
        return TypeAdapter(kind).validate_python(read)
    except ValidationError as error:
        raise sentence(error, kind, place) from error


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _read(hint: object, value: Any, place: str) -> Any:
    """What YAML spells in a form of its own, by the type that is asked for: methods, plans, mappings of fields."""
    readers: dict[object, Callable[[Any, str], Any]] = {Method: method_from, Plan: _plan, Plan | None: _plan}
    reader = readers.get(hint)
    if reader is None and isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, place)
    try:
        return value if reader is None else reader(value, place)
    except UserError as error:
        raise placed(error, place) from error


def _plan(value: Any, place: str) -> Plan | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_plan(Path(value))
    return plan_from(value, place)


def _put(spelled: dict[str, Any], override: str) -> None:
    """`steps[0].compress.keep=0.3`: the value is YAML; keys on the way are made, list items must exist."""
    path, equals, literal = override.partition("=")
    parts = _PATH.findall(path)
    if not equals or "".join(f".{part}" if part[0] != "[" else part for part in parts) != f".{path}":
        raise must_be("An override", "key=value, with a key like samples or steps[0].compress.keep", override)
    try:
        value = yaml.safe_load(literal)
    except yaml.YAMLError as error:
        raise must_be(f"{ROOT}.{path}", "a YAML value", literal) from error
    here: Any = spelled
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        key = _key(here, part, f"{ROOT}.{path}")
        if following is None:
            here[key] = value
        else:
            here = _inside(here, key)


def _key(here: Any, part: str, place: str) -> Any:
    if part[0] != "[":
        if isinstance(here, dict):
            return part
        raise UserError(f"{place} leads nowhere: '{part}' would be a key of something that is not a mapping.")
    index = int(part[1:-1])
    if not isinstance(here, list):
        raise UserError(f"{place} leads nowhere: {part} would be an item of something that is not a list.")
    if index >= len(here):
        raise must_be(f"{place}, the index {part},", f"below {len(here)}, the length of the list", index)
    return index


def _inside(here: Any, key: Any) -> Any:
    """What lies at `key`; a bare name or nothing there becomes a mapping that can be filled."""
    if isinstance(here, list):
        if isinstance(here[key], str):
            here[key] = {here[key]: {}}
    elif here.get(key) is None:
        here[key] = {}
    elif isinstance(here[key], str):
        here[key] = {here[key]: {}}
    return here[key]
