"""pydantic's report of what is wrong, as the one sentence that laconic's errors are made of."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from laconic.bounds import interval_of
from laconic.errors import UserError, must_be
from laconic.wording import in_words

TOO_SHORT = "too_short"
OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", TOO_SHORT}
SCALARS = {"bool", "int", "float", "str"}
"""pydantic's names of the branches of a union."""


def validated(kind: type[Any], values: Mapping[str, Any], place: str) -> Any:
    """The dataclass `kind` of these `values`, all of which it has.

    Raises:
        UserError: a value of the wrong type or out of range; the sentence begins with `place`. Python takes a truth
            value for 0 or 1 and infinity for a number; where a count or a fraction is meant, both are mistakes.
    """
    hints = get_type_hints(kind, include_extras=True)
    for name, value in values.items():
        types = set(_types(hints[name]))
        if not types & {int, float} or bool in types:
            continue
        for inner, one in _scalars(value):
            if isinstance(one, bool):
                number = "a number" if float in types else "a whole number"
                raise must_be(f"{place}.{name}{inner}", f"{number}, no truth value", one)
    try:
        made = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise sentence(error, kind, place) from error
    # What was made, not what was given: text such as 1e309 is read as a number too.
    for name in values:
        for inner, one in _scalars(getattr(made, name)):
            if float in _types(hints[name]) and isinstance(one, float) and not math.isfinite(one):
                raise must_be(f"{place}.{name}{inner}", "a finite number", one)
    return made


def sentence(error: ValidationError, kind: type[Any], place: str) -> UserError:
    """The first problem that `error` reports of the dataclass `kind` at `place`."""
    problems = error.errors(include_url=False)
    # A union reports every branch. What is right but for its range is the one meant, or for something inside of it.
    of_one = [problem for problem in problems if problem["loc"][:1] == problems[0]["loc"][:1]]
    deepest = max(of_one, key=lambda problem: len(problem["loc"]))
    first = next((problem for problem in problems if problem["type"] in OUT_OF_RANGE), deepest)
    context: Mapping[str, Any] = first.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, UserError):
        return placed(cause, place)
    names = {field.name for field in fields(kind)}
    field = next((str(part) for part in first["loc"] if part in names), None)
    if field is None:
        return must_be(place, first["msg"], first["input"])
    hint = get_type_hints(kind, include_extras=True)[field]
    if first["type"] == TOO_SHORT:
        return must_be(f"{place}.{field}", f"a list of at least {context['min_length']}", first["input"])
    interval = interval_of(hint) if first["type"] in OUT_OF_RANGE else None
    inner = first["loc"][first["loc"].index(field) + 1 :]
    if inner and _branches(hint) > 1:
        # What comes first is pydantic's name of a branch.
        inner = inner[1:]
    same = [problem["msg"] for problem in problems if field in problem["loc"] and problem["input"] is first["input"]]
    requirement = f"in {interval}" if interval else " or ".join(dict.fromkeys(map(in_words, same)))
    return must_be(f"{place}.{field}{_keys(inner)}", requirement, first["input"])


def _types(hint: object) -> Iterator[object]:
    """The types that `hint` is made of: int and str of `dict[str, int] | None`."""
    if get_origin(hint) is Annotated:
        yield from _types(get_args(hint)[0])
    elif get_origin(hint) is Literal:
        yield from map(type, get_args(hint))
    elif get_args(hint):
        for part in get_args(hint):
            yield from _types(part)
    else:
        yield hint


def _scalars(value: object) -> Iterator[tuple[str, object]]:
    """What lists and mappings hold in the end, each with where: `[2]`, `.ffn`."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from ((f".{key}{inner}", one) for inner, one in _scalars(part))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from ((f"[{index}]{inner}", one) for inner, one in _scalars(part))
    else:
        yield "", value


def placed(error: UserError, place: str) -> UserError:
    """The same sentence with its place in front, unless it has one."""
    return error if str(error).startswith(place.partition(".")[0]) else UserError(f"{place}: {error}")


def _branches(hint: object) -> int:
    """Of a union that pydantic tries one by one; None is none of them."""
    if get_origin(hint) is Annotated:
        return _branches(get_args(hint)[0])
    return len(set(get_args(hint)) - {type(None)}) if get_origin(hint) in (Union, UnionType) else 1


def _keys(inner: tuple[str | int, ...]) -> str:
    """What follows the field: `[2]` of a list, `.ffn` of a mapping; pydantic's names of deeper unions are left out."""
    shown = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner if part not in SCALARS)
    return "".join(part for part in shown if part.startswith("[") or part.lstrip(".").isidentifier())
