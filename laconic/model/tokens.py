"""The numbers of a model's tokens: how many it has rows for, and what its configuration declares of special ones.

A configuration need not have an entry for each special token; it may say null, a list, or a number that is no row of
the word embedding, as where a tokenizer was given a pad token and the embedding was not resized.
"""

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError
from laconic.formats import Format
from laconic.model.lm import LanguageModel
from laconic.model.stock import text_config
from laconic.model.task import Task

NEEDED_BY_TARGETS = ("decoder_start_token_id", "pad_token_id")
"""Of a sequence-to-sequence model, with what its targets are shifted."""


def special_token_ids(config: PreTrainedConfig, name: str) -> tuple[int, ...]:
    """The tokens that `name` (`eos_token_id`, …) stands for in a configuration; none where it says none.

    >>> from transformers import GPT2Config
    >>> declared(GPT2Config(eos_token_id=[7, 9]), "eos_token_id")
    (7, 9)
    """
    said = getattr(text_config(config), name, None)
    several = said if isinstance(said, (list, tuple)) else (said,)
    return tuple(token for token in several if isinstance(token, int))


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens a model reads: the rows of its word embedding, of the encoder's where there are two."""
    return _rows(model.get_input_embeddings(), model)


def target_vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens the decoder of an encoder-decoder reads."""
    decoder: Any = model.get_decoder()
    return _rows(decoder.get_input_embeddings(), model)


def pad_token_id(lm: LanguageModel) -> int | None:
    """The pad token that the configuration declares; None where it declares none that the model has a row for."""
    tokens = special_token_ids(lm.model.config, "pad_token_id")
    return tokens[0] if tokens and 0 <= tokens[0] < vocabulary_size(lm.model) else None


def check_token_ids(lm: LanguageModel, tokens: Iterable[int], targets: bool = False) -> None:
    """Raise UserError where one of `tokens`, which a tokenizer of `lm` gave, has no row in the word embedding.

    targets: they are read by the decoder.
    """
    known = target_vocabulary_size(lm.model) if targets else vocabulary_size(lm.model)
    strange = next((token for token in tokens if not 0 <= token < known), None)
    if strange is None:
        return
    tokenizer = (lm.target_tokenizer if targets else None) or lm.tokenizer
    called = "" if tokenizer is None else f" (for '{tokenizer.convert_ids_to_tokens(strange)}')"
    raise UserError(
        f"The tokenizer of '{lm.source}' gives the token {strange}{called}, and the model has embeddings for {known} "
        f"tokens, 0 to {known - 1}; use the tokenizer that it was trained with, or resize its embeddings."
    )


def check_decoder_start(lm: LanguageModel) -> None:
    """Raise UserError where `lm` writes targets and its configuration does not say how they begin, or begins them with
    a token that the decoder does not know; any other is fine.

    Its weights may be absent.
    """
    if lm.task is not Task.SEQ2SEQ:
        return
    config = lm.model.config
    # Every encoder-decoder of transformers shifts its labels by what its configuration says.
    shift: Any = lm.model.prepare_decoder_input_ids_from_labels  # type: ignore[union-attr]
    try:
        shifted = shift(labels=torch.zeros(1, 1, dtype=torch.long))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        missing = [name for name in NEEDED_BY_TARGETS if not special_token_ids(config, name)] or list(NEEDED_BY_TARGETS)
        raise UserError(
            f"The configuration of '{lm.source}' has no {' and no '.join(missing)}, with which its decoder begins; set "
            "it in config.json, to what the model was trained with."
        ) from error
    begins, known = int(shifted[0, 0]), target_vocabulary_size(lm.model)
    if not 0 <= begins < known:
        raise UserError(
            f"The decoder of '{lm.source}' begins with the token {begins}, as its configuration says, and has "
            f"embeddings for {known} tokens, 0 to {known - 1}; set decoder_start_token_id in config.json to what the "
            "model was trained with."
        )


def _rows(table: Any, model: PreTrainedModel) -> int:
    """Of a word embedding, compressed or not; of what is none, as many as the configuration says."""
    if isinstance(table, Format):
        return table.shape[1]
    rows: Any = getattr(table, "num_embeddings", None)
    return int(text_config(model.config).vocab_size if rows is None else rows)
