"""The text model inside a model of text and images, and its entry with paths from the whole.

Such a model has a configuration for each of its parts. Its text model is an ordinary decoder, such as LLaMA's, at a
path of its own.
"""

from dataclasses import replace

from transformers import PreTrainedModel

from laconic.model.anatomy import Anatomy, Depth, Stack, WordEmbedding, find_entry
from laconic.model.anatomy.parts import Attention
from laconic.model.stock import text_config


def find_text_anatomy(model: PreTrainedModel) -> Anatomy | None:
    """The entry of the text model inside `model`, with paths from the base model of the whole.

    Args:
        model: a model of text and images.

    Returns:
        The anatomy; None if there is no text model inside, or its architecture has no entry.
    """
    path = _text_path(model)
    if path is None:
        return None
    entry = find_entry(text_config(model.config).model_type)
    return None if entry is None else with_prefix(entry, path)


def with_prefix(anatomy: Anatomy, prefix: str) -> Anatomy:
    """The anatomy of a model that has the model of `anatomy` at the path `prefix`.

    Example:
        >>> from laconic.model.anatomy.llama import LLAMA
        >>> [stack.blocks for stack in with_prefix(LLAMA, "language_model").stacks]
        ['language_model.layers']
    """
    return replace(
        anatomy,
        stacks=tuple(_prefixed_stack(stack, prefix) for stack in anatomy.stacks),
        embeddings=tuple(_prefixed_table(table, prefix) for table in anatomy.embeddings),
    )


def _text_path(model: PreTrainedModel) -> str | None:
    """The path from the base model of `model` to the base model of its text model; None if there is none."""
    config = text_config(model.config)
    if config is model.config or model.config.is_encoder_decoder:
        return None
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model]
    inner = next((part.base_model for part in parts if type(part.config) is type(config)), None)
    return next((path for path, module in model.base_model.named_modules() if path and module is inner), None)


def _prefixed_stack(stack: Stack, prefix: str) -> Stack:
    return replace(
        stack,
        blocks=f"{prefix}.{stack.blocks}",
        depth=None if stack.depth is None else _prefixed_depth(stack.depth, prefix),
        attention=_prefixed_attention(stack.attention, prefix),
        cross_attention=_prefixed_attention(stack.cross_attention, prefix),
    )


def _prefixed_depth(depth: Depth, prefix: str) -> Depth:
    # An empty `first_only` says that the first block must always stay.
    first = f"{prefix}.{depth.first_only}" if depth.first_only else depth.first_only
    norm = None if depth.input_norm is None else f"{prefix}.{depth.input_norm}"
    return replace(depth, first_only=first, input_norm=norm)


def _prefixed_attention(attention: Attention | None, prefix: str) -> Attention | None:
    if attention is None or attention.heads is None or attention.heads.model_position_bias is None:
        return attention
    bias = f"{prefix}.{attention.heads.model_position_bias}"
    return replace(attention, heads=replace(attention.heads, model_position_bias=bias))


def _prefixed_table(table: WordEmbedding, prefix: str) -> WordEmbedding:
    return replace(table, path=f"{prefix}.{table.path}")
