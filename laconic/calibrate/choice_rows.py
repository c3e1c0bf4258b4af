"""Tokenize multiple choice: each choice is a sequence of its own, after the text that it continues or answers."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from laconic.calibrate.classes import quote_model
from laconic.calibrate.corpus import Example
from laconic.calibrate.labels import NEEDED, Target
from laconic.calibrate.row import Row, row_from
from laconic.errors import UserError
from laconic.model import LanguageModel, ModelTask


def choice_rows(
    lm: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    labels: Sequence[Target | None],
    longest: int,
) -> Iterator[Row]:
    """Yield a row for each example, with a sequence for each of its choices.

    Args:
        lm: the model.
        tokenizer: its tokenizer.
        examples: the rows.
        labels: the index of the right choice of each row, or None if labels are not read.
        longest: largest number of tokens of a sequence.

    Raises:
        UserError: a row has no choices, or another number of choices than the first one.
    """
    for number, (example, label) in enumerate(zip(examples, labels, strict=True)):
        check_has_choices(lm, example, number, examples[0])
        choices = [
            row_from(lm, tokenizer(example.text, choice, truncation=True, max_length=longest))
            for choice in example.choices
        ]
        longest_choice = max(choices, key=lambda row: len(row.input_ids))
        yield Row(longest_choice.input_ids, labels=label, choices=choices)


def check_has_choices(lm: LanguageModel, example: Example, number: int, first: Example) -> None:
    """Check that a row has choices, as many as the first one.

    Args:
        lm: the model.
        example: the row.
        number: its number, from 0, for an error message about a row that is from no file.
        first: the first row.

    Raises:
        UserError: the row has another number of choices, or none.
    """
    place = example.place or f"Row {number + 1}"
    if not example.choices:
        raise UserError(
            f"{place} has no choices, and {quote_model(lm)} chooses one of several texts; give data with "
            f"{NEEDED[ModelTask.MULTIPLE_CHOICE]}."
        )
    if len(example.choices) != len(first.choices):
        raise UserError(
            f"{place} has {len(example.choices)} choices, and {first.place or 'row 1'} has {len(first.choices)}; give "
            "all rows the same number."
        )
