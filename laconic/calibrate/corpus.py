"""The rows of a corpus, and functions that read files, JSON and labels.

`laconic.calibrate.sources.read` reads a corpus by its name; `laconic.calibrate.sources.records` converts records to
rows.
"""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from laconic.errors import UserError, must_be, quote, truncate

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which is possible as a JSON escape but cannot be encoded in UTF-8."""
Label = float | str | tuple[float | str, ...]
"""A number or a name as the source has it, or several; `laconic.calibrate.labels` converts them for a model."""


class Answer(NamedTuple):
    """An answer to a question, as a part of the context.

    Args:
        text: the answer.
        start: the index of its first character in the context.
    """

    text: str
    start: int

    @property
    def end(self) -> int:
        """The index behind its last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Example:
    """One row of a corpus.

    Args:
        text: the text; of a row with `words`, these joined by spaces; of a row with `choices`, the text before them.
        pair: the second text of a pair, such as the context of a question; None for a single text.
        label: a class, several classes, or a score on the scale that models are trained on (STS-B divided by 5); of a
            row with `words`, a class for each word; of a row with `choices`, the index of the right one; None if there
            is no label.
        target: the text to generate, for sequence-to-sequence models.
        other_targets: further correct targets.
        group: group of rows whose scores are averaged first, before the mean over groups, such as a relation or a
            linguistic phenomenon; nested groups are separated by slashes.
        words: the words of a sentence whose words have classes.
        answers: the right answers to the question `text`, as parts of the context `pair`; empty if the context has no
            answer, and None if the row has no answers or is no question.
        choices: the texts of which one is right, in multiple choice.
        place: file and line of the row, for error messages; if empty, its number in the corpus is used.

    Raises:
        UserError: a text has half of a surrogate pair.

    Example:
        >>> Example("A man eats.", pair="Someone eats.").joined
        'A man eats. Someone eats.'
    """

    text: str
    pair: str | None = None
    label: Label | None = None
    target: str | None = None
    other_targets: tuple[str, ...] = ()
    group: str = ""
    words: tuple[str, ...] = ()
    answers: tuple[Answer, ...] | None = None
    choices: tuple[str, ...] = ()
    place: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        for text in filter(None, (self.text, self.pair, self.target, *self.choices)):
            if not text.isascii() and (odd := _HALF.search(text)):
                where = self.place or f"The row '{truncate(text[: odd.start()], 40)}…'"
                raise UserError(
                    f"{where} has half of a surrogate pair in its text, {odd[0]!a} at character {odd.start() + 1}, "
                    "which no tokenizer reads; fix the row."
                )

    @property
    def joined(self) -> str:
        """The text, the pair and the target joined by spaces, for models that read a single text."""
        return " ".join(part for part in (self.text, self.pair, self.target) if part is not None)


@dataclass(frozen=True)
class Corpus:
    """The rows of one split of one source, in order.

    Args:
        source: name of the source.
        split: `train` or `dev`.
        examples: the rows.
        classes: names of the classes in the order of their numbers; empty if the source does not declare them.

    Example:
        >>> corpus = Corpus("mine", "train", (Example("a"), Example("b")))
        >>> len(corpus.first(1).examples)
        1
    """

    source: str
    split: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()

    def first(self, rows: int | None) -> "Corpus":
        """Return the corpus with its first `rows` rows; None for all."""
        return replace(self, examples=self.examples[:rows])


class Rows(NamedTuple):
    """The rows of one split.

    Args:
        examples: the rows.
        classes: class names that the source declares, in the order of their numbers; empty if it declares none.
    """

    examples: list[Example]
    classes: tuple[str, ...] = ()


def sample(corpus: Corpus, rows: int, seed: int) -> Corpus:
    """Draw rows without replacement, in random order.

    Args:
        corpus: the rows.
        rows: number of rows to draw; if the corpus has fewer, all are returned.
        seed: seed of the draw.

    Example:
        >>> corpus = Corpus("mine", "train", tuple(Example(text) for text in "abc"))
        >>> len(sample(corpus, 2, seed=0).examples)
        2
    """
    drawn = random.Random(seed).sample(range(len(corpus.examples)), min(rows, len(corpus.examples)))
    return replace(corpus, examples=tuple(corpus.examples[index] for index in drawn))


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def read_text(path: Path) -> str:
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


def parse_json(text: str, place: str) -> Any:
    """Parse JSON.

    Args:
        text: the JSON text.
        place: file and line, for error messages.

    Raises:
        UserError: it is not JSON, or an object has a field twice.
    """

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_fields(place, [name for name, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=to_dict)
    except json.JSONDecodeError as error:
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        raise UserError(f"{place} is not JSON: {error.msg} at {line}column {error.colno}; correct it.") from error


def check_fields(place: str, names: Sequence[str]) -> None:
    """Raise UserError if a field name occurs twice in `names`; `place` is the row or header in the message."""
    if len(set(names)) < len(names):
        repeated = next(name for at, name in enumerate(names) if name in names[:at])
        raise UserError(f"{place} has the field {quote(repeated)} twice; leave one out.")


@dataclass(frozen=True)
class _Json:
    """A value whose `str` is its JSON text, for error messages."""

    value: Any

    def __str__(self) -> str:
        return json.dumps(self.value, ensure_ascii=False, default=str)


def as_json(value: Any) -> object:
    """Wrap a value so that an error message shows it as JSON: null, true, a list."""
    return value if isinstance(value, (str, int, float)) and not isinstance(value, bool) else _Json(value)


def label_from(value: Any) -> Label | None:
    """Convert the value of a label field: a number (also one in a string), a name, or a list of these; None if empty.

    This raises no error for unusual values, because the field may hold something else that is never used as a label.
    """
    if isinstance(value, (list, tuple)):
        return tuple(map(_inner_label, value))
    if isinstance(value, str):
        value = value.strip()
        return _float(value) if _NUMBER.fullmatch(value) else value or None
    if isinstance(value, bool):
        # A model may have classes called true and false.
        return str(value).lower()
    return None if value is None else _float(value)


def _inner_label(value: Any) -> float | str:
    label = float(value) if isinstance(value, bool) else label_from(value)
    if label is None:
        # Null and an empty text are no label, which is an error only where labels are needed.
        return ""
    return label if isinstance(label, (float, str)) else str(value)


def _float(value: Any) -> float | str:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return number if math.isfinite(number) else str(value)


def text_from(record: Mapping[str, Any], field: str, place: str) -> str:
    """Return the text in a field of a record.

    Args:
        record: the fields by name.
        field: the name of the field.
        place: file and line of the record, for the error.

    Raises:
        UserError: the field holds something else; the message begins with `place`.
    """
    value = record[field]
    if not isinstance(value, str):
        raise must_be(f"{place}: the field '{field}'", "text", as_json(value))
    return value
