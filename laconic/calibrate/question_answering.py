"""Tokenize questions and their contexts for models that predict the first and last token of the answer.

A context that is too long for one row is read in windows, each after the question, that overlap by a third of the row
(Devlin et al. 2019, https://arxiv.org/abs/1810.04805, whose code overlaps windows of 384 tokens by 128). Where a window
has no answer, the model predicts the classification token.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from transformers import BatchEncoding, PreTrainedTokenizerBase

from laconic.calibrate.classes import quote_model
from laconic.calibrate.corpus import Example
from laconic.calibrate.labels import Target
from laconic.calibrate.row import Row, check_gives_places, row_from
from laconic.errors import UserError
from laconic.model import LanguageModel

OVERLAP = 3
"""The overlap of two windows is the length of a row divided by this number."""


class Window(NamedTuple):
    """A part of a context, tokenized after the question.

    Args:
        row: its tokens, without labels.
        places: (begin, end) of each token in the context, in characters; (0, 0) for other tokens.
        null: the index of the token that is predicted if there is no answer.
    """

    row: Row
    places: list[tuple[int, int]]
    null: int


def answer_rows(
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    answers: Sequence[Target | None],
    longest: int,
) -> Iterator[Row]:
    """Yield a row for each window of each context.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        examples: the rows; a row without a context is itself the context of an empty question.
        answers: the first character and the end of the answer of each row, an empty tuple for no answer, or None if
            answers are not read.
        longest: largest number of tokens of a row.

    Raises:
        UserError: the tokenizer does not give the place of each token in the text, or `longest` is too small.
    """
    for example, answer in zip(examples, answers, strict=True):
        for window in windows(lm, tokenizer, example, longest):
            if isinstance(answer, tuple):
                window.row.labels = _positions(window, answer)
            yield window.row


def windows(lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, example: Example, longest: int) -> list[Window]:
    """Tokenize a question with its context, in as many windows as the context needs.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        example: the question and its context.
        longest: largest number of tokens of a window; half of it at most is used for the question.

    Raises:
        UserError: the tokenizer does not give the place of each token in the text, or `longest` is too small.
    """
    check_gives_places(lm, tokenizer)
    question = "" if example.pair is None else _cut(tokenizer, example.text, longest // 2)
    context = example.text if example.pair is None else example.pair
    # An empty text beside the context would be a pair too, with separators that no model saw in training.
    texts = [question, context] if question else [context]
    used = len(tokenizer(question, add_special_tokens=False)["input_ids"]) if question else 0
    room = longest - used - tokenizer.num_special_tokens_to_add(pair=bool(question))
    if room < 1:
        raise UserError(
            f"max_length {longest} leaves {quote_model(lm)} no room for a context beside the question "
            f"{_place(example)}; give a larger max_length."
        )
    encoding = tokenizer(
        texts[0],
        texts[1] if question else None,
        truncation="only_second" if question else True,
        max_length=longest,
        # The tokenizer requires an overlap that is smaller than the room.
        stride=min(longest // OVERLAP, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    return [_window(lm, tokenizer, encoding, number, len(texts) - 1) for number in range(len(encoding["input_ids"]))]


def _place(example: Example) -> str:
    return f"of {example.place}" if example.place else f"'{example.text}'"


def _cut(tokenizer: PreTrainedTokenizerBase, question: str, most: int) -> str:
    """The beginning of a question, with `most` tokens at most."""
    places = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return question if len(places) <= most else question[: places[most - 1][1]] if most else ""


def _window(
    lm: LanguageModel, tokenizer: PreTrainedTokenizerBase, encoding: BatchEncoding, number: int, sequence: int
) -> Window:
    row, parts = row_from(lm, encoding, number), encoding.sequence_ids(number)
    null = _null_token(tokenizer, row.input_ids)
    row.context = [int(part == sequence or at == null) for at, part in enumerate(parts)]
    offsets = encoding["offset_mapping"][number]
    places = [place if part == sequence else (0, 0) for place, part in zip(offsets, parts, strict=True)]
    return Window(row, places, null)


def _null_token(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """The index of the classification token, else of the start token, else 0."""
    tokens = (tokenizer.cls_token_id, tokenizer.bos_token_id)
    return next((ids.index(token) for token in tokens if isinstance(token, int) and token in ids), 0)


def _positions(window: Window, answer: tuple[float, ...]) -> tuple[int, int]:
    """The first and the last token of the answer in a window; twice the null token if the window lacks a part of it."""
    if not answer:
        return window.null, window.null
    begin, end = map(int, answer)
    inside = [at for at, (first, last) in enumerate(window.places) if first < end and last > begin]
    if not inside or window.places[inside[0]][0] > begin or window.places[inside[-1]][1] < end:
        return window.null, window.null
    return inside[0], inside[-1]
