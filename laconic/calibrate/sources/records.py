"""The text of a file, and one row of it (or of a hub data set) made an `Example`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laconic.calibrate.examples import Example
from laconic.errors import UserError

PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
)
TEXTS = ("text", "sentence", "content")
LABELS = ("label", "answer")
CLASSES = {"entailment": 0, "not_entailment": 1, "neutral": 1, "contradiction": 2}
"""GLUE's standard numbers of the labels that its files spell out; they agree over its tasks."""


def content(path: Path) -> str:
    """The text of a file, with lines that end in \\n.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    # Path.read_text would also break lines at a lone \\r, which some sentences hold.
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"The file '{path}' is not UTF-8 text (byte {error.start}); convert it.") from error
    except OSError as error:
        raise UserError(f"The file '{path}' cannot be read: {error.strerror}.") from error


def example(record: Any, place: str) -> Example:
    """The example that `record` (a string, or fields by name) stands for; `place` names it in errors.

    Raises:
        UserError: no known text field, or a field of the wrong kind.
    """
    if isinstance(record, str):
        return Example(record)
    if not isinstance(record, Mapping):
        raise UserError(f"{place} must be a string or an object of named fields; got {type(record).__name__}.")
    if "source" in record and "target" in record:
        return Example(_text(record, "source", place), target=_text(record, "target", place))
    for first, second in PAIRS:
        if first in record and second in record:
            pair = _text(record, second, place)
            return Example(_text(record, first, place), pair, _label(record, place))
    for field in TEXTS:
        if field in record:
            return Example(_text(record, field, place), label=_label(record, place))
    fields = ", ".join(f"'{name}'" for name in record) or "none"
    raise UserError(
        f"{place} has no field that laconic reads as text (fields: {fields}); "
        "name it text, sentence1 and sentence2, or source and target."
    )


def label_value(value: Any, place: str, scale: float = 1.0) -> float:
    """A label as a number: a class spelled out becomes its GLUE number, anything else is divided by `scale`.

    Raises:
        UserError: not a number, or not finite.
    """
    if isinstance(value, str) and value.strip().lower() in CLASSES:
        return float(CLASSES[value.strip().lower()])
    try:
        number = float(value) / scale
    except (TypeError, ValueError):
        known = ", ".join(CLASSES)
        raise UserError(f"{place} has the label '{value}'; a label must be a number or one of {known}.") from None
    if not math.isfinite(number):
        raise UserError(f"{place} has the label '{value}'; a label must be finite.")
    return number


def _label(record: Mapping[str, Any], place: str) -> float | None:
    value = next((record[name] for name in LABELS if record.get(name) is not None), None)
    return None if value is None else label_value(value, place)


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise UserError(f"{place} has {type(value).__name__} in the field '{field}'; it must be text.")
    return value
