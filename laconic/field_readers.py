"""Readers for the types of dataclass fields: a reader checks a value and converts it, or raises `WrongKindError`.

In recipes, readers also convert text to a number or a boolean ("2" to 2), and a mapping to a dataclass.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from inspect import isabstract
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Parts = tuple[Any, ...]
"""The arguments of a generic type: `str` and `int` for `dict[str, int]`."""
Reader = Callable[[Any], Any]
"""Converts a value to the type of a field, or raises `WrongKindError`."""
_SPELLED: ContextVar[bool] = ContextVar("laconic-spelled", default=False)
"""Whether readers convert text to numbers and booleans."""
NO_TRUTH = "no truth value"
TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""Text that is converted to a boolean in a recipe."""


class WrongKindError(Exception):
    """A value has the wrong type for its field.

    Args:
        value: the wrong value.
        kinds: descriptions of the accepted types.
        inner: the position of the value inside the value of the field, such as `[2]` or `.ffn`.
    """

    def __init__(self, value: object, *kinds: str, inner: str = "") -> None:
        super().__init__()
        self.value, self.kinds, self.inner = value, kinds, inner

    def within(self, inner: str) -> "WrongKindError":
        """The same error for a container that has the wrong value at position `inner`."""
        return WrongKindError(self.value, *self.kinds, inner=f"{inner}{self.inner}")


@cache
def readers_of(kind: type) -> Mapping[str, Reader]:
    """The reader of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: reader_of(hints[field.name]) for field in fields(kind)}


def reader_of(hint: Any) -> Reader:
    """Make a reader for the type `hint`. For an unknown type, the reader accepts every value."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return reader_of(parts[0])
    if origin in _COMPOUND:
        return _COMPOUND[origin](parts)
    if origin is None and isinstance(hint, type):
        return _PLAIN.get(hint) or (_member(hint) if issubclass(hint, Enum) else _instance(hint))
    return anything


def anything(value: Any) -> Any:
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise WrongKindError(value, f"a whole number, {NO_TRUTH}")
    number = _spelled(value, float)
    if isinstance(number, Integral) or (isinstance(number, float) and number.is_integer()):
        return int(number)
    raise WrongKindError(value, "a whole number")


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise WrongKindError(value, f"a number, {NO_TRUTH}")
    number = _spelled(value, float)
    if not isinstance(number, Real):
        raise WrongKindError(value, "a number")
    if not math.isfinite(number) and not _SPELLED.get():
        raise WrongKindError(value, "a finite number")
    return float(number)


@contextmanager
def converting_text(on: bool) -> Iterator[None]:
    """Within the block, readers convert text to numbers and booleans if `on`."""
    token = _SPELLED.set(on)
    try:
        yield
    finally:
        _SPELLED.reset(token)


def _spelled(value: Any, kind: Callable[[str], Any]) -> Any:
    """Convert text by `kind` in a `converting_text` block; return other values and text that does not fit unchanged."""
    if not _SPELLED.get() or not isinstance(value, str):
        return value
    try:
        return kind(value)
    except (ValueError, KeyError):
        return value


def _truth(value: Any) -> bool:
    value = _spelled(value, lambda text: TRUTHS[text.strip().lower()])
    if isinstance(value, bool):
        return value
    # NumPy's booleans are not a subclass of bool, and no abstract base class covers both.
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise WrongKindError(value, "true or false")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise WrongKindError(value, "text")


_PLAIN: Mapping[Any, Reader] = {bool: _truth, int: _whole, float: _number, str: _text, Any: anything}


def _literal(choices: Parts) -> Reader:
    *first, last = map(repr, choices)
    words = f"{', '.join(first)} or {last}" if first else last

    def read(value: Any) -> Any:
        for choice in choices:
            # `True == 1` in Python. Other types, such as arrays, may not compare to a boolean.
            if (
                isinstance(value, bool) == isinstance(choice, bool)
                and isinstance(value, (str, Real))
                and value == choice
            ):
                return choice
        raise WrongKindError(value, words)

    return read


def _member(kind: type[Enum]) -> Reader:
    value_of = _literal(tuple(member.value for member in kind))
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
        return tuple(_inside(each[index], item, f"[{index}]") for index, item in enumerate(value))

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
        return {key_of(key): _inside(values, item, f".{key}") for key, item in value.items()}

    return read


def _inside(reader: Reader, value: Any, inner: str) -> Any:
    try:
        return reader(value)
    except WrongKindError as wrong:
        raise wrong.within(inner) from None


def _instance(kind: type) -> Reader:
    spelled_as_mapping = is_dataclass(kind) and not isabstract(kind)

    def read(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not (_SPELLED.get() and spelled_as_mapping):
            raise WrongKindError(value, f"an object of the class {kind.__name__}")
        if not isinstance(value, Mapping):
            raise WrongKindError(value, "a mapping")
        readers = readers_of(kind)
        required = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}
        if not required <= value.keys() <= readers.keys():
            raise WrongKindError(value, f"a mapping of {', '.join(readers)}")
        return kind(**{name: _inside(readers[name], part, f".{name}") for name, part in value.items()})

    return read


def _union(parts: Parts) -> Reader:
    optional = NoneType in parts
    readers = [reader_of(part) for part in parts if part is not NoneType]

    def read(value: Any) -> Any:
        if value is None and optional:
            return None
        wrongs: list[WrongKindError] = []
        # Text is converted only if no alternative accepts it as text.
        for spelled in (False, True) if _SPELLED.get() else (False,):
            wrongs.clear()
            with converting_text(spelled):
                for reader in readers:
                    try:
                        return reader(value)
                    except WrongKindError as wrong:
                        wrongs.append(wrong)
        # If an alternative fails only at an inner value, that alternative was meant.
        deepest = max(wrongs, key=lambda wrong: len(wrong.inner))
        truth = next((wrong for wrong in wrongs if isinstance(value, bool) and wrong.kinds[0].endswith(NO_TRUTH)), None)
        if deepest.inner or truth:
            raise truth or deepest
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
