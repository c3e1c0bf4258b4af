"""The catalogue of methods and steps: the type, default and meaning of every parameter, read from the dataclasses.

The `Args:` section of a class docstring describes the parameters that the class adds. It takes precedence over the
docstrings of base classes. Run `python -m laconic.recipe.catalogue` after adding or changing a method, a step or a
parameter: it writes `laconic/catalogue.json`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass, replace
from inspect import cleandoc
from pathlib import Path
from shlex import quote
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from laconic.catalogue import PATH, Entry, Parameter
from laconic.compress import Compress, Step
from laconic.errors import UserError
from laconic.methods import METHODS, AnyOf, Method
from laconic.methods.registry import METHOD_REGISTRY, method_text, parse_method
from laconic.recipe.parse import STEP_REGISTRY, STEPS, find_method_or_step
from laconic.registry import plugins
from laconic.typed import interval_of

BUILTINS: dict[str, type[Method] | type[Step]] = {kind.name: kind for kind in (*METHODS, *STEPS)}
"""All methods and steps of laconic itself by name; those of plug-ins are not included."""
_NAMED = re.compile(r"^([a-z][a-z0-9_]*): +(.*)$")
_ARGS = re.compile(r"^Args:\n((?:[ ].*\n?|\n)*)", re.MULTILINE)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def entry_of(kind: type[Method] | type[Step]) -> Entry:
    """The catalogue entry of a method or step class.

    Example:
        >>> from laconic.methods import Svd
        >>> entry_of(Svd).needs
        ()
    """
    is_method = issubclass(kind, Method)
    return Entry(
        name=kind.name,
        is_step=not is_method,
        family=kind.family,
        needs_data=_example_needs_data(kind),
        needs=tuple(sorted(statistic.__name__ for statistic in kind.needs)) if is_method else (),
        paper=kind.paper if is_method else None,
        what=first_line(kind),
        parameters=tuple(parameters_of(kind)),
        example=example_of(kind),
    )


def plugin_entry(name: str) -> Entry:
    """The entry of a method or step that a plug-in adds.

    Raises:
        UserError: the plug-in cannot be imported, or its class is not a valid method or step.
    """
    kind = find_method_or_step(name)
    assert kind is not None, "a plug-in has this name"
    (plugin,) = (plugin for plugin in plugins("laconic.methods", "laconic.steps") if plugin.name == name)
    return replace(entry_of(kind), distribution=plugin.distribution)


def plugin_entries() -> tuple[dict[str, Entry], list[UserError]]:
    """The entries of all methods and steps from plug-ins, by name, and the errors of plug-ins that cannot be used.

    This imports every plug-in.

    Example:
        >>> entries, errors = plugin_entries()
        >>> all(entry.distribution for entry in entries.values())
        True
    """
    entries: dict[str, Entry] = {}
    errors: list[UserError] = []
    for registry in (METHOD_REGISTRY, STEP_REGISTRY):
        added, failures = registry.added()
        errors += failures.values()
        for plugin, kind in added.items():
            entries[plugin.name] = replace(entry_of(kind), distribution=plugin.distribution)
    return entries, errors


def to_json() -> str:
    """The content of `laconic/catalogue.json`."""
    entries = [asdict(entry_of(kind)) for kind in BUILTINS.values()]
    for entry in entries:
        del entry["distribution"]
    return f"{json.dumps(entries, indent=1, ensure_ascii=False)}\n"


def write(path: Path = PATH) -> None:
    """Write the catalogue to `path`."""
    path.write_text(to_json(), encoding="utf-8")


def parameters_of(kind: type[Method] | type[Step]) -> list[Parameter]:
    """The parameters of a method or step class, in the order of its fields.

    Example:
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
    """The description of each parameter, by its name, from the docstrings of the class and of its base classes."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            meanings |= _paragraphs(cleandoc(base.__doc__ or ""))
    return meanings


def first_line(kind: type) -> str:
    """The first line of the docstring of a class."""
    return cleandoc(kind.__doc__ or "").partition("\n")[0]


def example_of(kind: type[Method] | type[Step]) -> str:
    """A command line that uses the method or step; for `compress`, which wraps a method, a line of a recipe.

    >>> from laconic.methods import Gptq
    >>> example_of(Gptq)
    'laconic compress MODEL --method gptq:bits=4 --data builtin:pydoc -o OUT'
    """
    if kind is Compress:
        return f"steps: [{{compress: {{{kind.example}}}}}]"
    text = f"{kind.name}:{kind.example}" if kind.example else kind.name
    keep = ""
    if issubclass(kind, Method) and not parse_method(text, kind.name).has_size:
        keep = " --keep 0.5 --allocate spectrum" if issubclass(kind, AnyOf) else " --keep 0.5"
    data = " --data builtin:pydoc" if _example_needs_data(kind) else ""
    return f"laconic compress MODEL --method {quote(text)}{keep}{data} -o OUT"


def _example_needs_data(kind: type[Method] | type[Step]) -> bool:
    return bool(kind.needs) if issubclass(kind, Method) else kind.example_needs_data


def _paragraphs(text: str) -> dict[str, str]:
    """The paragraphs of the form `name: meaning`, by name, from the text and from its `Args:` section."""
    section = _ARGS.search(text)
    if section is not None:
        # `Typed` appends a section with the fields of base classes, also where the docstring has its own paragraphs.
        return _paragraphs(text[: section.start()]) | _paragraphs(dedent(section[1]))
    paragraphs: dict[str, list[str]] = {}
    last: list[str] | None = None
    for line in text.splitlines():
        match = _NAMED.match(line)
        if match:
            last = paragraphs.setdefault(match[1], [])
            last.append(match[2])
        elif line.startswith(" ") and last is not None:
            last.append(line.strip())
        else:
            last = None
    return {name: " ".join(lines) for name, lines in paragraphs.items()}


def _types(hint: Any) -> Iterator[str]:
    """A description of each alternative of a type hint; None is left out."""
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
        is_method = isinstance(hint, type) and issubclass(hint, Method)
        yield _WORDS.get(hint, "a method" if is_method else "a mapping")


def _default(field: Field[Any]) -> str | None:
    if field.default_factory is not MISSING:
        return _to_text(field.default_factory())
    return None if field.default is MISSING else _to_text(field.default)


def _to_text(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Method():
            return method_text(value)
        case tuple():
            return f"[{', '.join(map(_to_text, value))}]"
        case float():
            return f"{value:g}"
        case _:
            return "{}" if value == {} or is_dataclass(value) else str(value)


if __name__ == "__main__":
    write()
