"""Questions with the text that has the answer: SQuAD's files, and records with a question, a context and answers.

SQuAD 1.1: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250. SQuAD 2.0, whose questions need not have an answer:
Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.calibrate.corpus import Answer, Example, as_json, text_from
from laconic.errors import UserError, must_be, quote

IMPOSSIBLE = "is_impossible"


def is_squad(content: Any) -> bool:
    """Whether the content of a JSON file is that of a SQuAD file: an object with a list `data`."""
    return isinstance(content, Mapping) and isinstance(content.get("data"), list)


def squad_examples(content: Mapping[str, Any], text: str, path: Path) -> list[Example]:
    """Read one row for each question of a SQuAD file.

    Args:
        content: the content of the file.
        text: the same as text, for the lines of the questions.
        path: the file, for error messages.

    Raises:
        UserError: a part of the file has another form, or an answer is not in its context.
    """
    lines = _LineFinder(text, path)
    examples: list[Example] = []
    articles = _objects(content, "data", str(path))
    paragraphs = (pair for article, where in articles for pair in _objects(article, "paragraphs", where))
    for paragraph, where in paragraphs:
        for question, number in _objects(paragraph, "qas", where):
            place = lines(question, number)
            if "context" not in paragraph or "question" not in question:
                missing = "question" if "context" in paragraph else "context"
                raise UserError(f"{place} has no '{missing}'; add it.")
            example = question_example({"context": paragraph["context"], **question}, place)
            assert example is not None, "the record has a question and a context"
            examples.append(example)
    return examples


def _objects(parent: Mapping[str, Any], field: str, where: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The objects in a list, each with its place."""
    entries = parent.get(field)
    if not isinstance(entries, list):
        raise must_be(f"{where}: the field '{field}'", "a list of objects", as_json(entries))
    for at, entry in enumerate(entries):
        place = f"{where}: {field}[{at}]" if field == "data" else f"{where}.{field}[{at}]"
        if not isinstance(entry, Mapping):
            raise must_be(place, "an object of named fields", as_json(entry))
        yield entry, place


class _LineFinder:
    """Finds the line of each question by its id, because JSON parsers give no lines. Questions come in their order."""

    def __init__(self, text: str, path: Path) -> None:
        self._text, self._path, self._at, self._line = text, path, 0, 1

    def __call__(self, question: Mapping[str, Any], where: str) -> str:
        """The file and line of a question with its id; `where` if it has none, or none in the rest of the text."""
        key = question.get("id")
        found = -1 if key is None else self._text.find(json.dumps(key, ensure_ascii=False), self._at)
        if found < 0:
            return where
        self._line += self._text.count("\n", self._at, found)
        self._at = found
        return f"{self._path}:{self._line} (question {key})"


def question_example(record: Mapping[str, Any], place: str) -> Example | None:
    """Convert a record with a question, a context and answers.

    Args:
        record: fields by name: `question`, `context`, and `answers`, as SQuAD's files have them (a list of objects with
            `text` and `answer_start`) or as the hub has them (an object with a list of each). An answer may be a text
            only, which is then looked for in the context. With an empty list, or `is_impossible`, there is no answer.
        place: file and line of the row, for error messages.

    Returns:
        The row; None if the record has no question and context.

    Raises:
        UserError: the question or the context is no text, or an answer is not in the context.

    Example:
        >>> record = {"question": "Who?", "context": "Ada wrote.", "answers": {"text": ["Ada"], "answer_start": [0]}}
        >>> question_example(record, "a.jsonl:1").answers
        (Answer(text='Ada', start=0),)
    """
    if "question" not in record or "context" not in record:
        return None
    question, context = (text_from(record, name, place) for name in ("question", "context"))
    answers = _answers(record, context, place)
    # A question keeps no spaces at its ends; the context does, because answers count its characters.
    return Example(question.strip(), context, answers=answers, place=place)


def _answers(record: Mapping[str, Any], context: str, place: str) -> tuple[Answer, ...] | None:
    if record.get(IMPOSSIBLE) is True:
        return ()
    given = record.get("answers")
    if given is None:
        return None
    entries = _split(given, place) if isinstance(given, Mapping) else given
    if not isinstance(entries, list):
        raise must_be(f"{place}: the field 'answers'", "a list of texts, or of text and answer_start", as_json(given))
    return tuple(_answer(entry, context, place) for entry in entries)


def _split(answers: Mapping[str, Any], place: str) -> Sequence[Mapping[str, Any]]:
    """The objects for a list of texts and a list of starts, as the hub has them."""
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise must_be(f"{place}: the field 'answers'", "lists text and answer_start of one length", as_json(answers))
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def _answer(entry: Any, context: str, place: str) -> Answer:
    record = {"text": entry} if isinstance(entry, str) else entry
    if not isinstance(record, Mapping) or not isinstance(record.get("text"), str) or not record["text"].strip():
        raise must_be(f"{place}: an answer", "text, or an object with text and answer_start", as_json(entry))
    text: str = record["text"]
    start: Any = record.get("answer_start")
    if text not in context:
        raise UserError(f"{place} has the answer {quote(text)}, which is not in its context; fix the row.")
    if start is None:
        return Answer(text, context.index(text))
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        requirement = "a whole number, the first character of the answer in the context, from 0"
        raise must_be(f"{place}: the field 'answer_start'", requirement, as_json(start))
    found = context[start : start + len(text)]
    if found != text:
        raise UserError(
            f"{place} has the answer {quote(text)} at character {start} of its context, where it has {quote(found)}; "
            "fix answer_start, or leave it out."
        )
    return Answer(text, start)
