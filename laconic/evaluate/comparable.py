"""Check that two models predict the same things from the same tokens, so that their outputs can be compared."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from laconic.calibrate.classes import match_outputs, quote_model
from laconic.errors import UserError
from laconic.evaluate.eval_task import with_article
from laconic.model import LanguageModel, ModelTask
from laconic.model.tokens import target_vocabulary_size, vocabulary_size


def check_comparable(lm: LanguageModel, original: LanguageModel, classes: Sequence[str] = ()) -> list[int] | None:
    """Check that two models predict the same things, so that they can be compared row by row.

    Args:
        lm: the compressed model, with or without weights.
        original: the original model, with or without weights.
        classes: names of the classes in the data.

    Returns:
        For each output of the original, the index of the same class among the outputs of `lm`; None if the order is the
        same.

    Raises:
        UserError: the models have different tasks, vocabularies or classes.
    """
    if lm.task is not original.task:
        ours, theirs = with_article(lm.task.value), with_article(original.task.value)
        raise UserError(
            f"The models cannot be compared: one is {ours}, the other {theirs} model; "
            "name the model that it was made from."
        )
    ours, theirs = _vocabulary_size(lm), _vocabulary_size(original)
    if ours != theirs:
        raise UserError(
            f"The models cannot be compared: {quote_model(lm)} has a vocabulary of {ours} tokens, and "
            f"{quote_model(original)} one of {theirs}; name the model that it was made from."
        )
    return match_outputs(original, lm, classes)


def check_token_names(lm: LanguageModel, original: LanguageModel, tokens: Collection[int]) -> None:
    """Check that token ids are the same tokens to the tokenizers of two models.

    Args:
        lm: the compressed model.
        original: the original. Nothing is checked if one of the models has no tokenizer.
        tokens: the ids.

    Raises:
        UserError: an id is another token in the tokenizer of `lm`.
    """
    if lm.tokenizer is not None and original.tokenizer is not None:
        check_names_in((lm.tokenizer, original.tokenizer), (quote_model(lm), quote_model(original)), tokens)


def check_names_in(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    models: tuple[str, str],
    tokens: Collection[int],
) -> None:
    """As `check_token_names`, for two tokenizers.

    Args:
        tokenizers: the tokenizer of the compressed model and that of the original.
        models: the models as errors name them.
        tokens: the ids.

    Raises:
        UserError: an id is another token in the first tokenizer.
    """
    used = sorted(tokens)
    names = zip(*(tokenizer.convert_ids_to_tokens(used) for tokenizer in tokenizers), strict=True)
    for token, (ours, theirs) in zip(used, names, strict=True):
        if ours != theirs:
            raise UserError(
                f"The models cannot be compared: token {token} is {_quote(ours)} to the tokenizer of {models[0]} "
                f"and {_quote(theirs)} to that of {models[1]}; name the model that it was made from."
            )


def _quote(token: str | None) -> str:
    return "nothing" if token is None else f"'{token}'"


def _vocabulary_size(lm: LanguageModel) -> int | None:
    """The size of the vocabulary that the model predicts; None for a model that does not predict tokens."""
    if lm.task is ModelTask.SEQ2SEQ:
        return target_vocabulary_size(lm.model)
    return vocabulary_size(lm.model) if lm.task in (ModelTask.CAUSAL, ModelTask.MASKED) else None
