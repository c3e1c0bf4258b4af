"""Refuse what a GGUF file cannot hold, before weights are read: by the configuration, the tokenizer and the layers."""

from transformers import PreTrainedConfig

from laconic.errors import UserError, quote
from laconic.export.gguf.architectures import ARCHITECTURES, Architecture
from laconic.export.gguf.encoders import pooling_type
from laconic.export.gguf.metadata import sliding_window, window_period
from laconic.export.gguf.rope import check_rope, rope_parameters
from laconic.export.gguf.shape import head_size
from laconic.export.gguf.vocabulary import read_vocabulary
from laconic.export.gguf.widths import find_shape, fit
from laconic.formats import Codebook, PackedEmbedding
from laconic.model import LanguageModel, ModelTask
from laconic.model.checkpoints.checkpoint import require_package
from laconic.model.tokens import check_decoder_start

INSTEAD = "export it to onnx or openvino"
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation", "dense_act_fn")
LARGEST_GEMMA = (46, 62)
"""Numbers of blocks by which llama.cpp recognises the Gemmas of 27B, which scale attention otherwise."""


def check_gguf(lm: LanguageModel) -> Architecture:
    """Check that llama.cpp can compute a model, and find the architecture to write.

    Args:
        lm: the model, with or without weights.

    Returns:
        The entry of its architecture in the table.

    Raises:
        UserError: it cannot; the error names the reason.
    """
    config = lm.model.config
    architecture = _find_architecture(lm)
    if architecture.embeds:
        pooling_type(lm)
    check_decoder_start(lm)
    _check_config(config, architecture)
    for path, module in lm.model.named_modules():
        inner = module.coded if isinstance(module, PackedEmbedding) else module
        if isinstance(inner, Codebook):
            raise UserError(
                f"The levels of '{path}' are a codebook, which no block of a GGUF file holds; quantize with evenly "
                "spaced levels, such as gptq:bits=4,group_size=32,symmetric=true, or export the model to onnx or "
                "openvino."
            )
    read_vocabulary(lm.tokenizer, config.vocab_size)
    fit(architecture, find_shape(lm, architecture))
    return architecture


def _find_architecture(lm: LanguageModel) -> Architecture:
    """The entry of a model.

    Raises:
        UserError: there is none.
    """
    for entry in ARCHITECTURES:
        is_kind = entry.model_type == lm.model.config.model_type and entry.task is lm.task
        # The base model of an encoder-decoder gives vectors as well.
        if is_kind and len(entry.stacks) == len(list(lm.stacks())):
            return entry
    causal, both, encoders = (
        ", ".join(entry.model_type for entry in ARCHITECTURES if entry.task is task)
        for task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ, ModelTask.EMBEDDING)
    )
    raise UserError(
        f"A GGUF file is written of causal models of the kinds {causal}, of encoder-decoders of the kinds {both}, and "
        f"of encoders without a head of the kinds {encoders}; {type(lm.model).__name__} is none; {INSTEAD}."
    )


def _check_config(config: PreTrainedConfig, architecture: Architecture) -> None:
    """Check the values that the graph of llama.cpp takes for granted."""
    activation = next(value for name in _ACTIVATIONS if (value := getattr(config, name, None)) is not None)
    accepted = {**architecture.required, "the activation": architecture.activations}
    values = {**{name: getattr(config, name, None) for name in architecture.required}, "the activation": activation}
    if rope := rope_parameters(config):
        share, is_llama = rope.get("partial_rotary_factor", 1.0), architecture.name in ("llama", "falcon")
        values["partial_rotary_factor"] = share
        accepted["partial_rotary_factor"] = (1.0,) if is_llama else (share,)
    if (scale := getattr(config, "query_pre_attn_scalar", None)) is not None:
        is_largest = config.num_hidden_layers in LARGEST_GEMMA
        values["query_pre_attn_scalar"] = scale
        accepted["query_pre_attn_scalar"] = (
            config.hidden_size // config.num_attention_heads if is_largest else head_size(config),
        )
    if not architecture.grouped:
        values["num_key_value_heads"] = config.num_key_value_heads
        accepted["num_key_value_heads"] = (config.num_attention_heads,)
    for name, value in values.items():
        if value not in accepted[name]:
            raise UserError(
                f"llama.cpp computes {architecture.name} with {name} {' or '.join(map(quote, accepted[name]))}, and "
                f"the model has {quote(value)}; {INSTEAD}."
            )
    if architecture.task is ModelTask.SEQ2SEQ and config.num_decoder_layers > config.num_layers:
        raise UserError(
            "llama.cpp runs no decoder that has more blocks than its encoder, and the model has "
            f"{config.num_decoder_layers} and {config.num_layers}; shorten the decoder, or {INSTEAD}."
        )
    if architecture.windows and sliding_window(config) is not None and window_period(config) is None:
        raise UserError(
            f"llama.cpp computes {architecture.name} with a window in all blocks but every p-th, and layer_types of "
            f"the model is {quote(config.layer_types)}; {INSTEAD}."
        )
    check_rope(config, architecture)


def check_gguf_library() -> None:
    """Check that the package `gguf` is installed, which writes and reads the files.

    Raises:
        UserError: it is not.
    """
    require_package("gguf", "A GGUF file", extra="gguf", min_version="0.17")
