"""Encoders in a GGUF file, which give a vector for each text: their pooling, and their first position."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedConfig

from laconic.errors import UserError
from laconic.export.gguf.architectures import Architecture
from laconic.export.gguf.encoding import Encoded
from laconic.export.gguf.vocabulary import Vocabulary
from laconic.model import LanguageModel
from laconic.model.embedding import MEAN_POOLING
from laconic.model.embedding_modules import Normalize, Pooling

POOLINGS: Mapping[tuple[str, ...], int] = {("mean",): 1, ("cls",): 2, ("lasttoken",): 3}
"""llama.cpp's numbers for ways to pool."""
POSITIONS = "position_embd.weight"
KINDS = "ggml.token_type_count"
HEADS = ("pooler.",)
"""Parts that the vector of a text does not read."""


def pooling_type(lm: LanguageModel) -> int:
    """llama.cpp's number for the pooling of a model; that of the mean if none is declared.

    Args:
        lm: the model.

    Raises:
        UserError: llama.cpp has no such pooling, or no place for another module of the pipeline.
    """
    pipeline = lm.pipeline or MEAN_POOLING
    first, *others = pipeline.stage_list
    known = isinstance(first, Pooling) and first.modes in POOLINGS and first.include_prompt
    if not known or not all(isinstance(stage, Normalize) for stage in others):
        raise UserError(
            f"A GGUF file holds mean, cls or last-token pooling, and the model has {pipeline.describe()}; export it to "
            "onnx or openvino."
        )
    assert isinstance(first, Pooling)
    return POOLINGS[first.modes]


def first_position(config: PreTrainedConfig, architecture: Architecture) -> int:
    """The number of the first row of the position embeddings that a token gets."""
    return config.pad_token_id + 1 if architecture.skips_padding else 0


def from_first_position(
    tensors: Mapping[str, Encoded], config: PreTrainedConfig, architecture: Architecture
) -> dict[str, Encoded]:
    """The tensors with the position embeddings from the first one on.

    Args:
        tensors: the tensors by their names in the file.
        config: the configuration of the model.
        architecture: the architecture to write.
    """
    first = first_position(config, architecture)
    if not first:
        return dict(tensors)
    table = tensors[POSITIONS]
    return {**tensors, POSITIONS: table.take(torch.arange(first, table.shape[0]))}


def with_kinds(vocabulary: Vocabulary, config: PreTrainedConfig) -> Vocabulary:
    """The tokenizer with the number of the kinds of tokens, if any; llama.cpp takes the first one for all tokens."""
    kinds = getattr(config, "type_vocab_size", None)
    return vocabulary if kinds is None else replace(vocabulary, values={**vocabulary.values, KINDS: kinds})
