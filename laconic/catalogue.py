"""Descriptions of the methods and steps of laconic, read from `catalogue.json`, and the parser of `--method`.

Importing the classes themselves would import torch, which takes seconds. `python -m laconic.recipe.catalogue` writes
the file; a test compares it with the classes.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laconic.errors import UserError, must_be, unknown
from laconic.registry import plugins
from laconic.yaml_loader import parse_value

PATH = Path(__file__).with_name("catalogue.json")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """The description of one parameter.

    Args:
        name: its name.
        type: its type in words.
        default: its default as text; None if the parameter is required.
        meaning: its description from the docstring.
    """

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The description of a method or a step.

    Args:
        name: its name in `--method` and in recipes.
        is_step: True for a step, which changes a model; False for a method, which solves one matrix.
        family: the kind of compression; empty for a step that compresses nothing itself.
        needs_data: True if the example needs calibration data.
        needs: the names of the statistics that a method needs; empty for a step.
        paper: the reference of a method; None for a step.
        what: one sentence on what it does.
        parameters: its parameters, in order.
        example: a command line that uses it; for `compress`, which `--method` does not take, a line of a recipe.
        distribution: name and version of the plug-in that provides it; None for laconic itself.
    """

    name: str
    is_step: bool
    family: str
    needs_data: bool
    needs: tuple[str, ...] = ()
    paper: str | None = None
    what: str
    parameters: tuple[Parameter, ...]
    example: str
    distribution: str | None = None


@cache
def catalogue() -> dict[str, Entry]:
    """All methods and steps of laconic by name.

    >>> catalogue()["svd"].family
    'low rank'
    """
    return {line["name"]: _entry(line) for line in json.loads(PATH.read_text(encoding="utf-8"))}


def _entry(line: dict[str, Any]) -> Entry:
    parameters = tuple(Parameter(**entry) for entry in line["parameters"])
    return Entry(**{**line, "needs": tuple(line["needs"]), "parameters": parameters})


def split_name(text: str, place: str) -> tuple[str, dict[str, Any]]:
    """Split a text of the form `NAME:parameter=value,…` into the name and the parameters. The name is not looked up.

    Raises:
        UserError: a part has another form, or a parameter occurs twice; the message begins with `place`.

    >>> split_name("svd:rank=64,multiple=16", "--method")
    ('svd', {'rank': 64, 'multiple': 16})
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in _split_at_commas(rest))):
        key, equals, literal = item.partition("=")
        if not equals:
            raise must_be(place, "NAME:parameter=value,…", item)
        if key.strip() in parameters:
            raise UserError(f"{place}: The parameter '{key.strip()}' is given twice; give it once.")
        parameters[key.strip()] = parse_value(literal, f"{place}, {key.strip()}")
    return name.strip(), parameters


def _split_at_commas(text: str) -> list[str]:
    """The parts between commas that are in no list and no mapping.

    >>> _split_at_commas("methods=[gptq,{svd: {rank: 2, multiple: 1}}],seed=0")
    ['methods=[gptq,{svd: {rank: 2, multiple: 1}}]', 'seed=0']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def check_name(text: str, place: str) -> None:
    """Check that a method or step exists, and that a method of laconic itself has the named parameters.

    The parameters of a plug-in are checked later, when the plug-in is imported.

    Args:
        text: text of the form `NAME:parameter=value,…`.
        place: the name of the option in error messages.

    Raises:
        UserError: there is no such method, step or parameter, or `text` has another form.
    """
    name, parameters = split_name(text, place)
    entry = catalogue().get(name)
    added = [plugin.name for plugin in plugins("laconic.methods", "laconic.steps")]
    if entry is None and name not in added:
        raise no_method(name, [*catalogue(), *added])
    if entry is not None and not entry.is_step:
        check_parameters(name, parameters, [parameter.name for parameter in entry.parameters])


def no_method(name: str, known: list[str]) -> UserError:
    """The error for a method or step `name` that does not exist."""
    return unknown("method", name, known)


def check_parameters(method: str, parameters: dict[str, Any], known: list[str]) -> None:
    """Raise UserError if a name in `parameters` is not among the `known` parameters of the method."""
    for parameter in parameters:
        if parameter not in known:
            raise unknown("parameter", parameter, known, owner=f"The method '{method}' has")
