"""One tokenized row, and the tokenizer that makes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from laconic.calibrate.classes import quote_model
from laconic.calibrate.labels import Target
from laconic.errors import UserError
from laconic.model import LanguageModel

IGNORED = -100
"""The label that the losses of transformers ignore."""


@dataclass
class Row:
    """One tokenized row.

    Args:
        input_ids: token ids; in multiple choice those of the longest choice.
        token_type_ids: segment ids; None if the model has no segment embeddings.
        labels: token ids or the class of each token (a list), a class or score (a number), one number for each output
            or the first and last token of an answer (a tuple), or None.
        unpooled: number of leading prompt tokens that an embedding model leaves out of its pooling.
        context: 1 for the tokens that may be in the answer to a question, else 0; None if the row is no question.
        choices: the rows of the choices of multiple choice; empty for other tasks.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None
    labels: list[int] | Target | None = None
    unpooled: int = 0
    context: list[int] | None = None
    choices: Sequence["Row"] = ()


def row_from(lm: LanguageModel, encoding: BatchEncoding | dict[str, Any], number: int | None = None) -> Row:
    """Make a row, without labels, from what the tokenizer returns.

    Args:
        lm: the model that reads the row.
        encoding: `input_ids` and, from some tokenizers, `token_type_ids`.
        number: the number of the row in an encoding of several; None for an encoding of one.
    """
    ids, segments = encoding["input_ids"], encoding.get("token_type_ids")
    # Only a model with segment embeddings may get segments: GPT-2 would look them up as words.
    if getattr(lm.model.config, "type_vocab_size", 0) <= 1:
        segments = None
    if number is not None:
        ids, segments = ids[number], None if segments is None else segments[number]
    return Row(list(ids), None if segments is None else list(segments))


def tokenizer_of(lm: LanguageModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        UserError: the model has none.
    """
    if lm.tokenizer is None:
        raise UserError(f"The model '{lm.source}' has no tokenizer in its folder; save its tokenizer there too.")
    return lm.tokenizer


def check_gives_places(lm: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer does not give the place of each token in the text."""
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of {quote_model(lm)} ({type(tokenizer).__name__}) does not give the place of its tokens in "
            f"the text, which {lm.task.value} needs; save the model with a tokenizer that has a tokenizer.json."
        )
