"""Check numbers against the bounds in type annotations: `Annotated[float, Field(gt=0, le=1)]` is a number in (0, 1]."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo


class Outside(NamedTuple):
    """A number that is outside of its bounds.

    Args:
        inner: its position inside the checked value, such as `[2]` or `.ffn`; "" if it is the checked value itself.
        value: the number.
        requirement: the bounds in words, such as "in (0, 1]".
    """

    inner: str
    value: object
    requirement: str


Search = Callable[[Any], Iterator[Outside]]


def interval_of(hint: object) -> str | None:
    """The interval of the first number with bounds in a type, as text; None if the type has no bounds.

    >>> from pydantic import Field
    >>> interval_of(Annotated[float, Field(gt=0, le=1)] | None)
    '(0, 1]'
    """
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        bounds = _bounds_in(extras)
        return _shown(bounds) if bounds else interval_of(base)
    if get_origin(hint) in (Union, UnionType, dict, tuple, list):
        return next((found for part in get_args(hint) if (found := interval_of(part))), None)
    return None


def search_of(hint: object) -> Search | None:
    """Make a function that yields every number outside the bounds of the type `hint`; None if `hint` has no bounds.

    The function skips values of other types.

    >>> from pydantic import Field
    >>> list(search_of(Annotated[int, Field(ge=1)])(0))
    [Outside(inner='', value=0, requirement='in [1, ∞)')]
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _joined([_of_annotated(_bounds_in(parts[1:])), search_of(parts[0])])
    if origin in (Union, UnionType):
        return _joined([search_of(part) for part in parts])
    if origin is tuple:
        return _in_items(_joined([search_of(part) for part in parts]))
    return _in_values(search_of(parts[1])) if origin in (dict, Mapping) and parts else None


def _bounds_in(extras: Any) -> list[Any]:
    return [bound for extra in extras if isinstance(extra, FieldInfo) for bound in extra.metadata]


def _of_annotated(bounds: list[Any]) -> Search | None:
    if not bounds:
        return None
    fewest = max((bound.min_length for bound in bounds if isinstance(bound, MinLen)), default=0)

    def search(value: Any) -> Iterator[Outside]:
        if isinstance(value, tuple) and len(value) < fewest:
            yield Outside("", value, f"a list of at least {fewest}")
        if isinstance(value, Real) and not isinstance(value, bool) and not all(_fits(value, one) for one in bounds):
            yield Outside("", value, f"in {_shown(bounds)}")

    return search


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


def _joined(searches: list[Search | None]) -> Search | None:
    some = [search for search in searches if search is not None]
    if len(some) <= 1:
        return some[0] if some else None
    return lambda value: (found for search in some for found in search(value))


def _in_items(search: Search | None) -> Search | None:
    if search is None:
        return None
    return lambda value: (
        _named(search, ((f"[{at}]", one) for at, one in enumerate(value))) if isinstance(value, tuple) else iter(())
    )


def _in_values(search: Search | None) -> Search | None:
    if search is None:
        return None
    return lambda value: (
        _named(search, ((f".{key}", one) for key, one in value.items())) if isinstance(value, dict) else iter(())
    )


def _named(search: Search, parts: Iterable[tuple[str, Any]]) -> Iterator[Outside]:
    for inner, part in parts:
        yield from (found._replace(inner=f"{inner}{found.inner}") for found in search(part))


def _shown(bounds: list[Any]) -> str:
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
