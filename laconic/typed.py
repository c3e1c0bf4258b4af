"""Check the fields of dataclasses against their annotations, in Python (`Typed`) and in recipes (`construct`).

Without these checks a wrong value would raise an error later, or none at all (the text "no" is true). Similar types are
converted: a list to a tuple, a NumPy number to a Python number, 8.0 to 8, a path to text. In recipes, text is also
converted to numbers and booleans ("2" to 2). Numbers are compared with the bounds in their annotation:
`Annotated[float, Field(gt=0, le=1)]` is a number in (0, 1].
"""

import math
import re
from abc import ABCMeta
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from inspect import cleandoc
from numbers import Real
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from laconic.errors import UserError, add_place, must_be
from laconic.field_readers import WrongKindError, anything, converting_text, readers_of

Made = TypeVar("Made")
_ARGS = re.compile(r"^Args:\n((?:    .*\n?)*)", re.MULTILINE)
_FIELD = re.compile(r"^    (\w+): .*(?:\n     .*)*", re.MULTILINE)
_LATER_SECTION = re.compile(r"^(Raises|Example):$", re.MULTILINE)


class Typed(ABCMeta):
    """Metaclass that checks the fields of a dataclass when an instance is created.

    The class needs an attribute `name`, which error messages begin with. Only keyword arguments are checked.
    The docstring need not describe inherited fields: their descriptions are copied from the base class.
    """

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        if cls.__doc__ is not None and "__doc__" in namespace:
            for base in filter(is_dataclass, bases):
                cls.__doc__ = add_fields(cls.__doc__, base.__doc__ or "", [field.name for field in fields(base)])

    def __call__(cls: type[Made], *args: Any, **values: Any) -> Made:
        """Create an instance after checking the keyword arguments.

        Raises:
            UserError: a value has another type than the annotation of its field, or is out of bounds.
        """
        if not values:
            return type.__call__(cls, *args)
        named: Any = cls
        read = _read_all(cls, values, named.name)
        made: Made = type.__call__(cls, *args, **read)
        # Bounds are checked after `__post_init__`, whose error messages may be more specific.
        _check_bounds(cls, read, named.name, read)
        return made


def add_fields(docstring: str, inherited: str, names: Iterable[str]) -> str:
    """Add descriptions of fields from another docstring to the `Args:` section of a docstring.

    Args:
        docstring: the docstring of a class. Its own descriptions are kept.
        inherited: the docstring of the base class.
        names: the fields of the base class; they come first, in the order of `inherited`.

    Example:
        >>> print(add_fields("A child.\\n\\nArgs:\\n    b: two.", "A base.\\n\\nArgs:\\n    a: one.", ["a"]))
        A child.
        <BLANKLINE>
        Args:
            a: one.
            b: two.
    """
    text, base_names = cleandoc(docstring), set(names)
    own, base = (dict(_entries(part)) for part in (text, cleandoc(inherited)))
    entries = {name: entry for name, entry in base.items() if name in base_names} | own
    section = "\n".join(("Args:", *entries.values()))
    if not entries or entries.keys() == own.keys():
        return docstring
    if own:
        return _ARGS.sub(lambda found: section + "\n" * (found[0].endswith("\n")), text, count=1)
    later = _LATER_SECTION.search(text)
    return f"{text[: later.start()]}{section}\n\n{text[later.start() :]}" if later else f"{text}\n\n{section}"


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The names of the fields in the `Args:` section of a docstring, with their lines."""
    section = _ARGS.search(docstring)
    yield from ((found[1], found[0]) for found in _FIELD.finditer(section[1] if section else ""))


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
    with converting_text(True):
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
        raise add_place(error, place) from error


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
            raise add_place(error, f"{place}.{name}") from error
    return read


def _check_bounds(kind: type, values: Mapping[str, Any], place: str, original: Mapping[str, Any]) -> None:
    """Raise UserError if a value is out of bounds; the message quotes the unconverted value in `original`."""
    for name, hint in _bounded_fields(kind).items():
        for inner, value, requirement in _out_of_bounds(hint, values[name]) if name in values else ():
            raise must_be(f"{place}.{name}{inner}", requirement, value if inner else original[name])


@cache
def _bounded_fields(kind: type) -> Mapping[str, Any]:
    """The annotation of each field with bounds."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind) if interval_of(hints[field.name]) is not None}


def interval_of(hint: object) -> str | None:
    """The interval of the first number with bounds in an annotation, as text; None if it has no bounds.

    >>> from pydantic import Field
    >>> interval_of(Annotated[float, Field(gt=0, le=1)] | None)
    '(0, 1]'
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated and (bounds := _bounds_in(parts[1:])):
        return _interval(bounds)
    return next((found for part in parts if (found := interval_of(part))), None)


def _out_of_bounds(hint: object, value: Any) -> Iterator[tuple[str, object, str]]:
    """Yield each number in a value that is out of bounds: its position inside the value, the number, its bounds.

    The position is "" for the value itself, and otherwise such as `[2]` or `.ffn`. Values of other types are skipped.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = _bounds_in(parts[1:])
        fewest = max((bound.min_length for bound in bounds if isinstance(bound, MinLen)), default=0)
        if isinstance(value, tuple) and len(value) < fewest:
            yield "", value, f"a list of at least {fewest}"
        if isinstance(value, Real) and not isinstance(value, bool) and not all(_fits(value, bound) for bound in bounds):
            yield "", value, f"in {_interval(bounds)}"
        yield from _out_of_bounds(parts[0], value)
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _out_of_bounds(part, value)
    elif origin is tuple and isinstance(value, tuple):
        for part in parts:
            for index, item in enumerate(value):
                yield from _inside(f"[{index}]", part, item)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(f".{key}", parts[1], item)


def _inside(place: str, hint: object, item: object) -> Iterator[tuple[str, object, str]]:
    for inner, number, requirement in _out_of_bounds(hint, item):
        yield f"{place}{inner}", number, requirement


def _bounds_in(extras: tuple[object, ...]) -> list[Any]:
    return [bound for extra in extras if isinstance(extra, FieldInfo) for bound in extra.metadata]


def _fits(value: Any, bound: Any) -> bool:
    match bound:
        case Gt(gt=low):
            return value > low
        case Ge(ge=low):
            return value >= low
        case Lt(lt=high):
            return value < high
        case Le(le=high):
            return value <= high
        case _:
            return True


def _interval(bounds: list[Any]) -> str:
    left, right = "(-∞", "∞)"
    for bound in bounds:
        match bound:
            case Gt(gt=low):
                left = f"({low}"
            case Ge(ge=low):
                left = f"[{low}"
            case Lt(lt=high):
                right = f"{high})"
            case Le(le=high):
                right = f"{high}]"
    return f"{left}, {right}"


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
