"""Read JSON Lines files, in which benchmarks are distributed, and check the fields of their rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from laconic.calibrate.corpus import as_json, content, json_of
from laconic.errors import UserError, must_be, quote

JsonObject = Mapping[str, Any]


def read_objects(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Read a file with one JSON object per line. Blank lines are skipped.

    Args:
        path: the path of the file.

    Yields:
        The place of each object in the form `file:line`, and the object.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    for at, line in enumerate(content(path).split("\n"), start=1):
        if line.strip():
            found = json_of(line, f"{path}:{at}")
            if not isinstance(found, Mapping):
                raise must_be(f"{path}:{at}", "an object of named fields", as_json(found))
            yield f"{path}:{at}", found


def text_field(row: JsonObject, names: tuple[str, ...], place: str) -> str:
    """The text in a field of a row.

    Args:
        row: the JSON object.
        names: alternative names of the field; the first one in the row is read.
        place: the place of the row, for error messages.

    Example:
        >>> text_field({"good": " Cats sleep. "}, ("sentence_good", "good"), "a.jsonl:1")
        'Cats sleep.'

    Raises:
        UserError: the row has none of these fields, or the value is not text.
    """
    for name in names:
        if name in row:
            if isinstance(row[name], str) and row[name].strip():
                return row[name].strip()
            raise UserError(f"{place} must have text in the field '{name}'; got {quote(as_json(row[name]))}.")
    fields = ", ".join(f"'{name}'" for name in row) or "none"
    accepted = " or ".join(f"'{name}'" for name in names)
    raise UserError(f"{place} has no field {accepted} (fields: {fields}); add it.")
