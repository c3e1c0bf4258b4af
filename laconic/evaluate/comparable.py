"""Whether two models can be compared row by row: that they predict the same things, of the same tokens."""

from collections.abc import Sequence

from laconic.calibrate.batching import positions
from laconic.calibrate.classes import called, output_places
from laconic.errors import UserError
from laconic.evaluate.eval_task import a
from laconic.evaluate.reference import Reference
from laconic.model import LanguageModel, Task
from laconic.model.tokens import target_vocabulary_size, vocabulary_size


def check_comparable(lm: LanguageModel, original: LanguageModel, classes: Sequence[str] = ()) -> list[int] | None:
    """For each output of the original, which of `lm` is the same class; None where all lie alike. `classes` are what
    data calls them.

    Raises:
        UserError: they predict different things; weights may be absent.
    """
    if lm.task is not original.task:
        raise UserError(
            f"The models cannot be compared: one is {a(lm.task.value)}, the other {a(original.task.value)} model; "
            "name the model that it was made from."
        )
    ours, theirs = _tokens(lm), _tokens(original)
    if ours != theirs:
        raise UserError(
            f"The models cannot be compared: {called(lm)} tells {ours} tokens apart, and {called(original)} {theirs}; "
            "name the model that it was made from."
        )
    return output_places(original, lm, classes)


def check_readable(lm: LanguageModel, reference: Reference) -> None:
    """Raise UserError where `lm` cannot read the rows of `reference`, which its original's tokenizer has made tokens
    of: a token means something else to it, or the rows are too long."""
    original = reference.original
    longest, length = positions(lm), max(batch["input_ids"].shape[1] for batch in reference.batches)
    if longest is not None and length > longest:
        raise UserError(
            f"The models cannot be compared: {called(lm)} reads {longest} tokens at most, and {called(original)} reads "
            f"rows of {length}; name the model that it was made from."
        )
    if lm.tokenizer is None or original.tokenizer is None:
        return
    used = sorted({token for batch in reference.batches for token in batch["input_ids"].unique().tolist()})
    said = zip(*(one.convert_ids_to_tokens(used) for one in (lm.tokenizer, original.tokenizer)), strict=True)
    for token, (ours, theirs) in zip(used, said, strict=True):
        if ours != theirs:
            raise UserError(
                f"The models cannot be compared: token {token} is {_quoted(ours)} to the tokenizer of {called(lm)} and "
                f"{_quoted(theirs)} to that of {called(original)}; name the model that it was made from."
            )


def _quoted(token: str | None) -> str:
    return "nothing" if token is None else f"'{token}'"


def _tokens(lm: LanguageModel) -> int | None:
    """How many tokens a prediction tells apart; None where it is of something else."""
    if lm.task is Task.SEQ2SEQ:
        return target_vocabulary_size(lm.model)
    return vocabulary_size(lm.model) if lm.task in (Task.CAUSAL, Task.MASKED) else None
