"""Methods by name: parse one from a recipe or the command line, and write it back. The dataclasses are the schema.

`svd`, `svd:rank=64,multiple=16` and `{svd: {rank: 64, multiple: 16}}` all name a method.
"""

from dataclasses import fields
from functools import partial
from typing import Any, TypeGuard

from laconic.catalogue import catalogue, check_parameters, split_name
from laconic.errors import must_be, quote
from laconic.methods import METHODS
from laconic.methods.base import Method
from laconic.registry import Registry, check_named_class
from laconic.typed import construct

METHOD_REGISTRY: Registry[type[Method]] = Registry(
    "laconic.methods",
    "method",
    {method.name: method for method in METHODS},
    check=partial(check_named_class, Method),
    reserved=catalogue,
)
"""The methods of laconic and of plug-ins, by the name that recipes give them."""


def parse_method(value: object, place: str) -> Method:
    """The method that a recipe or the command line names.

    Args:
        value: text such as `svd:rank=64`, or a mapping `{name: {parameter: value}}`.
        place: where the value stands, for errors.

    Raises:
        UserError: an unknown name or parameter, or a value out of range. The sentence begins with `place`.

    Example:
        >>> parse_method("svd:rank=64", "--method")
        Svd(rank=64, rank_ratio=None, multiple=8)
    """
    name, parameters = split_config(value, place)
    kind = METHOD_REGISTRY.get(name)
    check_parameters(name, parameters, [field.name for field in fields(kind)])
    for field in fields(kind):
        if field.name in parameters:
            at = f"{place}.{name}.{field.name}"
            parameters = {**parameters, field.name: _parse_parts(field.default, parameters[field.name], at)}
    return construct(kind, parameters, f"{place}.{name}")


def to_config(method: Method) -> dict[str, dict[str, Any]]:
    """The recipe's mapping for a method: its name, and the parameters that differ from the defaults.

    Example:
        >>> to_config(parse_method("svd:rank=64,multiple=8", "--method"))
        {'svd': {'rank': 64}}
    """
    values = {field.name: getattr(method, field.name) for field in fields(method)}
    changed = {field.name: values[field.name] for field in fields(method) if values[field.name] != field.default}
    return {method.name: {key: _parts_to_config(value) for key, value in changed.items()}}


def method_text(method: Method) -> str:
    """The method as the command line names it.

    Example:
        >>> method_text(parse_method("svd:rank=64,multiple=8", "--method"))
        'svd:rank=64'
    """
    ((name, parameters),) = to_config(method).items()
    settings = ",".join(f"{key}={'null' if value is None else value}" for key, value in parameters.items())
    return f"{name}:{settings}" if settings else name


def has_methods(value: object) -> bool:
    """Whether the value of a parameter is a method, or several."""
    return isinstance(value, Method) or _are_methods(value)


def _parse_parts(default: object, value: Any, place: str) -> Any:
    """The method, or the tuple of methods, of a parameter that has methods as its default; another value unchanged."""
    if isinstance(default, Method):
        return parse_method(value, place)
    if _are_methods(default) and isinstance(value, (list, tuple)):
        return tuple(parse_method(part, f"{place}[{number}]") for number, part in enumerate(value))
    return value


def _parts_to_config(value: object) -> Any:
    if isinstance(value, Method):
        return to_config(value)
    return [to_config(part) for part in value] if _are_methods(value) else value


def _are_methods(value: object) -> TypeGuard[tuple[Method, ...]]:
    return isinstance(value, tuple) and bool(value) and all(isinstance(part, Method) for part in value)


def split_config(value: object, place: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters of a method or step in a recipe.

    Args:
        value: text, or a mapping of one name to its parameters.
        place: where the value stands, for errors.

    Raises:
        UserError: it is neither. The sentence begins with `place`.

    Example:
        >>> split_config({"svd": None}, "steps[0]")
        ('svd', {})
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
    """The end of an error, `, so {…}`, with the right notation if a value of the mapping names a method; else ""."""
    if not isinstance(value, dict):
        return ""
    key = next((key for key, name in value.items() if isinstance(name, str) and name in METHOD_REGISTRY.names()), None)
    if key is None:
        return ""
    return f", so {quote({value[key]: {other: part for other, part in value.items() if other != key}})}"
