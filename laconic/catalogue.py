"""Descriptions of all methods and steps, for `laconic methods` and the check of `--method`.

Importing the classes would import torch, which takes seconds. So `python -m laconic.recipe.catalogue` writes their
descriptions to `catalogue.json`; a test compares the file with the classes.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
    """

    name: str
    family: str
    needs: tuple[str, ...] = ()
    paper: str | None = None
    what: str
    parameters: tuple[Parameter, ...]
    example: str

    @property
    def is_step(self) -> bool:
        """True for a step, which changes a model; False for a method, which solves one matrix."""
        return self.family == STEP


@cache
def catalogue() -> dict[str, Entry]:
    """All methods and steps by name.

    >>> catalogue()["svd"].family
    'low rank'
    """
    return {line["name"]: _entry(line) for line in json.loads(PATH.read_text(encoding="utf-8"))}


def method_names() -> list[str]:
    """Names of the methods, in catalogue order."""
    return [entry.name for entry in catalogue().values() if not entry.is_step]


def step_names() -> list[str]:
    """Names of the steps, in catalogue order."""
    return [entry.name for entry in catalogue().values() if entry.is_step]


def _entry(line: dict[str, Any]) -> Entry:
    parameters = tuple(Parameter(**one) for one in line["parameters"])
    return Entry(**{**line, "needs": tuple(line["needs"]), "parameters": parameters})
