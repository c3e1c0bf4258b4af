"""Check the fields of dataclasses against their annotations, in Python (`Typed`) and in recipes (`construct`).

Without these checks a wrong value would raise an error later, or none at all (the text "no" is true). Similar types are
converted: a list to a tuple, a NumPy number to a Python number, 8.0 to 8, a path to text. In recipes, text is also
converted to numbers and booleans ("2" to 2).
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
    """Metaclass that checks the fields of a dataclass when an instance is created.

    The class needs an attribute `name`, which error messages begin with. Only keyword arguments are checked.
    """

    def __call__(cls: type[Made], *args: Any, **given: Any) -> Made:
        """Create an instance after checking the keyword arguments.

        Raises:
            UserError: a value has another type than the annotation of its field, or is out of bounds.
        """
        if not given:
            return super().__call__(*args)  # type: ignore[misc]
        read = _read_all(cls, given, cls.name)  # type: ignore[attr-defined]
        made = super().__call__(*args, **read)  # type: ignore[misc]
        # Bounds are checked after `__post_init__`, whose error messages may be more specific.
        _check_bounds(cls, read, cls.name, read)  # type: ignore[attr-defined]
        return made


def construct(kind: type[Made], values: Mapping[str, Any], place: str) -> Made:
    """Create a dataclass from values of a recipe or of a command line option.

    Args:
        kind: the dataclass.
        values: the value of each field, by its name. All required fields must be present, and no others.
        place: the position of the values, such as `recipe.steps[0]`; error messages begin with it.

    Returns:
        An instance of `kind`.

    Raises:
        UserError: a value has another type than the annotation of its field, or is out of bounds or not finite, or
            `__post_init__` raises a UserError.

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
        # Bounds are checked first: most exclude infinity, and their error messages are more specific.
        for inner, part in _scalars(value):
            if isinstance(part, float) and not math.isfinite(part):
                raise must_be(f"{place}.{name}{inner}", "a finite number", part)
    try:
        return kind(**read)
    except UserError as error:
        raise placed(error, place) from error


@cache
def searches_of(kind: type) -> Mapping[str, Search]:
    """For each field with bounds, the function that yields values out of bounds."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: search_of(hints[field.name]) for field in fields(kind)}
    return {name: search for name, search in found.items() if search is not None}


def _read_all(kind: type, values: Mapping[str, Any], place: str) -> dict[str, Any]:
    readers = readers_of(kind)
    read = {}
    for name, value in values.items():
        try:
            # The constructor itself raises TypeError for an unknown field.
            read[name] = readers.get(name, anything)(value)
        except WrongKindError as wrong:
            raise must_be(f"{place}.{name}{wrong.inner}", " or ".join(wrong.kinds), wrong.value) from None
        except UserError as error:
            # The error of a nested dataclass.
            raise placed(error, f"{place}.{name}") from error
    return read


def _check_bounds(kind: type, values: Mapping[str, Any], place: str, given: Mapping[str, Any]) -> None:
    """Raise UserError if a value is out of bounds; the message quotes the value in `given`, before its conversion."""
    for name, search in searches_of(kind).items():
        for inner, value, requirement in search(values[name]) if name in values else ():
            raise must_be(f"{place}.{name}{inner}", requirement, value if inner else given[name])


def _scalars(value: object) -> Iterator[tuple[str, object]]:
    """All scalars in nested lists and mappings, each after its position, such as `[2]` or `.ffn`."""
    if isinstance(value, Mapping):
        parts = [(f".{key}", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"[{index}]", part) for index, part in enumerate(value)]
    else:
        yield "", value
        return
    for place, part in parts:
        yield from ((f"{place}{inner}", scalar) for inner, scalar in _scalars(part))
