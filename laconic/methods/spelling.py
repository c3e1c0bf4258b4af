"""How a method is written in a recipe or on the command line, and back. The dataclasses are the schema.

`svd`, `svd:rank=64,multiple=16` and `{svd: {rank: 64, multiple: 16}}` all name a method; every mistake is one sentence
with its place.
"""

from dataclasses import fields
from typing import Any

from laconic.errors import must_be, shown
from laconic.methods import METHODS
from laconic.methods.base import Method
from laconic.methods.problem import validated
from laconic.named import check_parameters, no_method, split_name

_BY_NAME = {method.name: method for method in METHODS}


def method_from(value: object, place: str) -> Method:
    """The method that `value` spells.

    Raises:
        UserError: an unknown name or parameter, or a value out of range; the sentence begins with `place`.
    """
    name, parameters = named(value, place)
    if name not in _BY_NAME:
        raise no_method(name, list(_BY_NAME))
    kind = _BY_NAME[name]
    check_parameters(name, parameters, [field.name for field in fields(kind)])
    for field in fields(kind):
        if isinstance(field.default, Method) and field.name in parameters:
            part = method_from(parameters[field.name], f"{place}.{name}.{field.name}")
            parameters = {**parameters, field.name: part}
    return validated(kind, parameters, f"{place}.{name}")


def spell(method: Method) -> dict[str, dict[str, Any]]:
    """The recipe's line for `method`: its name and the parameters that differ from the defaults."""
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    changed = {field.name: values[field.name] for field in fields(method) if values[field.name] != field.default}
    return {method.name: {key: spell(value) if isinstance(value, Method) else value for key, value in changed.items()}}


def named(value: object, place: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters that `value` spells, whatever they are of.

    Raises:
        UserError: it is no name with parameters; the sentence begins with `place`.
    """
    if isinstance(value, str):
        return split_name(value, place)
    if isinstance(value, dict) and len(value) == 1:
        name, parameters = next(iter(value.items()))
        if parameters is None:
            parameters = {}
        if isinstance(parameters, dict):
            return str(name), parameters
    raise must_be(place, f"a method's name or {{name: {{parameter: value}}}}{_hint(value)}", value)


def _hint(value: object) -> str:
    """How a mapping that has the method's name as one of its values is written."""
    if not isinstance(value, dict):
        return ""
    key = next((key for key, name in value.items() if isinstance(name, str) and name in _BY_NAME), None)
    if key is None:
        return ""
    return f", so {shown({value[key]: {other: part for other, part in value.items() if other != key}})}"
