"""A dataclass of what YAML spells: unknown keys, missing ones and wrong values are one sentence with their place."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from laconic.allocate import Plan, parse_plan, read_plan
from laconic.errors import UserError, must_be, shown, unknown
from laconic.methods import METHODS, Method
from laconic.methods.notation import parse_method
from laconic.methods.problem import placed, validated
from laconic.yaml_loader import parsed


def mapping_of(text: str, place: str, holds: str) -> dict[str, Any]:
    """The mapping that `text` spells; errors begin with `place`, and `holds` says what must be in it.

    Raises:
        UserError: it spells something else.
    """
    spelled = parsed(text, place)
    if not isinstance(spelled, dict):
        raise must_be(place, f"a mapping with {holds}", spelled)
    return spelled


def build(kind: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """The dataclass `kind` of these values: unknown keys first, then missing ones, then each value."""
    known = {field.name: field for field in fields(kind)}
    for key in values:
        if key not in known:
            raise placed(_of_a_method(kind, values, str(key)) or unknown("key", str(key), known), place)
    for name, field in known.items():
        if name not in values and _is_required(field):
            raise UserError(f"{place}.{name} is missing; give it a value.")
    hints = get_type_hints(kind)
    read = {key: _read(hints[key], value, f"{place}.{key}") for key, value in values.items()}
    return validated(kind, read, place)


def _of_a_method(kind: type[Any], values: Mapping[str, Any], key: str) -> UserError | None:
    """What is wrong where `key` is a parameter of the method among `values`, which was named without any."""
    hints = get_type_hints(kind)
    name = next((value for field, value in values.items() if hints.get(field) is Method), None)
    method = next((method for method in METHODS if method.name == name), None)
    if method is None or key not in {field.name for field in fields(method)}:
        return None
    own = {field.name for field in fields(method)} - hints.keys()
    given = {one: value for one, value in values.items() if one in own}
    return UserError(
        f"There is no key '{key}' here: it is a parameter of the method '{name}', so write method: "
        f"{shown({name: given})}."
    )


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _read(hint: object, value: Any, place: str) -> Any:
    """What YAML spells in a form of its own, by the type that is asked for: methods, plans, mappings of fields."""
    readers: dict[object, Callable[[Any, str], Any]] = {Method: parse_method, Plan: _plan, Plan | None: _plan}
    reader = readers.get(hint)
    kind = next((one for one in _alternatives(hint) if isinstance(one, type) and is_dataclass(one)), None)
    if reader is None and kind is not None and isinstance(value, dict):
        return build(kind, value, place)
    try:
        return value if reader is None else reader(value, place)
    except UserError as error:
        raise placed(error, place) from error


def _alternatives(hint: object) -> tuple[object, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _plan(value: Any, place: str) -> Plan | None:
    if value is None:
        return None
    if isinstance(value, str):
        return read_plan(Path(value))
    return parse_plan(value, place)
