"""YAML as people write it, read with care: what YAML's own reader takes in silence is a mistake with its line here.

Of two values under one key YAML keeps the last, and a short file of aliases can stand for more values than a memory
holds; both are refused, as are dates that are none and numbers that are too long.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from laconic.errors import UserError, must_be, shown

LARGEST_FILE = 2**24
"""Bytes: far more than a recipe, a study or a plan needs."""
REPEATED = 10_000
"""How many values aliases may stand for in all."""
NEAR = 0.6
"""How alike a name must be to be suggested, as difflib counts."""
LARGEST_INTEGER = 2**63 - 1
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of surrogate pairs: no file is called so, and none holds the latter as text."""
MERGE = "tag:yaml.org,2002:merge"
INTEGER, REAL = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def text_of(path: Path, what: str) -> str:
    """The text of a file; `what` it is called in errors.

    Raises:
        UserError: it cannot be read, or is no UTF-8 text, or is larger than any such file.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"The {what} '{path}' cannot be read: it is larger than {LARGEST_FILE:,} bytes.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The {what} '{path}' cannot be read: it is not text (UTF-8, byte {error.start}).") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"The {what} '{path}' cannot be read: there is no such file; {_near(path, what)}.") from error
    except IsADirectoryError as error:
        raise UserError(f"The {what} '{path}' cannot be read: it is a folder; {_within(path)}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"The {what} '{path}' cannot be read: {reason}.") from error


def _near(path: Path, what: str) -> str:
    """What to give in place of a file that is not there."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder '{folder}' either, so give the path of a YAML file"
    near = get_close_matches(path.stem, [one.stem for one in _files(folder)], n=1, cutoff=NEAR)
    found = next((one for one in _files(folder) if near and one.stem == near[0]), None)
    return f"give the path of a {what} in YAML" if found is None else f"the nearest name there is '{found}'"


def _within(folder: Path) -> str:
    first = next(iter(_files(folder)), None)
    return "give a YAML file" if first is None else f"give one of its files, like '{first}'"


def _files(folder: Path) -> list[Path]:
    """The YAML files of a folder; none where it cannot be looked into."""
    try:
        return sorted(one for one in folder.iterdir() if one.suffix.lower() in (".yaml", ".yml"))
    except OSError:
        return []


def read_yaml(path: Path, what: str) -> Any:
    """The value in a YAML file; `what` it is called in errors.

    Raises:
        UserError: as `text_of`, or it is no YAML, or YAML that says something twice or without end.
    """
    return parsed(text_of(path, what), f"The {what} '{path}'")


def parsed(text: str, place: str) -> Any:
    """The value that `text` spells; errors begin with `place`.

    Raises:
        UserError: it is no YAML, or YAML that says something twice or without end.
    """
    try:
        return load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{place} is not YAML that laconic reads: {_words(error)}.") from error


def load(text: str) -> Any:
    """The value that `text` spells.

    Raises:
        yaml.YAMLError: as `parsed`.
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


def value_of(text: str, place: str) -> Any:
    """The value of one option or parameter; errors begin with `place`.

    Raises:
        UserError: it is no YAML, or a value that cannot be made, as a whole number of more than 63 bits.
    """
    try:
        return load(text)
    except ConstructorError as error:
        raise must_be(place, f"a YAML value ({error.problem})", text) from error
    except yaml.YAMLError as error:
        raise must_be(place, "a YAML value", text) from error


class _Loader(yaml.SafeLoader):
    """A value that cannot be made (the 31st of February, a number of thousands of digits) is an error with a line.

    Numbers are of base 10 unless they say otherwise (0x, 0b): YAML 1.1 takes 2:4 for one of base 60 and 010 for one of
    base 8, and YAML 1.2 does not.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own form)
        first: [(tag, pattern) for tag, pattern in known if tag not in (INTEGER, REAL)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except ValueError as error:
            raise ConstructorError(None, None, _first_words(error), node.start_mark) from error
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ConstructorError(None, None, "a whole number may have 63 bits", node.start_mark)
        if isinstance(value, str) and (odd := _NO_TEXT.search(value)):
            said = f"no name holds the character {odd[0]!a}; leave it out"
            raise ConstructorError(None, None, said, node.start_mark)
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
    """Raise where a value holds itself, or where aliases stand for too many values."""
    sizes: dict[int, int] = {}
    within: set[int] = set()

    def size(node: yaml.Node) -> int:
        """How many values it is once its aliases are written out."""
        if id(node) in within:
            raise ConstructorError(None, None, "a value holds itself", node.start_mark)
        if id(node) not in sizes:
            within.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _parts(node)))
            within.remove(id(node))
            if sizes[id(node)] - len(sizes) > REPEATED:
                said = f"its aliases stand for more than {REPEATED:,} values"
                raise ConstructorError(None, None, said, node.start_mark)
        return sizes[id(node)]

    size(root)


def _check_keys(root: yaml.Node) -> None:
    """Raise where a mapping has a key twice."""
    for node in _mappings(root, set()):
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                first = seen.setdefault((key.tag, key.value), key.start_mark)
                if first is not key.start_mark:
                    said = f"the key {shown(key.value)} was given in line {first.line + 1} already"
                    raise ConstructorError(None, None, said, key.start_mark)


def _mappings(node: yaml.Node, seen: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    for part in _parts(node):
        yield from _mappings(part, seen)


def _words(error: yaml.YAMLError) -> str:
    """Of a marked error what is wrong and where, without the lines of the file."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    said = ", ".join(filter(None, (error.context, error.problem, error.note)))
    where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    return f"{' '.join(said.split())}{where}"
