"""Parameters of a method or a step, read from its dataclass and its docstrings: types, defaults and meanings.

The `Args:` section of a class docstring describes the parameters that the class adds. It takes precedence over the
docstrings of base classes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from inspect import cleandoc
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from laconic.bounds import interval_of
from laconic.catalogue import Parameter
from laconic.compress import Step
from laconic.methods import METHODS, Method
from laconic.recipe.steps import STEPS

KINDS: dict[str, type[Method] | type[Step]] = {kind.name: kind for kind in (*METHODS, *STEPS)}
"""By name, everything that `--method` and the steps of a recipe can be."""
_NAMED = re.compile(r"^([a-z][a-z0-9_]*): +(.*)$")
_ARGS = re.compile(r"^Args:\n((?:[ ].*\n?|\n)*)", re.MULTILINE)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def parameters_of(kind: type[Method] | type[Step]) -> list[Parameter]:
    """Those of a method or a step, in their order.

    >>> from laconic.methods import Svd
    >>> [parameter.name for parameter in parameters_of(Svd)]
    ['rank', 'rank_ratio', 'multiple']
    """
    hints, meanings = get_type_hints(kind, include_extras=True), meanings_of(kind)
    return [
        Parameter(
            name=field.name,
            type=" or ".join(dict.fromkeys(_types(hints[field.name]))),
            default=_default(field),
            meaning=meanings.get(field.name, ""),
        )
        for field in fields(kind)
    ]


def meanings_of(kind: type) -> dict[str, str]:
    """What the docstrings of a class and of those it derives from say of each parameter."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            found |= _paragraphs(cleandoc(base.__doc__ or ""))
    return found


def first_line(kind: type) -> str:
    """What it is, in a sentence."""
    return cleandoc(kind.__doc__ or "").partition("\n")[0]


def example_of(kind: type[Method] | type[Step]) -> str:
    """A command that uses it."""
    spelled = f"{kind.name}:{kind.example}" if kind.example else kind.name
    keep = " --keep 0.5" if issubclass(kind, Method) and not kind().has_size else ""
    needs = kind.needs if issubclass(kind, Method) else kind.example_needs_data
    data = " --data builtin:pydoc" if needs else ""
    return f"laconic compress MODEL --method {spelled}{keep}{data} -o OUT"


def _paragraphs(text: str) -> dict[str, str]:
    """The paragraphs of the form `name: meaning`, by name, from the `Args:` section or from the text itself."""
    section = _ARGS.search(text)
    if section is not None:
        text = dedent(section[1])
    found: dict[str, list[str]] = {}
    last: list[str] | None = None
    for line in text.splitlines():
        named = _NAMED.match(line)
        if named:
            last = found.setdefault(named[1], [])
            last.append(named[2])
        elif line.startswith(" ") and last is not None:
            last.append(line.strip())
        else:
            last = None
    return {name: " ".join(lines) for name, lines in found.items()}


def _types(hint: Any) -> Iterator[str]:
    """Each of the alternatives in words; None is no value that one gives."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        for part in parts:
            if part is not NoneType:
                yield from _types(part)
    elif origin is Annotated:
        bounds = interval_of(hint)
        yield from (f"{words} in {bounds}" if bounds else words for words in _types(parts[0]))
    elif origin is Literal:
        yield from map(str, parts)
    elif origin is tuple:
        yield "a list"
    elif origin in (dict, Mapping):
        yield "a mapping"
    else:
        yield _WORDS.get(hint, "a method" if _is_method(hint) else "a mapping")


def _is_method(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, Method)


def _default(field: Field[Any]) -> str | None:
    if field.default_factory is not MISSING:
        return _spelled(field.default_factory())
    return None if field.default is MISSING else _spelled(field.default)


def _spelled(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Method():
            return value.name
        case tuple():
            return f"[{', '.join(map(_spelled, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return "{}" if value == {} or is_dataclass(value) else str(value)
