"""Records of multiple choice: a text, several choices, and the number or name of the right one.

The choices are a list, as in HellaSwag (`endings`), RACE (`options`) and MMLU (`choices`), a list with a name for each,
as in ARC, or numbered fields, as in PIQA (`sol1`), SWAG (`ending0`), WinoGrande (`option1`) and COPA (`choice1`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

from laconic.calibrate.corpus import Example, Label, as_json, label_from, read_text, text_from
from laconic.errors import UserError, must_be

LISTS = ("choices", "endings", "options")
NUMBERED = re.compile(r"(sol|ending|option|choice|answer)(\d+)")
PROMPTS = (
    "text", "premise", "question", "question_stem", "goal", "ctx", "startphrase", "sentence", "prompt", "context",
)  # fmt: skip
CONTEXTS = ("article", "context", "passage")
"""Fields for the text that a question is about."""
NUMBERS = ("label", "labels")
"""Fields with the index of the right choice, from 0."""
NAMES = ("answer", "answerKey", "answer_key")
"""Fields with the name of the right choice: a letter, the number in the name of its field, or its text."""


class Choices(NamedTuple):
    """The choices of a record.

    Args:
        texts: the choices.
        names: their names: those that the record gives, the numbers of their fields, or letters.
        fields: the names of the fields that were read.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...]
    fields: tuple[str, ...]


def choice_example(record: Mapping[str, Any], place: str) -> Example | None:
    """Convert a record of multiple choice.

    Args:
        record: fields by name: a text, choices, and the right one: `label` (its index, from 0) or `answer` (its name).
        place: file and line of the row, for error messages.

    Returns:
        The row; None if the record has no choices.

    Raises:
        UserError: there are fewer than two choices, or a choice or the text before them is no text.

    Example:
        >>> choice_example({"goal": "Boil it.", "sol1": "Use a pot.", "sol2": "Use a net.", "label": 0}, "a:1").choices
        ('Use a pot.', 'Use a net.')
    """
    choices = _choices(record, place)
    if choices is None:
        return None
    if len(choices.texts) < 2:
        raise UserError(f"{place} has {len(choices.texts)} choice in '{choices.fields[0]}'; give it two or more.")
    prompts = [name for name in PROMPTS if name in record and name not in choices.fields]
    if not prompts:
        raise UserError(f"{place} has choices and no text before them; name it text or question.")
    contexts = [name for name in CONTEXTS if name in record and name != prompts[0]]
    texts = [text_from(record, name, place) for name in (*contexts, prompts[0])]
    return Example(" ".join(texts), label=_right(record, choices), choices=choices.texts, place=place)


def _choices(record: Mapping[str, Any], place: str) -> Choices | None:
    field = next((name for name in LISTS if isinstance(record.get(name), (list, tuple, Mapping))), None)
    if field is not None:
        texts, names = record[field], None
        if isinstance(texts, Mapping):
            texts, names = texts.get("text"), texts.get("label")
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
            raise must_be(f"{place}: the field '{field}'", "a list of texts", as_json(record[field]))
        if not isinstance(names, (list, tuple)) or len(names) != len(texts):
            names = ascii_uppercase[: len(texts)]
        return Choices(tuple(texts), tuple(map(str, names)), (field,))
    found = sorted((int(match[2]), name) for name in record if (match := NUMBERED.fullmatch(name)))
    # SWAG's files have fields with other texts beside the endings.
    kinds = {name.rstrip("0123456789") for _, name in found}
    if len(found) < 2 or len(kinds) > 1:
        return None
    fields = tuple(name for _, name in found)
    return Choices(tuple(text_from(record, name, place) for name in fields), tuple(str(at) for at, _ in found), fields)


def _right(record: Mapping[str, Any], choices: Choices) -> Label | None:
    """The index of the right choice; a value that is no index is kept, and refused where a label is needed."""
    number = next((record[name] for name in NUMBERS if name in record), None)
    if number is not None:
        return label_from(number)
    name = next((record[name] for name in NAMES if name in record), None)
    if isinstance(name, str):
        for known in (choices.names, choices.texts):
            if name.strip() in known:
                return float(known.index(name.strip()))
    return label_from(name)


def with_labels_beside(examples: Sequence[Example], path: Path) -> list[Example]:
    """Add the labels of a file beside the rows, as PIQA has them: `dev-labels.lst` beside `dev.jsonl`.

    Args:
        examples: the rows of `path`.
        path: the file of the rows.

    Raises:
        UserError: the files have different numbers of lines.
    """
    file = path.with_name(f"{path.stem}-labels.lst")
    if not file.is_file() or not all(row.choices and row.label is None for row in examples):
        return list(examples)
    labels = read_text(file).split()
    if len(labels) != len(examples):
        raise UserError(f"{file} has {len(labels)} labels, and {path.name} {len(examples)} rows; correct the files.")
    return [replace(row, label=label_from(label)) for row, label in zip(examples, labels, strict=True)]


def check_same_choices(examples: Sequence[Example]) -> None:
    """Raise UserError if two rows have different numbers of choices, as a model reads the same number for each row."""
    rows = [row for row in examples if row.choices]
    odd = next((row for row in rows if len(row.choices) != len(rows[0].choices)), None)
    if odd is not None:
        raise UserError(
            f"{odd.place} has {len(odd.choices)} choices, and {rows[0].place} {len(rows[0].choices)}; give all rows "
            "the same number, or leave the row out."
        )
