"""Sentences whose words have classes, such as named entities: files in columns, and records with a list of words.

A file in columns has one word per line, with the word in the first column and its class in the last, and an empty line
after each sentence (Tjong Kim Sang and De Meulder 2003, https://aclanthology.org/W03-0419). Columns are separated by
tabs, or by spaces if the file has no tabs.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.calibrate.corpus import Example, Label, as_json, label_from, read_text
from laconic.errors import UserError, must_be, quote

ENDINGS = (".conll", ".bio", ".iob", ".iob2")
DOCUMENT = "-DOCSTART-"
"""The first word of the line before a document, which is no sentence."""
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "pos_tags", "labels")

_COMMENT = re.compile(r"#\s*(id\b|[\w.]+\s*=)")
"""A line about a sentence, such as `# sent_id = 3` of CoNLL-U."""


def read_conll(path: Path) -> list[Example]:
    """Read one row for each sentence of a file in columns.

    Raises:
        UserError: a line has another number of columns than the first one, or the first has only one.
    """
    text = read_text(path)
    before, tab, _ = text.partition("\t")
    separator = tab or None
    note = f" (columns are separated by tabs, as line {before.count(chr(10)) + 1} has one)" if tab else ""
    examples: list[Example] = []
    sentence: list[tuple[str, str]] = []
    begin = first = width = 0
    for at, line in enumerate((*text.split("\n"), ""), start=1):
        columns = [column.strip() for column in line.split(separator)]
        if not line.strip() or columns[0] == DOCUMENT:
            if sentence:
                words, tags = zip(*sentence, strict=True)
                examples.append(word_example(words, tags, f"{path}:{begin}"))
            sentence = []
            continue
        if _COMMENT.match(line):
            continue
        begin = begin if sentence else at
        first, width = (first, width) if first else (at, len(columns))
        _check_columns(f"{path}:{at}", columns, width, first, note)
        sentence.append((columns[0], columns[-1]))
    return examples


def _check_columns(place: str, columns: Sequence[str], width: int, first: int, note: str) -> None:
    """Raise UserError if a line has a wrong number of columns, or no word or class.

    Args:
        place: file and line.
        columns: the columns of the line.
        width: the number of columns of the first line.
        first: the number of the first line.
        note: how columns are separated, for the message.
    """
    count = f"{len(columns)} column{'' if len(columns) == 1 else 's'}{note}"
    if len(columns) != width:
        raise UserError(f"{place} has {count}, and line {first} has {width}; give each word the same columns.")
    if width < 2:
        raise UserError(f"{place} has {count}; a line must have a word in the first column and its class in the last.")
    if not columns[0] or not columns[-1]:
        raise UserError(f"{place} has no {'class' if columns[0] else 'word'}; fix the line.")


def tagged_example(record: Mapping[str, Any], place: str) -> Example | None:
    """Convert a record with a list of words and a list of their classes.

    Args:
        record: fields by name: `tokens` or `words`, and `ner_tags`, `tags`, `pos_tags` or `labels`.
        place: file and line of the row, for error messages.

    Returns:
        The row; None if the record has no list of words.

    Raises:
        UserError: a word is no text, or the two lists have different lengths.

    Example:
        >>> tagged_example({"tokens": ["in", "Oslo"], "ner_tags": ["O", "B-LOC"]}, "a.jsonl:1").label
        ('O', 'B-LOC')
    """
    field = next((name for name in WORDS if isinstance(record.get(name), (list, tuple))), None)
    if field is None:
        return None
    words = record[field]
    wrong = next((word for word in words if not isinstance(word, str)), None)
    if wrong is not None:
        raise must_be(f"{place}: the field '{field}'", "a list of words", as_json(words))
    name = next((name for name in TAGS if record.get(name) is not None), None)
    if name is None:
        return word_example(words, None, place)
    tags = record[name]
    if not isinstance(tags, (list, tuple)):
        raise must_be(f"{place}: the field '{name}'", "a list with the class of each word", as_json(tags))
    if len(tags) != len(words):
        raise UserError(
            f"{place} has {len(words)} words in '{field}' and {len(tags)} classes in '{name}'; give each word one."
        )
    return word_example(words, label_from(tags), place)


def word_example(words: Sequence[str], tags: Label | None, place: str) -> Example:
    """Make the row of a sentence.

    Args:
        words: its words.
        tags: a class for each word; None if they have none.
        place: file and line of the sentence, for error messages.

    Raises:
        UserError: a word is empty.
    """
    empty = next((at for at, word in enumerate(words) if not word.strip()), None)
    if empty is not None:
        raise UserError(f"{place} has {quote(words[empty])} as word {empty + 1}; leave empty words out.")
    return Example(" ".join(words), label=tags, words=tuple(words), place=place)
