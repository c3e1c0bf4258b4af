"""Read the text of a file, and convert one row of a file or hub data set to an `Example`."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.calibrate.examples import Example, Label
from laconic.errors import UserError, must_be, quote

PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
)
TEXTS = ("text", "sentence", "content")
LABELS = ("label", "labels", "answer")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def content(path: Path) -> str:
    """Read a UTF-8 file; line ends become \\n.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    # Path.read_text would also break lines at a lone \\r, which some sentences hold.
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{path}' is not UTF-8 text (byte {error.start}); convert it.") from error
    except OSError as error:
        raise UserError(f"The file '{path}' cannot be read: {error.strerror}.") from error


def json_of(text: str, place: str) -> Any:
    """Parse JSON.

    Args:
        text: the JSON text.
        place: file and line, for error messages.

    Raises:
        UserError: it is not JSON, or an object has a field twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            raise duplicate_field(place, [name for name, _ in pairs])
        return fields

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON: {error.msg} at column {error.colno}.") from error


def duplicate_field(place: str, names: Sequence[str]) -> UserError:
    """Return the error for a field name that occurs twice in `names`; `place` is the row or header in the message."""
    again = next(name for at, name in enumerate(names) if name in names[:at])
    return UserError(f"{place} has the field {quote(again)} twice; leave one out.")


@dataclass(frozen=True)
class _Json:
    """A value whose `str` is its JSON text, for error messages."""

    value: Any

    def __str__(self) -> str:
        return json.dumps(self.value, ensure_ascii=False, default=str)


def as_json(value: Any) -> object:
    """Wrap a value so that an error message shows it as JSON: null, true, a list."""
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else _Json(value)


def example(record: Any, place: str) -> Example:
    """Convert one row of a file or hub data set.

    Args:
        record: a text, or a mapping of field names to values.
        place: file and line of the row, for error messages.

    Raises:
        UserError: there is no field that is known to hold text, or a text field holds something else.
    """
    if isinstance(record, str):
        return Example(record, place=place)
    if not isinstance(record, Mapping):
        raise must_be(place, "text or an object of named fields", as_json(record))
    if "source" in record and "target" in record:
        return Example(_text(record, "source", place), target=_text(record, "target", place), place=place)
    for first, second in PAIRS:
        if first in record and second in record:
            pair = _text(record, second, place)
            return Example(_text(record, first, place), pair, _label(record), place=place)
    for field in TEXTS:
        if field in record:
            return Example(_text(record, field, place), label=_label(record), place=place)
    fields = ", ".join(f"'{name}'" for name in record) or "none"
    raise UserError(
        f"{place} has no field that laconic reads as text (fields: {fields}); "
        "name it text, sentence1 and sentence2, or source and target."
    )


def label_from(value: Any) -> Label | None:
    """Convert the value of a label field: a number (also one in a string), a name, or a list of these; None if empty.

    This raises no error for unusual values, because the field may hold something else that is never used as a label.
    """
    if isinstance(value, (list, tuple)):
        return tuple(float(one) if isinstance(one, bool) else _one_of_several(one) for one in value)
    if isinstance(value, str):
        value = value.strip()
        return _float(value) if _NUMBER.fullmatch(value) else value or None
    if isinstance(value, bool):
        # A model may have classes called true and false.
        return str(value).lower()
    return None if value is None else _float(value)


def _one_of_several(value: Any) -> float | str:
    label = label_from(value)
    return label if isinstance(label, (float, str)) else str(value)


def _float(value: Any) -> float | str:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return number if math.isfinite(number) else str(value)


def _label(record: Mapping[str, Any]) -> Label | None:
    return label_from(next((record[name] for name in LABELS if name in record), None))


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise must_be(f"{place}: the field '{field}'", "text", as_json(value))
    return value
