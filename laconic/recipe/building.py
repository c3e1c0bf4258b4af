"""Build dataclasses from YAML mappings, and apply overrides such as `steps[0].compress.keep=0.3` to a mapping.

An unknown key, a missing key or a wrong value raises a `UserError` that begins with its place in the file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from laconic.allocate import Plan, parse_plan, read_plan
from laconic.errors import UserError, add_place, must_be, quote, unknown
from laconic.methods import Method
from laconic.methods.registry import METHOD_REGISTRY, parse_method
from laconic.typed import construct
from laconic.yaml_loader import parse_value, parse_yaml


def parse_mapping(text: str, place: str, content: str) -> dict[str, Any]:
    """Parse YAML text whose top level must be a mapping.

    Args:
        text: the YAML.
        place: the name of the text in errors, such as its path; error messages begin with it.
        content: the expected content in words, for error messages.

    Raises:
        UserError: the text is not valid YAML, or its top level is not a mapping.

    Example:
        >>> parse_mapping("keep: 0.5", "The recipe", "a model")
        {'keep': 0.5}
    """
    values = parse_yaml(text, place)
    if not isinstance(values, dict):
        raise must_be(place, f"a mapping with {content}", values)
    return values


def build(kind: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """Build a dataclass from a mapping that was read from YAML; nested dataclasses, methods and plans are built too.

    Args:
        kind: the dataclass.
        values: the value of each field, by the name of the field.
        place: the position of the mapping in the file, such as `recipe.evaluate`; error messages begin with it.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: a key is unknown, a required key is missing, or a value is invalid.

    Example:
        >>> from laconic.calibrate.passes import Workload
        >>> build(Workload, {"batch": 4}, "workload").batch
        4
    """
    by_name = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in by_name:
            raise add_place(_method_parameter_error(kind, values, str(key)) or unknown("key", str(key), by_name), place)
    for name, field in by_name.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{place}.{name} is missing; give it a value.")
    hints = get_type_hints(kind)
    read = {key: _read(hints[key], value, f"{place}.{key}") for key, value in values.items()}
    return construct(kind, read, place)


def _method_parameter_error(kind: type[Any], values: Mapping[str, Any], key: str) -> UserError | None:
    """The error for a method's parameter that was written beside the method; None if `key` is no such parameter."""
    hints = get_type_hints(kind)
    name = next((value for field, value in values.items() if hints.get(field) is Method), None)
    method = METHOD_REGISTRY.find(name) if isinstance(name, str) else None
    if method is None or key not in {field.name for field in fields(method)}:
        return None
    method_fields = {field.name for field in fields(method)} - hints.keys()
    parameters = {field: value for field, value in values.items() if field in method_fields}
    return UserError(
        f"There is no key '{key}' here: it is a parameter of the method '{name}', so write method: "
        f"{quote({name: parameters})}."
    )


def _read(hint: object, value: Any, place: str) -> Any:
    """Convert a YAML value to the type `hint` if that is a method, a plan or a dataclass; else return it unchanged."""
    readers: dict[object, Callable[[Any, str], Any]] = {Method: parse_method, Plan: _plan, Plan | None: _plan}
    reader = readers.get(hint)
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next((part for part in alternatives if isinstance(part, type) and is_dataclass(part)), None)
    if reader is None and kind is not None and isinstance(value, dict):
        return build(kind, value, place)
    try:
        return value if reader is None else reader(value, place)
    except UserError as error:
        raise add_place(error, place) from error


def _plan(value: Any, place: str) -> Plan | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_plan(Path(value))
    return parse_plan(value, place)


_PATH = re.compile(r"[A-Za-z_][\w-]*|\[\d+\]")


def apply_overrides(values: dict[str, Any], overrides: Sequence[str], root: str) -> None:
    """Apply overrides of the form `key=value` to the mapping of a recipe or a study, in place.

    Args:
        values: the mapping, as read from YAML.
        overrides: texts such as `steps[0].compress.keep=0.3`; the part after `=` is parsed as YAML.
        root: the name of the mapping in error messages, such as "recipe".

    Raises:
        UserError: an override has another form or names a list item that does not exist, or two overrides have the same
            key.
    """
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            raise UserError(f"{root}.{key} is overridden {keys.count(key)} times; give it once.")
        apply_override(values, override, root)


def apply_override(values: dict[str, Any], override: str, root: str) -> None:
    """Apply one override such as `steps[0].compress.keep=0.3` in place.

    Args:
        values: the mapping, as read from YAML. Missing keys on the path are added; list items must exist.
        override: the path, `=`, and the value as YAML.
        root: the name of the mapping in error messages.

    Raises:
        UserError: the override has another form, or a list item does not exist.
    """
    path, equals, literal = override.partition("=")
    parts = _PATH.findall(path)
    if not equals or "".join(f".{part}" if part[0] != "[" else part for part in parts) != f".{path}":
        raise must_be("An override", "key=value, with a key like samples or steps[0].compress.keep", override)
    value = parse_value(literal, f"{root}.{path}")
    container: Any = values
    for part in parts[:-1]:
        key = _key(container, part, f"{root}.{path}")
        # A missing value becomes an empty mapping, and a bare name becomes `{name: {}}`.
        inner = container[key] if isinstance(container, list) else container.get(key, {})
        if inner is None and isinstance(container, dict):
            inner = {}
        container[key] = {inner: {}} if isinstance(inner, str) else inner
        container = container[key]
    container[_key(container, parts[-1], f"{root}.{path}")] = value


def _key(container: Any, part: str, place: str) -> Any:
    if part[0] != "[":
        if isinstance(container, dict):
            return part
        raise UserError(f"{place} does not exist: '{part}' would be a key of a value that is not a mapping.")
    index = int(part[1:-1])
    if not isinstance(container, list):
        raise UserError(f"{place} does not exist: {part} would be an item of a value that is not a list.")
    if index >= len(container):
        raise must_be(f"{place}, the index {part},", f"below {len(container)}, the length of the list", index)
    return index
