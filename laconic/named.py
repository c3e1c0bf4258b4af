"""Parse the text of `--method` and check its names against the catalogue, without importing any method."""

import re
from typing import Any

from laconic.catalogue import catalogue, method_names, step_names
from laconic.errors import UserError, must_be, unknown
from laconic.yaml_loader import value_of

# Not the commas inside of a list or a mapping.
_BETWEEN = re.compile(r",(?![^\[\]{}]*[\]}])")


def split_name(text: str, place: str) -> tuple[str, dict[str, Any]]:
    """The name and the parameters that `text` spells, whatever they are of.

    Raises:
        UserError: these are no parameters; the sentence begins with `place`.

    >>> split_name("svd:rank=64,multiple=16", "--method")
    ('svd', {'rank': 64, 'multiple': 16})
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in _BETWEEN.split(rest))):
        key, equals, literal = item.partition("=")
        if not equals:
            raise must_be(place, "NAME:parameter=value,…", item)
        if key.strip() in parameters:
            raise UserError(f"{place}: The parameter '{key.strip()}' is given twice; give it once.")
        parameters[key.strip()] = value_of(literal, f"{place}, {key.strip()}")
    return name.strip(), parameters


def check_name(text: str, place: str) -> None:
    """Look at the name of a method or a step, and at the names of a method's parameters.

    Raises:
        UserError: there is none of that name; or `text` cannot be read, and the sentence begins with `place`.
    """
    name, parameters = split_name(text, place)
    if name not in catalogue():
        raise no_method(name, [*method_names(), *step_names()])
    entry = catalogue()[name]
    if not entry.is_step:
        check_parameters(name, parameters, [one.name for one in entry.parameters])


def no_method(name: str, known: list[str]) -> UserError:
    """The error for a method or step `name` that does not exist."""
    return unknown("method", name, known)


def check_parameters(method: str, given: dict[str, Any], known: list[str]) -> None:
    """Raise UserError where a parameter is `given` that the method has not."""
    for parameter in given:
        if parameter not in known:
            raise unknown("parameter", parameter, known, owner=f"The method '{method}' has")
