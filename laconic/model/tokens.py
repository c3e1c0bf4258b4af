"""Token ids of a model: the size of its vocabulary, and the special tokens of its configuration.

A configuration may have null or a list for a special token, or an id without a row in the word embedding: for example,
if a pad token was added to a tokenizer and the embedding was not resized.
"""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from laconic.errors import UserError
from laconic.formats import Format
from laconic.model.lm import LanguageModel
from laconic.model.stock import text_config
from laconic.model.task import ModelTask

SHIFT_TOKENS = ("decoder_start_token_id", "pad_token_id")
"""The special tokens that a sequence-to-sequence model needs to shift its labels."""


def special_token_ids(config: PreTrainedConfig, name: str) -> tuple[int, ...]:
    """The ids of a special token in a configuration; empty if it is not set.

    Args:
        config: the configuration; in a multimodal model, its text part is read.
        name: the key, such as `eos_token_id`.

    Example:
        >>> from transformers import GPT2Config
        >>> special_token_ids(GPT2Config(eos_token_id=[7, 9]), "eos_token_id")
        (7, 9)
    """
    value = getattr(text_config(config), name, None)
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(token for token in values if isinstance(token, int))


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens that a model reads: the rows of its word embedding, or of its encoder's embedding."""
    return _rows(model.get_input_embeddings(), model)


def target_vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens that the decoder of an encoder-decoder reads."""
    decoder: Any = model.get_decoder()
    return _rows(decoder.get_input_embeddings(), model)


def pad_token_id(lm: LanguageModel) -> int | None:
    """The pad token of the configuration; None if it has none, or if the word embedding has no row for it."""
    tokens = special_token_ids(lm.model.config, "pad_token_id")
    return tokens[0] if tokens and 0 <= tokens[0] < vocabulary_size(lm.model) else None


def check_token_ids(lm: LanguageModel, tokens: Iterable[int], targets: bool = False) -> None:
    """Check that the word embedding has a row for each token.

    Args:
        lm: the model.
        tokens: ids from its tokenizer.
        targets: whether the decoder of an encoder-decoder reads them.

    Raises:
        UserError: a token has no row.
    """
    size = target_vocabulary_size(lm.model) if targets else vocabulary_size(lm.model)
    token = next((token for token in tokens if not 0 <= token < size), None)
    if token is None:
        return
    tokenizer = (lm.target_tokenizer if targets else None) or lm.tokenizer
    text = "" if tokenizer is None else f" (for '{tokenizer.convert_ids_to_tokens(token)}')"
    raise UserError(
        f"The tokenizer of '{lm.source}' gives the token {token}{text}, and the model has embeddings for {size} "
        f"tokens, 0 to {size - 1}; use the tokenizer that it was trained with, or resize its embeddings."
    )


def check_decoder_start(lm: LanguageModel) -> None:
    """Check that a sequence-to-sequence model has a valid first token of the decoder.

    Models of other tasks pass. The weights are not needed.

    Raises:
        UserError: the configuration has no such token, or the decoder's word embedding has no row for it.
    """
    if lm.task is not ModelTask.SEQ2SEQ:
        return
    try:
        shifted = shift_labels(lm.model, torch.zeros(1, 1, dtype=torch.long))
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        missing = [name for name in SHIFT_TOKENS if not special_token_ids(lm.model.config, name)] or SHIFT_TOKENS
        raise UserError(
            f"The configuration of '{lm.source}' has no {' and no '.join(missing)}, with which its decoder begins; set "
            "it in config.json to the token that the model was trained with."
        ) from error
    first, size = int(shifted[0, 0]), target_vocabulary_size(lm.model)
    if not 0 <= first < size:
        raise UserError(
            f"The decoder of '{lm.source}' begins with the token {first}, as its configuration says, and has "
            f"embeddings for {size} tokens, 0 to {size - 1}; set decoder_start_token_id in config.json to the token "
            "that the model was trained with."
        )


@runtime_checkable
class _ShiftsLabels(Protocol):
    """A class of transformers that shifts labels by a method of its own."""

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor: ...


def shift_labels(model: PreTrainedModel, labels: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """The inputs of a decoder that predicts `labels`: one token later, after the token that it begins with.

    Args:
        model: an encoder-decoder with a language modelling head.
        labels: the token ids; −100 is replaced by the padding token.

    Raises:
        AttributeError: the configuration has no key for a special token.
        TypeError: a special token is null; some classes raise `AssertionError`, `RuntimeError` or `ValueError`.
    """
    if isinstance(model, _ShiftsLabels):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    # M2M100 and Blenderbot have no such method, and do the same inside their forward pass.
    first, padding = (getattr(model.config, name) for name in SHIFT_TOKENS)
    shifted = torch.cat((torch.full_like(labels[:, :1], first), labels[:, :-1]), dim=1)
    return shifted.masked_fill(shifted == -100, padding)


def _rows(embedding: Any, model: PreTrainedModel) -> int:
    """The rows of a word embedding, compressed or not; for another module, `vocab_size` of the configuration."""
    if isinstance(embedding, Format):
        return embedding.shape[1]
    rows: Any = getattr(embedding, "num_embeddings", None)
    return int(text_config(model.config).vocab_size if rows is None else rows)
