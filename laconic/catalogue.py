"""Descriptions of laconic's own methods and steps, and the names in `--method`, without importing any of them.

Importing the classes would import torch, which takes seconds. So `python -m laconic.recipe.catalogue` writes their
descriptions to `catalogue.json`; a test compares the file with the classes.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laconic.errors import UserError, must_be, unknown
from laconic.registry import plugins
from laconic.yaml_loader import value_of

PATH = Path(__file__).with_name("catalogue.json")
STEP = "step"
"""The family of the steps."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter, in words: `default` is None where it has to be given."""

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method or a step, in words; a step has no `paper`, and `needs` are a method's statistics by their names.

    what: a sentence on what it does.
    example: a command that uses it.
    distribution: name and version of the plug-in that it comes with; None for laconic's own.
    """

    name: str
    family: str
    needs: tuple[str, ...] = ()
    paper: str | None = None
    what: str
    parameters: tuple[Parameter, ...]
    example: str
    distribution: str | None = None

    @property
    def is_step(self) -> bool:
        """True for a step, which changes a model; False for a method, which solves one matrix."""
        return self.family == STEP


@cache
def catalogue() -> dict[str, Entry]:
    """All methods and steps of laconic by name.

    >>> catalogue()["svd"].family
    'low rank'
    """
    return {line["name"]: _entry(line) for line in json.loads(PATH.read_text(encoding="utf-8"))}


def _entry(line: dict[str, Any]) -> Entry:
    parameters = tuple(Parameter(**one) for one in line["parameters"])
    return Entry(**{**line, "needs": tuple(line["needs"]), "parameters": parameters})


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
    """Look at the name of a method or a step, and at the names of the parameters of a method of laconic's own.

    Those of a plug-in are looked at once it is imported.

    Raises:
        UserError: there is none of that name; or `text` cannot be read, and the sentence begins with `place`.
    """
    name, parameters = split_name(text, place)
    entry = catalogue().get(name)
    added = [plugin.name for plugin in plugins("laconic.methods", "laconic.steps")]
    if entry is None and name not in added:
        raise no_method(name, [*catalogue(), *added])
    if entry is not None and not entry.is_step:
        check_parameters(name, parameters, [one.name for one in entry.parameters])


def no_method(name: str, known: list[str]) -> UserError:
    """The error for a method or step `name` that does not exist."""
    return unknown("method", name, known)


def check_parameters(method: str, given: dict[str, Any], known: list[str]) -> None:
    """Raise UserError where a parameter is `given` that the method has not."""
    for parameter in given:
        if parameter not in known:
            raise unknown("parameter", parameter, known, owner=f"The method '{method}' has")
