"""Checks of the fields of dataclasses by their annotations, in Python (`Typed`) and in recipes (`construct`).

Without them a wrong value would fail deep inside, or not at all: the text "no" is true. Close types are converted: a
list to a tuple, a NumPy number to a Python one, 8.0 to 8, a path to text. In a recipe text also stands for the number
or truth value that it spells, "2" for 2.
"""

import math
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, get_type_hints

from laconic.bounds import Search, search_of
from laconic.errors import UserError, must_be, placed
from laconic.readers import WrongKindError, anything, readers_of, spelling

Made = TypeVar("Made")


class Typed(ABCMeta):
    """Metaclass of a dataclass with a `name` that checks its fields at construction."""

    def __call__(cls: type[Made], *args: Any, **given: Any) -> Made:
        """Make one.

        Raises:
            UserError: a field is given a value of another kind than its annotation says, or out of its bounds.
        """
        if not given:
            return super().__call__(*args)  # type: ignore[misc]
        read = _read_all(cls, given, cls.name)  # type: ignore[attr-defined]
        made = super().__call__(*args, **read)  # type: ignore[misc]
        # The class itself comes first: it may say more than between what.
        _check_bounds(cls, read, cls.name, read)  # type: ignore[attr-defined]
        return made


def construct(kind: type[Made], values: Mapping[str, Any], place: str) -> Made:
    """A dataclass from the values that a recipe or an option spells.

    Args:
        kind: the dataclass.
        values: by field; there is none for which it has no field, and none is missing.
        place: where the values stand; errors begin with it.

    Raises:
        UserError: a value is of another kind than its field's annotation says, or out of its bounds, or the class
            itself refuses it.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     rank: int
        >>> construct(Size, {"rank": "2"}, "size")
        Size(rank=2)
        >>> construct(Size, {"rank": "many"}, "size")
        Traceback (most recent call last):
            ...
        laconic.errors.UserError: size.rank must be a whole number; got 'many'.
    """
    with spelling(True):
        read = _read_all(kind, values, place)
    _check_bounds(kind, read, place, values)
    for name, value in read.items():
        # Not before: infinity is out of most bounds, and these say more.
        for inner, part in _scalars(value):
            if isinstance(part, float) and not math.isfinite(part):
                raise must_be(f"{place}.{name}{inner}", "a finite number", part)
    try:
        return kind(**read)
    except UserError as error:
        raise placed(error, place) from error


@cache
def searches_of(kind: type) -> Mapping[str, Search]:
    """The search for values out of bounds, for each field that has bounds."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: search_of(hints[field.name]) for field in fields(kind)}
    return {name: search for name, search in found.items() if search is not None}


def _read_all(kind: type, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    readers = readers_of(kind)
    read = {}
    for name, value in values.items():
        try:
            # What it has no field for, Python itself refuses.
            read[name] = readers.get(name, anything)(value)
        except WrongKindError as wrong:
            raise must_be(f"{place}.{name}{wrong.inner}", " or ".join(wrong.kinds), wrong.value) from None
        except UserError as error:
            # Of a dataclass within.
            raise placed(error, f"{place}.{name}") from error
    return read


def _check_bounds(kind: type, values: Mapping[str, Any], place: str, given: Mapping[str, Any]) -> None:
    """Raise where one of `values` is out of bounds; as a whole it is quoted as it was `given`."""
    for name, search in searches_of(kind).items():
        for inner, value, requirement in search(values[name]) if name in values else ():
            raise must_be(f"{place}.{name}{inner}", requirement, value if inner else given[name])


def _scalars(value: object) -> Iterator[tuple[str, object]]:
    """What lists and mappings hold in the end, each with its place: `[2]`, `.ffn`."""
    if isinstance(value, Mapping):
        parts = [(f".{key}", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{index}]", part) for index, part in enumerate(value)]
    else:
        yield "", value
        return
    for place, part in parts:
        yield from ((f"{place}{inner}", scalar) for inner, scalar in _scalars(part))
