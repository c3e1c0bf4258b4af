"""Tokenize sentences for models that predict a class for each word, such as named entities.

The words of a row are joined by spaces and tokenized as one text. Each word is predicted at its first token (Devlin et
al. 2019, section 5.3, https://arxiv.org/abs/1810.04805); its other tokens, special tokens and padding have the label
−100. A row without words in the data is split at spaces.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from laconic.calibrate.corpus import Example
from laconic.calibrate.labels import Target
from laconic.calibrate.row import IGNORED, Row, check_gives_places, row_from
from laconic.model import LanguageModel

ANY_CLASS = 0
"""The label at the first token of a word whose class is unknown; it marks where the model predicts."""


class WordRow(NamedTuple):
    """A tokenized sentence.

    Args:
        row: its tokens, with a label at the first token of each word.
        tokens: the first token of each word; None for a word that has none or was cut off.
    """

    row: Row
    tokens: list[int | None]


def tagged_rows(
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    classes: Sequence[Target | None],
    longest: int,
) -> Iterator[Row]:
    """Yield the tokenized rows that have words.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        examples: the rows.
        classes: the class of each word of each row, or None if they are not read.
        longest: largest number of tokens of a row.

    Raises:
        UserError: the tokenizer does not give the place of each token in the text.
    """
    for example, targets in zip(examples, classes, strict=True):
        words = words_of(example)
        known = targets if isinstance(targets, tuple) else [ANY_CLASS] * len(words)
        row, tokens = tag_words(lm, tokenizer, words, [int(target) for target in known], longest)
        if any(token is not None for token in tokens):
            yield row


def words_of(example: Example) -> Sequence[str]:
    """The words of a row; a text is split at spaces."""
    return example.words or example.joined.split()


def tag_words(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, words: Sequence[str], classes: Sequence[int], longest: int
) -> WordRow:
    """Tokenize one sentence.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        words: the words.
        classes: the class of each word.
        longest: largest number of tokens; the words behind it are cut off.

    Raises:
        UserError: the tokenizer does not give the place of each token in the text.
    """
    check_gives_places(lm, tokenizer)
    encoding = tokenizer(" ".join(words), truncation=True, max_length=longest)
    row = row_from(lm, encoding)
    row.labels = labels = [IGNORED] * len(row.input_ids)
    tokens: list[int | None] = []
    begin = 0
    for word, target in zip(words, classes, strict=True):
        # A tokenizer may drop characters, such as control characters, at the beginning of a word.
        places = (encoding.char_to_token(at) for at in range(begin, begin + len(word)))
        token = next((place for place in places if place is not None), None)
        # A token that spans two words predicts the first one.
        if token is not None and labels[token] == IGNORED:
            labels[token] = target
        else:
            token = None
        tokens.append(token)
        begin += len(word) + 1
    return WordRow(row, tokens)
