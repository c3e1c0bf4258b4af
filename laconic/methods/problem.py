"""pydantic's report of what is wrong, as the one sentence that laconic's errors are made of."""

from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from laconic.errors import UserError, must_be

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def sentence(error: ValidationError, kind: type[Any], place: str) -> UserError:
    """The first problem that `error` reports of the dataclass `kind` at `place`."""
    problems = error.errors(include_url=False)
    # A union reports every branch; the branch that failed on the value's range, not its type, is the one meant.
    first = next((problem for problem in problems if problem["type"] in OUT_OF_RANGE), problems[0])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return placed(cause, place)
    names = {field.name for field in fields(kind)}
    field = next((str(part) for part in first["loc"] if part in names), None)
    if field is None:
        return must_be(place, first["msg"], first["input"])
    hint = get_type_hints(kind, include_extras=True)[field]
    interval = _interval(hint) if first["type"] in OUT_OF_RANGE else None
    requirement = f"in {interval}" if interval else _in_words(first["msg"])
    return must_be(f"{place}.{field}{_keys(first['loc'], field)}", requirement, first["input"])


def placed(error: UserError, place: str) -> UserError:
    """The same sentence with its place in front, unless it has one."""
    return error if str(error).startswith(place.partition(".")[0]) else UserError(f"{place}: {error}")


def _keys(location: tuple[str | int, ...], field: str) -> str:
    """What follows the field: `[2]` of a list, `.ffn` of a mapping; pydantic's names of union branches are left out."""
    inner = location[location.index(field) + 1 :]
    shown = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner)
    return "".join(part for part in shown if part.startswith("[") or part.lstrip(".").isidentifier()) if inner else ""


def _interval(hint: object) -> str | None:
    """`(0, 1]` from the bounds of the first annotated number within `hint`."""
    if get_origin(hint) is Annotated:
        base, *extras = get_args(hint)
        bounds = [bound for extra in extras if isinstance(extra, FieldInfo) for bound in extra.metadata]
        return _shown(bounds) if bounds else _interval(base)
    if get_origin(hint) in (Union, UnionType, dict, tuple, list):
        return next((found for part in get_args(hint) if (found := _interval(part))), None)
    return None


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


def _in_words(message: str) -> str:
    """pydantic's words without Python's names of types."""
    requirement = message[:1].lower() + message[1:]
    requirement = requirement.removeprefix("input should be ").partition(", unable to parse")[0]
    return requirement.replace("a valid tuple", "a list").replace("a valid string", "text")
