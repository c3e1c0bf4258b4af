"""Convert the labels of a corpus to those of a model: class numbers, 0/1 vectors for multi-label models, or scores.

Labels are converted only when a step or metric needs them, because a field called `label` may also hold plain text.
Class names of the data are matched with those of the model (`laconic.calibrate.classes`). A number is an index into the
classes that the data source declares; if it declares none, it is an index into the model's classes. −1 means no label,
as on the hub.
"""

import math
from collections.abc import Callable, Sequence

from laconic.calibrate.classes import (
    canonical_name,
    class_mismatch,
    class_names,
    class_number,
    class_numbers,
    find_class,
    join_names,
    match_classes,
    quote_model,
)
from laconic.calibrate.corpus import Corpus, Label
from laconic.errors import LONGEST_VALUE, UserError, quote, truncate
from laconic.model import LanguageModel, ModelTask

Target = int | float | tuple[float, ...]
"""A label as a loss takes it: a class number, a score, or one number for each output."""
TRUTH = {"false": 0, "true": 1}
"""The class numbers of the JSON values `false` and `true`."""
HIDDEN = -1.0
FLAGS = (0.0, 1.0)


def convert_labels(lm: LanguageModel, corpus: Corpus) -> list[Target]:
    """Convert the label of each row for a model.

    A classifier takes a class name or number. A multi-label model takes a list of the names or numbers of the labels
    that apply, or, if all rows have this form, a 0 or 1 for each of its labels. A regression model takes a score, or a
    list with one score for each output. An embedding model takes the similarity of the two texts of the row.

    Args:
        lm: a sequence classification, regression or embedding model; its weights need not be loaded.
        corpus: the rows.

    Returns:
        One label for each row.

    Raises:
        UserError: a row has no label or an unknown one, or the classes of data and model do not match.
    """
    rows = [(example.label, row_location(corpus, number)) for number, example in enumerate(corpus.examples)]
    # For scores, and for models with a class called −1, no value means "no label".
    scored = lm.task in (ModelTask.REGRESSION, ModelTask.EMBEDDING)
    hidden = None if scored or any(class_number(name) == HIDDEN for name in class_names(lm)) else HIDDEN
    missing = [where for label, where in rows if label is None or label == hidden]
    if len(missing) == len(rows):
        raise UserError(
            f"The {corpus.split} split of '{corpus.source}' has no labels, and they are needed here; name data with "
            "labels in a field 'label'."
        )
    if missing:
        first = next(label for label, where in rows if where == missing[0])
        note = "" if first is None else f" ({_quote_label(first)} means none)"
        raise UserError(
            f"{missing[0]} has no label{note}, and of {len(rows)} rows {len(rows) - len(missing)} have one; label the "
            "row or leave it out."
        )
    labelled = [(label, where) for label, where in rows if label is not None]
    convert = _CONVERTERS[lm.task](lm, corpus, labelled)
    return [convert(label, where) for label, where in labelled]


def row_location(corpus: Corpus, number: int) -> str:
    """Return the place of row `number` (from 0) for an error message: its file and line, or its number."""
    return corpus.examples[number].place or f"Row {number + 1} of '{corpus.source}'"


Placed = Sequence[tuple[Label, str]]
"""Labels, each with the place of its row for error messages."""
Converter = Callable[[Label, str], Target]


def _class_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    number = _ClassNumbers(lm, corpus, rows)

    def convert(label: Label, where: str) -> int:
        if isinstance(label, tuple):
            raise UserError(
                f"{where} has a list of labels, and {quote_model(lm)} predicts one of {len(number.names)} classes; "
                "give one label, or set problem_type in config.json to multi_label_classification if it is one."
            )
        return number(label, where)

    return convert


def _multi_label_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    size = lm.model.config.num_labels or 0
    lists = [(_as_tuple(label), where) for label, where in rows]
    if not corpus.classes and _are_flags(lm, size, lists):
        return lambda label, where: tuple(map(float, _as_tuple(label)))
    number = _ClassNumbers(lm, corpus, [(name, where) for names, where in lists for name in names])

    def convert(label: Label, where: str) -> tuple[float, ...]:
        numbers = {number(name, where) for name in _as_tuple(label)}
        return tuple(float(at in numbers) for at in range(size))

    return convert


def _as_tuple(label: Label) -> tuple[float | str, ...]:
    return label if isinstance(label, tuple) else (label,)


def _are_flags(lm: LanguageModel, size: int, lists: Sequence[tuple[tuple[float | str, ...], str]]) -> bool:
    """Whether every row has a 0 or 1 for each of `size` labels, rather than a list of label numbers.

    Raises:
        UserError: some rows must be such 0/1 lists, because a number is repeated, while other rows cannot be.
    """
    others = [(label, where) for label, where in lists if not (len(label) == size and set(label) <= set(FLAGS))]
    flags = [(label, where) for label, where in lists if len(label) == size and set(label) <= set(FLAGS)]
    repeated = [(label, where) for label, where in flags if len(set(label)) < size]
    if repeated and others:
        (row, where), (label, other) = repeated[0], others[0]
        raise UserError(
            f"{where} has the label {_quote_label(row)}, a 0 or 1 for each of the {size} labels of {quote_model(lm)}, "
            f"and {other} has {_quote_label(label)}; fix the row, or write all rows in one way."
        )
    return not others


