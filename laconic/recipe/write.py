"""`Recipe` in, YAML out: the resolved recipe, every value written down, so that a changed default cannot change it."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from enum import StrEnum
from typing import Any

import yaml

from laconic.allocate import plan_to_config
from laconic.compress import Step
from laconic.methods import Method
from laconic.methods.notation import to_config
from laconic.recipe.schema import Recipe


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that `laconic run` takes."""
    return yaml.safe_dump(spell_recipe(recipe), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def spell_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe in plain values; what is None is left out."""
    return _fields(recipe)


def spell_step(step: Step) -> dict[str, Any]:
    """One step in plain values."""
    return {step.name: _fields(step)}


def key_of(recipe: Recipe) -> str:
    """Sixteen hexadecimal digits that name the result: a hash of everything in the recipe that decides it."""
    text = json.dumps(spell_recipe(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fields(value: Any) -> dict[str, Any]:
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(name, part) for name, part in named.items() if part is not None}


def _plain(name: str, value: Any) -> Any:
    match value:
        case Method():
            spelled = to_config(value)
            return spelled if spelled[value.name] else value.name
        case Step():
            return spell_step(value)
        case tuple():
            return [_plain(name, part) for part in value]
        case dict():
            return plan_to_config(value) if name == "plan" else {key: _plain(name, part) for key, part in value.items()}
        case _ if is_dataclass(value):
            return _fields(value)
        case _:
            return value.value if isinstance(value, StrEnum) else value
