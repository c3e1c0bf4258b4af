"""A metaclass for dataclasses that checks types and bounds of the fields at construction, by their annotations.

Without it a wrong value would fail deep inside, or not at all: the text "no" is true. Recipes are checked by the same
annotations (`laconic.methods.problem`). Close types are converted: a list to a tuple, a NumPy number to a Python one,
8.0 to 8, a path to text.
"""

import math
import os
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from laconic.bounds import Outside, Search, search_of
from laconic.errors import must_be

Made = TypeVar("Made")
Parts = tuple[Any, ...]
"""What a type is made of: `str` and `int` of `dict[str, int]`."""
Reader = Callable[[Any], Any]
"""From what was given to what the field holds; raises `WrongKindError`."""


class Typed(ABCMeta):
    """Metaclass of a dataclass with a `name` that checks its fields at construction."""

    def __call__(cls: type[Made], *args: Any, **given: Any) -> Made:
        """Make one.

        Raises:
            UserError: a field is given a value of another kind than its annotation says, or out of its bounds.
        """
        if not given:
            return super().__call__(*args)  # type: ignore[misc]
        readers, searches = readers_of(cls), searches_of(cls)
        read = {name: _read(cls, name, value, readers) for name, value in given.items()}
        made = super().__call__(*args, **read)  # type: ignore[misc]
        # The class itself comes first: it may say more than between what.
        for name, search in searches.items():
            if name in read:
                _check(cls, name, search(read[name]))
        return made


class WrongKindError(Exception):
    """A value is of no kind that a field may have.

    kinds: what may be there. inner: where that is within what was given to the field, `[2]` or `.ffn`.
    """

    def __init__(self, value: object, *kinds: str, inner: str = "") -> None:
        super().__init__()
        self.value, self.kinds, self.inner = value, kinds, inner

    def within(self, inner: str) -> "WrongKindError":
        """The same of a value that holds this one at `inner`."""
        return WrongKindError(self.value, *self.kinds, inner=f"{inner}{self.inner}")


@cache
def readers_of(kind: type) -> Mapping[str, Reader]:
    """The reader of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: reader_of(hints[field.name]) for field in fields(kind)}


@cache
def searches_of(kind: type) -> Mapping[str, Search]:
    """The search for values out of bounds, for each field that has bounds."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: search_of(hints[field.name]) for field in fields(kind)}
    return {name: search for name, search in found.items() if search is not None}


def _read(kind: Any, name: str, value: object, readers: Mapping[str, Reader]) -> Any:
    try:
        # What it has no field for, Python itself refuses.
        return readers.get(name, _anything)(value)
    except WrongKindError as wrong:
        raise must_be(f"{kind.name}.{name}{wrong.inner}", " or ".join(wrong.kinds), wrong.value) from None


def _check(kind: Any, name: str, found: Iterator[Outside]) -> None:
    for inner, value, requirement in found:
        raise must_be(f"{kind.name}.{name}{inner}", requirement, value)


def reader_of(hint: Any) -> Reader:
    """A function that checks and converts values of the type `hint`; it accepts anything for types it does not know."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return reader_of(parts[0])
    if origin in _COMPOUND:
        return _COMPOUND[origin](parts)
    if origin is None and isinstance(hint, type):
        return _PLAIN.get(hint) or (_member(hint) if issubclass(hint, Enum) else _instance(hint))
    return _anything


def _anything(value: Any) -> Any:
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise WrongKindError(value, "a whole number, no truth value")
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    raise WrongKindError(value, "a whole number")


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise WrongKindError(value, "a number, no truth value")
    if not isinstance(value, Real):
        raise WrongKindError(value, "a number")
    if not math.isfinite(value):
        raise WrongKindError(value, "a finite number")
    return float(value)


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    # NumPy has its own, which no abstract class of Python's knows.
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise WrongKindError(value, "true or false")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise WrongKindError(value, "text")


_PLAIN: Mapping[Any, Reader] = {bool: _truth, int: _whole, float: _number, str: _text, Any: _anything}


def _literal(known: Parts) -> Reader:
    *first, last = map(repr, known)
    words = f"{', '.join(first)} or {last}" if first else last

    def read(value: Any) -> Any:
        for one in known:
            # True is 1 to Python; and what compares with nothing else need not say true or false.
            if isinstance(value, bool) == isinstance(one, bool) and isinstance(value, (str, Real)) and value == one:
                return one
        raise WrongKindError(value, words)

    return read


def _member(kind: type[Enum]) -> Reader:
    value_of = _literal(tuple(one.value for one in kind))
    return lambda value: value if isinstance(value, kind) else kind(value_of(value))


def _items(parts: Parts) -> Reader:
    many = len(parts) == 2 and parts[1] is Ellipsis
    readers = [reader_of(part) for part in parts if part is not Ellipsis]

    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise WrongKindError(value, "a list")
        if not many and len(value) != len(readers):
            raise WrongKindError(value, f"a list of {len(readers)}")
        each = readers * len(value) if many else readers
        return tuple(_inside(each[index], one, f"[{index}]") for index, one in enumerate(value))

    return read


def _mapping(parts: Parts) -> Reader:
    keys, values = map(reader_of, parts)

    def key_of(key: Any) -> Any:
        try:
            return keys(key)
        except WrongKindError as wrong:
            raise WrongKindError(key, *(f"a mapping whose keys are {kind}" for kind in wrong.kinds)) from None

    def read(value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise WrongKindError(value, "a mapping")
        return {key_of(key): _inside(values, one, f".{key}") for key, one in value.items()}

    return read


def _inside(reader: Reader, value: Any, inner: str) -> Any:
    try:
        return reader(value)
    except WrongKindError as wrong:
        raise wrong.within(inner) from None


def _instance(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        raise WrongKindError(value, f"an object of the class {kind.__name__}")

    return read


def _union(parts: Parts) -> Reader:
    optional = NoneType in parts
    readers = [reader_of(part) for part in parts if part is not NoneType]

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        wrongs: list[WrongKindError] = []
        for reader in readers:
            try:
                return reader(value)
            except WrongKindError as wrong:
                wrongs.append(wrong)
        # What is right but for something inside of it is what was meant.
        deepest = max(wrongs, key=lambda wrong: len(wrong.inner))
        if deepest.inner:
            raise deepest
        raise WrongKindError(value, *dict.fromkeys(kind for wrong in wrongs for kind in wrong.kinds))

    return read


_COMPOUND: Mapping[Any, Callable[[Parts], Reader]] = {
    Union: _union,
    UnionType: _union,
    Literal: _literal,
    tuple: _items,
    dict: _mapping,
    Mapping: _mapping,
}