def _score_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    is_embedding = lm.task is ModelTask.EMBEDDING
    verb = "compares two texts" if is_embedding else "predicts scores"
    size = 1 if is_embedding else lm.model.config.num_labels or 0
    list_requirement = f"a list of {size} finite numbers, as the model has {size} outputs"
    requirement = "a finite number" if size == 1 else list_requirement

    def convert(label: Label, where: str) -> float | tuple[float, ...]:
        scores = _as_tuple(label)
        numbers = [score for score in scores if isinstance(score, (int, float)) and math.isfinite(score)]
        if len(numbers) != size or len(scores) != size:
            raise UserError(
                f"{where} has the label {_quote_label(label)}; {quote_model(lm)} {verb}, so it must be {requirement}."
            )
        return numbers[0] if size == 1 else tuple(numbers)

    return convert


_CONVERTERS: dict[ModelTask, Callable[[LanguageModel, Corpus, Placed], Converter]] = {
    ModelTask.CLASSIFICATION: _class_converter,
    ModelTask.MULTI_LABEL: _multi_label_converter,
    ModelTask.REGRESSION: _score_converter,
    ModelTask.EMBEDDING: _score_converter,
}


class _ClassNumbers:
    """Maps labels of the data to class numbers of the model."""

    def __init__(self, lm: LanguageModel, corpus: Corpus, rows: Placed) -> None:
        self.lm, self.corpus, self.rows = lm, corpus, rows
        self.names = class_names(lm)
        self.places = match_classes(corpus.classes, self.names)
        self._found: dict[Label, int] = {}
        if not corpus.classes:
            self._check_one_kind()

    def __call__(self, label: Label, where: str) -> int:
        # Converted once per distinct label.
        if label not in self._found:
            self._found[label] = self._declared(label, where) if self.corpus.classes else self._own(label, where)
        return self._found[label]

    def _declared(self, label: Label, where: str) -> int:
        """Look a label up among the classes that the data source declares."""
        at = find_class(label, self.corpus.classes) if isinstance(label, str) else None
        at = _number(label) if at is None else at
        source = f"'{self.corpus.source}'"
        if at is None or not 0 <= at < len(self.corpus.classes):
            raise _unknown_class(label, where, source, self.corpus.classes, "fix the row")
        found = self.places[at]
        if found is None:
            raise class_mismatch(self.lm, self.corpus.classes, source)
        return found

    def _own(self, label: Label, where: str) -> int:
        """Look a label up among the model's class names, or by number if the names do not match."""
        found, number = find_class(_label_text(label), self.names), _number(label)
        if found is None and number is not None:
            found = self._by_number(number, isinstance(label, str) and label.strip().casefold() in TRUTH)
        if found is not None:
            return found
        data_names = tuple(dict.fromkeys(name.strip() for name, _ in self.rows if isinstance(name, str)))
        if isinstance(label, str) and all(find_class(name, self.names) is None for name in data_names):
            raise class_mismatch(self.lm, data_names, f"'{self.corpus.source}'")
        remedy = "fix the row, or give label_order if the data has other names for the classes"
        raise _unknown_class(label, where, quote_model(self.lm), self.names, remedy)

    def _by_number(self, number: int, is_truth: bool) -> int | None:
        """Look up a number that is no class name."""
        if {canonical_name(name) for name in self.names} == set(TRUTH) and number in TRUTH.values():
            return find_class(next(name for name, value in TRUTH.items() if value == number), self.names)
        if is_truth:
            return find_class(str(number), self.names)
        counted = all(class_number(name) is None for name in self.names)
        return number if counted and 0 <= number < len(self.names) else None

    def _check_one_kind(self) -> None:
        """Raise UserError if some rows give their class by name and others by number."""
        counted = class_numbers(self.names) is not None
        numbers = [
            (label, where)
            for label, where in self.rows
            if _number(label) is not None and (counted or find_class(_label_text(label), self.names) is None)
        ]
        names = [(label, where) for label, where in self.rows if isinstance(label, str) and _number(label) is None]
        if numbers and names:
            (number, where), (name, other) = numbers[0], names[0]
            raise UserError(
                f"{where} has the label {_quote_label(number)}, and {other} {_quote_label(name)}; call the classes of "
                "all rows by name, or all by number."
            )


def _number(label: Label) -> int | None:
    """The class number that a label is or names, such as 1, `true` or `LABEL_1`; None for other labels."""
    if isinstance(label, str):
        return TRUTH.get(label.strip().casefold(), class_number(label))
    return int(label) if isinstance(label, (int, float)) and float(label).is_integer() else None


def _label_text(label: Label) -> str:
    number = None if isinstance(label, str) else _number(label)
    return str(label if number is None else number)


def _unknown_class(label: Label, where: str, whose: str, classes: Sequence[str], remedy: str) -> UserError:
    numbered = [f"{number} {name}" for number, name in enumerate(classes)]
    return UserError(
        f"{where} has the label {_quote_label(label)}, which is none of the classes of {whose}: "
        f"{join_names(numbered)}; {remedy}."
    )


def _quote_label(label: Label) -> str:
    if isinstance(label, tuple):
        return f"[{', '.join(map(_quote_label, label))}]"
    return quote(label) if isinstance(label, str) else truncate(_label_text(label), LONGEST_VALUE)
