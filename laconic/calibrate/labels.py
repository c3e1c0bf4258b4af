"""Convert the labels of a corpus to those of a model: class numbers, 0/1 vectors for multi-label models, or scores.

Labels are converted only when a step or metric needs them, because a field called `label` may also hold plain text.
Class names of the data are matched with those of the model (`laconic.calibrate.classes`). A number is an index into the
classes that the data source declares; if it declares none, it is an index into the model's classes. −1 means no label,
as on the hub.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from laconic.calibrate.class_numbers import ClassNumbers, Placed, quote_label
from laconic.calibrate.classes import class_names, class_number, quote_model
from laconic.calibrate.corpus import Corpus, Example, Label
from laconic.errors import UserError
from laconic.model import LanguageModel, ModelTask

Target = int | float | tuple[float, ...]
"""A label as a loss takes it: a class number, a score, or one number for each output or word.

For a question it is the first character of the answer in the context and its end, or an empty tuple for no answer.
"""
NEEDED = {
    ModelTask.TOKEN_CLASSIFICATION: "words with classes, such as a .conll file, or jsonl with tokens and ner_tags",
    ModelTask.QUESTION_ANSWERING: "answers, such as a file of SQuAD, or jsonl with question, context and answers",
    ModelTask.MULTIPLE_CHOICE: "choices and labels, such as jsonl with text, choices and label",
}
"""The data that a task needs, for error messages."""
HIDDEN = -1.0
FLAGS = (0.0, 1.0)


def convert_labels(lm: LanguageModel, corpus: Corpus) -> list[Target]:
    """Convert the label of each row for a model.

    A classifier takes a class name or number. A multi-label model takes a list of the names or numbers of the labels
    that apply, or, if all rows have this form, a 0 or 1 for each of its labels. A regression model takes a score, or a
    list with one score for each output. An embedding model takes the similarity of the two texts of the row. A model
    for token classification takes a class name or number for each word, one for question answering the first of the
    answers, and one for multiple choice the index of the right choice.

    Args:
        lm: a model that reads labels, or an embedding model; its weights need not be loaded.
        corpus: the rows.

    Returns:
        One label for each row.

    Raises:
        UserError: a row has no label or an unknown one, or the classes of data and model do not match.
    """
    rows = [(_label_of(lm, example), row_location(corpus, number)) for number, example in enumerate(corpus.examples)]
    # For scores, and for models with a class called −1, no value means "no label".
    scored = lm.task in (ModelTask.REGRESSION, ModelTask.EMBEDDING)
    named = lm.task.has_class_names and any(class_number(name) == HIDDEN for name in class_names(lm))
    hidden = None if scored or named else HIDDEN
    missing = [where for label, where in rows if label is None or label == hidden]
    if len(missing) == len(rows):
        needed = NEEDED.get(lm.task, "labels in a field 'label'")
        raise UserError(
            f"The {corpus.split} split of '{corpus.source}' has no labels, and they are needed here; name data with "
            f"{needed}."
        )
    if missing:
        first = next(label for label, where in rows if where == missing[0])
        note = "" if first is None else f" ({quote_label(first)} means none)"
        raise UserError(
            f"{missing[0]} has no label{note}, and of {len(rows)} rows {len(rows) - len(missing)} have one; label the "
            "row or leave it out."
        )
    labelled = [(label, where) for label, where in rows if label is not None]
    _check_entries(lm, labelled)
    convert = _CONVERTERS[lm.task](lm, corpus, labelled)
    return [convert(label, where) for label, where in labelled]


def _check_entries(lm: LanguageModel, rows: Placed) -> None:
    """Raise UserError if a list of labels has null or an empty text in it."""
    for label, where in rows:
        if isinstance(label, tuple) and "" in label:
            part = "word" if lm.task is ModelTask.TOKEN_CLASSIFICATION else "entry"
            raise UserError(
                f"{where}, {part} {label.index('') + 1} has no label (null and an empty text mean none); label it, or "
                "leave the row out."
            )


def row_location(corpus: Corpus, number: int) -> str:
    """Return the place of row `number` (from 0) for an error message: its file and line, or its number."""
    return corpus.examples[number].place or f"Row {number + 1} of '{corpus.source}'"


def _label_of(lm: LanguageModel, example: Example) -> Label | None:
    if lm.task is not ModelTask.QUESTION_ANSWERING:
        return example.label
    if example.answers is None:
        return None
    return (float(example.answers[0].start), float(example.answers[0].end)) if example.answers else ()


Converter = Callable[[Label, str], Target]


def _class_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    number = ClassNumbers(lm, corpus, rows)

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
    number = ClassNumbers(lm, corpus, [(name, where) for names, where in lists for name in names])

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
            f"{where} has the label {quote_label(row)}, a 0 or 1 for each of the {size} labels of {quote_model(lm)}, "
            f"and {other} has {quote_label(label)}; fix the row, or write all rows in one way."
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
                f"{where} has the label {quote_label(label)}; {quote_model(lm)} {verb}, so it must be {requirement}."
            )
        return numbers[0] if size == 1 else tuple(numbers)

    return convert


def _word_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    for (label, where), example in zip(rows, corpus.examples, strict=True):
        if not isinstance(label, tuple) or len(label) != len(example.words):
            raise UserError(
                f"{where} has no list of words with a class for each, which {quote_model(lm)} predicts; give data with "
                f"{NEEDED[lm.task]}."
            )

    def words(label: Label, where: str) -> Iterator[tuple[float | str, str]]:
        """Each tag of a row with the place of its word."""
        return ((tag, f"{where}, word {at}") for at, tag in enumerate(_as_tuple(label), start=1))

    # Each tag once, with the place of its first word.
    first: dict[float | str, str] = {}
    for label, where in rows:
        for tag, place in words(label, where):
            first.setdefault(tag, place)
    number = ClassNumbers(lm, corpus, list(first.items()))

    def convert(label: Label, where: str) -> tuple[float, ...]:
        return tuple(number(tag, place) for tag, place in words(label, where))

    return convert


def _answer_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    return lambda label, where: tuple(place for place in _as_tuple(label) if isinstance(place, float))


def _choice_converter(lm: LanguageModel, corpus: Corpus, rows: Placed) -> Converter:
    counts = {where: len(example.choices) for (_, where), example in zip(rows, corpus.examples, strict=True)}

    def convert(label: Label, where: str) -> int:
        count = counts[where]
        if not count:
            raise UserError(f"{where} has no choices, and {quote_model(lm)} needs {NEEDED[lm.task]}.")
        number = int(label) if isinstance(label, float) and label.is_integer() else -1
        if not 0 <= number < count:
            raise UserError(
                f"{where} has the label {quote_label(label)} and {count} choices; the label must be the index of a "
                f"choice, from 0 to {count - 1}."
            )
        return number

    return convert


_CONVERTERS: dict[ModelTask, Callable[[LanguageModel, Corpus, Placed], Converter]] = {
    ModelTask.CLASSIFICATION: _class_converter,
    ModelTask.MULTI_LABEL: _multi_label_converter,
    ModelTask.REGRESSION: _score_converter,
    ModelTask.EMBEDDING: _score_converter,
    ModelTask.TOKEN_CLASSIFICATION: _word_converter,
    ModelTask.QUESTION_ANSWERING: _answer_converter,
    ModelTask.MULTIPLE_CHOICE: _choice_converter,
}
