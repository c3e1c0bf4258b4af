"""A strict YAML loader, which reports mistakes with their line that PyYAML accepts silently.

It refuses a key that occurs twice in a mapping (PyYAML keeps the last value), aliases that expand to a huge number of
values, invalid dates, and integers of more than 63 bits.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from laconic.errors import UserError, must_be, quote

LARGEST_FILE = 2**24
"""The largest accepted file, in bytes; recipes, studies and plans are far smaller."""
REPEATED = 10_000
"""The largest number of values that the aliases of a file may expand to."""
NEAR = 0.6
"""The least similarity of a suggested name: the `cutoff` of `difflib.get_close_matches`."""
LARGEST_INTEGER = 2**63 - 1
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL and unpaired surrogates, which no file name contains; the latter cannot be encoded as UTF-8."""
MERGE = "tag:yaml.org,2002:merge"
INTEGER, REAL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def read_text(path: Path, kind: str) -> str:
    """Read a text file.

    Args:
        path: the file.
        kind: the kind of file in error messages, such as "recipe".

    Raises:
        UserError: the file cannot be read, is not UTF-8 text, or is larger than `LARGEST_FILE` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"The {kind} '{path}' cannot be read: it is larger than {LARGEST_FILE:,} bytes.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The {kind} '{path}' cannot be read: it is not text (UTF-8, byte {error.start}).") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"The {kind} '{path}' cannot be read: there is no such file; {_near(path, kind)}.") from error
    except IsADirectoryError as error:
        raise UserError(f"The {kind} '{path}' cannot be read: it is a folder; {_within(path)}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"The {kind} '{path}' cannot be read: {reason}.") from error


def _near(path: Path, kind: str) -> str:
    """The remedy for a file that does not exist; it names the YAML file with the most similar name in the folder."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder '{folder}' either, so give the path of a YAML file"
    near = get_close_matches(path.stem, [file.stem for file in _files(folder)], n=1, cutoff=NEAR)
    found = next((file for file in _files(folder) if near and file.stem == near[0]), None)
    return f"give the path of a {kind} in YAML" if found is None else f"the nearest name there is '{found}'"


def _within(folder: Path) -> str:
    first = next(iter(_files(folder)), None)
    return "give a YAML file" if first is None else f"give one of its files, like '{first}'"


def _files(folder: Path) -> list[Path]:
    """The YAML files of a folder; empty if the folder cannot be read."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in (".yaml", ".yml"))
    except OSError:
        return []


def read_yaml(path: Path, kind: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        kind: the kind of file in error messages, such as "recipe".

    Returns:
        The value as plain Python objects; None for an empty file.

    Raises:
        UserError: as in `read_text`; or the text is not valid YAML, has a key twice, or has recursive or too many
            aliases.
    """
    return parse_yaml(read_text(path, kind), f"The {kind} '{path}'")


def parse_yaml(text: str, place: str) -> Any:
    """Parse YAML text; error messages begin with `place`.

    Raises:
        UserError: the text is not valid YAML, has a key twice, or has recursive or too many aliases.
    """
    try:
        return load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{place} is not YAML that laconic reads: {_words(error)}.") from error


def load(text: str) -> Any:
    """Parse YAML text.

    Raises:
        yaml.YAMLError: the text is not valid YAML, has a key twice, or has recursive or too many aliases.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node)
        _check_keys(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it nests too deep") from error
    finally:
        loader.dispose()


def parse_value(text: str, place: str) -> Any:
    """Parse the value of an option or a parameter as YAML; error messages begin with `place`.

    Raises:
        UserError: the text is not valid YAML, or its value is not accepted, such as an integer of more than 63 bits.
    """
    try:
        return load(text)
    except ConstructorError as error:
        raise must_be(place, f"a YAML value ({error.problem})", text) from error
    except yaml.YAMLError as error:
        raise must_be(place, "a YAML value", text) from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with stricter values and numbers as in YAML 1.2.

    A value that Python cannot represent, such as 31 February, is a YAML error with its line. Integers are decimal
    unless they begin with 0x or 0b. YAML 1.1 would read `2:4` in base 60 and `010` in base 8.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INTEGER, REAL)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, _first_words(error), node.start_mark) from error
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ConstructorError(None, None, "a whole number may have 63 bits", node.start_mark)
        if isinstance(value, str) and (odd := _NO_TEXT.search(value)):
            problem = f"no name holds the character {odd[0]!a}; leave it out"
            raise ConstructorError(None, None, problem, node.start_mark)
        return value


_Loader.add_implicit_resolver(
    INTEGER, re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    REAL,
    re.compile(r"([-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9][0-9_]*([eE][-+][0-9]+)?"
               r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)  # fmt: skip


def _first_words(error: ValueError) -> str:
    return str(error).partition(";")[0].partition(":")[0]


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check_aliases(root: yaml.Node) -> None:
    """Raise ConstructorError if a value contains itself, or if aliases expand to more than `REPEATED` values."""
    sizes: dict[int, int] = {}
    within: set[int] = set()

    def size(node: yaml.Node) -> int:
        """The number of values in the node after its aliases are expanded."""
        if id(node) in within:
            raise ConstructorError(None, None, "a value contains itself", node.start_mark)
        if id(node) not in sizes:
            within.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _parts(node)))
            within.remove(id(node))
            if sizes[id(node)] - len(sizes) > REPEATED:
                problem = f"its aliases expand to more than {REPEATED:,} values"
                raise ConstructorError(None, None, problem, node.start_mark)
        return sizes[id(node)]

    size(root)


def _check_keys(root: yaml.Node) -> None:
    """Raise ConstructorError if a mapping has a key twice."""
    for node in _mappings(root, set()):
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                first = seen.setdefault((key.tag, key.value), key.start_mark)
                if first is not key.start_mark:
                    problem = f"the key {quote(key.value)} was given in line {first.line + 1} already"
                    raise ConstructorError(None, None, problem, key.start_mark)


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    for part in _parts(node):
        yield from _mappings(part, seen)


def _words(error: yaml.YAMLError) -> str:
    """The message of a YAML error with line and column, without the excerpt of the file."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    problem = ", ".join(filter(None, (error.context, error.problem, error.note)))
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{' '.join(problem.split())}{where}"
