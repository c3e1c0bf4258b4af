"""Convert records of files and of hub data sets to rows: texts, pairs, tagged words, questions and multiple choice.

A record is a text or a mapping of field names to values. Its kind is recognised by the names of its fields, which are
those of common data sets.
"""

from collections.abc import Mapping
from typing import Any

from laconic.calibrate.corpus import Example, Label, as_json, label_from, text_from
from laconic.calibrate.sources.choice_records import choice_example
from laconic.calibrate.sources.conll import WORDS, tagged_example
from laconic.calibrate.sources.squad import question_example
from laconic.errors import UserError, must_be

PAIRS = (
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
)
TEXTS = ("text", "sentence", "content")
LABELS = ("label", "labels", "answer")


def to_example(record: Any, place: str) -> Example:
    """Convert one row of a file or hub data set.

    Args:
        record: a text, or a mapping of field names to values.
        place: file and line of the row, for error messages.

    Raises:
        UserError: there is no field that is known to hold text, a text field holds something else, a sentence has
            another number of tags than of words, or an answer is not in its context.

    Example:
        >>> to_example({"text": "A fine film.", "label": "positive"}, "a.jsonl:1").label
        'positive'
    """
    if isinstance(record, str):
        return Example(record, place=place)
    if not isinstance(record, Mapping):
        raise must_be(place, "text or an object of named fields", as_json(record))
    for convert in (tagged_example, choice_example, question_example):
        example = convert(record, place)
        if example is not None:
            return example
    if "source" in record and "target" in record:
        return Example(text_from(record, "source", place), target=text_from(record, "target", place), place=place)
    for first, second in PAIRS:
        if first in record and second in record:
            pair = text_from(record, second, place)
            return Example(text_from(record, first, place), pair, _label(record), place=place)
    for name in TEXTS:
        if name in record:
            return Example(text_from(record, name, place), label=_label(record), place=place)
    # A table has no lists, and its column of this name is no text that laconic reads.
    has_lists = any(isinstance(value, (list, tuple)) for value in record.values())
    for name in WORDS:
        if name in record and (has_lists or not isinstance(record[name], str)):
            raise must_be(f"{place}: the field '{name}'", "a list of words", as_json(record[name]))
    fields = ", ".join(f"'{name}'" for name in record) or "none"
    raise UserError(
        f"{place} has no field that laconic reads as text (fields: {fields}); "
        "name it text, sentence1 and sentence2, or source and target."
    )


def _label(record: Mapping[str, Any]) -> Label | None:
    return label_from(next((record[name] for name in LABELS if name in record), None))
