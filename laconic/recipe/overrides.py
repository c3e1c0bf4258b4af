"""Values of a recipe changed by their place: `steps[0].compress.keep=0.3`."""

import re
from collections.abc import Sequence
from typing import Any

from laconic.errors import UserError, must_be
from laconic.yaml_loader import value_of

_PATH = re.compile(r"[A-Za-z_][\w-]*|\[\d+\]")


def put_all(spelled: dict[str, Any], overrides: Sequence[str], root: str) -> None:
    """Every `key=value` of `overrides` put in its place.

    Raises:
        UserError: one is no override, leads nowhere, or is given twice.
    """
    keys = [override.partition("=")[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        if keys.count(key) > 1:
            raise UserError(f"{root}.{key} is given {keys.count(key)} times after the file; give it once.")
        put(spelled, override, root)


def put(spelled: dict[str, Any], override: str, root: str) -> None:
    """`steps[0].compress.keep=0.3`: the value is YAML; keys on the way are made, list items must exist."""
    path, equals, literal = override.partition("=")
    parts = _PATH.findall(path)
    if not equals or "".join(f".{part}" if part[0] != "[" else part for part in parts) != f".{path}":
        raise must_be("An override", "key=value, with a key like samples or steps[0].compress.keep", override)
    value = value_of(literal, f"{root}.{path}")
    here: Any = spelled
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        key = _key(here, part, f"{root}.{path}")
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
