"""Encoder-decoders as graphs of their parts: the encoder, and the decoder with a cache.

The decoder is traced in three forms, with the names that optimum gives to inputs and outputs. ONNX Runtime has one
graph for the first tokens, which computes keys and values of what the encoder read, and one for the following tokens,
which reads them. OpenVINO has one graph, and keeps both caches as states.
"""

from enum import Enum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from laconic.calibrate.passes import random_batch
from laconic.model import Batch, LanguageModel
from laconic.runtime.axes import SOURCE_MASK, STATES_READ
from laconic.runtime.cache_layout import CacheLayout, cache_layouts, cache_tensors, filled_cache
from laconic.runtime.graph import Graph, trace_graph
from laconic.runtime.signature import STATES, TRACED, TRACED_PAST, Signature

TRACED_SOURCE = 5
"""The number of tokens that the encoder of the traced example has read; see `TRACED`."""


class Form(Enum):
    """The forms of the graph of a decoder."""

    FIRST = "reads no cache"
    FOLLOWING = "reads both caches"
    STATEFUL = "reads the cache of its own tokens"


class TracedEncoder(nn.Module):
    """The encoder of an encoder-decoder, for tracing.

    Args:
        model: the encoder-decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Float[Tensor, "batch tokens width"]:
        model: Any = self.model
        ids, mask = inputs
        return model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state


class TracedDecoder(nn.Module):
    """The decoder of an encoder-decoder with its head, for tracing.

    Args:
        model: the encoder-decoder.
        layouts: the caches of the tokens of the decoder and of the encoder.
        form: which of them are inputs.
        width: the width of the states of the encoder.
    """

    def __init__(self, model: nn.Module, layouts: tuple[CacheLayout, ...], form: Form, width: int) -> None:
        super().__init__()
        self.model, self.form, self.width = model, form, width
        self.own, self.cross = layouts
        self.inputs, self.outputs = decoder_names(layouts, form)

    def forward(self, *inputs: Tensor) -> tuple[Float[Tensor, "..."], ...]:
        batch = dict(zip(self.inputs, inputs, strict=True))
        mask = batch[SOURCE_MASK]
        # The states are not read if their keys and values are known, but models ask for their size.
        states = batch.get(STATES_READ, torch.zeros(*mask.shape, self.width))
        own = DynamicCache() if self.form is Form.FIRST else filled_cache(self.own, batch)
        cross = filled_cache(self.cross, batch) if self.form is Form.FOLLOWING else DynamicCache()
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=batch["input_ids"],
            past_key_values=EncoderDecoderCache(own, cross),
            use_cache=True,
        )
        computed = () if self.form is Form.FOLLOWING else cache_tensors(cross)
        return output.logits, *cache_tensors(own), *computed


def decoder_names(layouts: tuple[CacheLayout, ...], form: Form) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the inputs and outputs of a decoder.

    Args:
        layouts: the caches of the tokens of the decoder and of the encoder.
        form: the form of its graph.

    Example:
        >>> own, cross = CacheLayout((), "decoder"), CacheLayout((), "encoder")
        >>> decoder_names((own, cross), Form.FIRST)
        (('input_ids', 'encoder_attention_mask', 'encoder_hidden_states'), ('logits',))
    """
    own, cross = layouts
    states = () if form is Form.FOLLOWING else (STATES_READ,)
    past = () if form is Form.FIRST else own.past
    cross_past, cross_present = (cross.past, ()) if form is Form.FOLLOWING else ((), cross.present)
    return ("input_ids", SOURCE_MASK, *states, *past, *cross_past), ("logits", *own.present, *cross_present)


def build_encoder(lm: LanguageModel, runtime: str) -> Graph:
    """Export the encoder of an encoder-decoder.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`.

    Raises:
        UserError: torch cannot trace this architecture, or the model does not run.
    """
    signature = Signature(("input_ids", "attention_mask"), (STATES,))
    batch = random_batch(lm, *TRACED)
    example = {name: batch[name].clone() for name in signature.inputs}
    return trace_graph(lm, runtime, signature, TracedEncoder, example)


def build_decoder(lm: LanguageModel, runtime: str, form: Form) -> Graph:
    """Export the decoder of an encoder-decoder.

    Args:
        lm: the model; it is not changed.
        runtime: `ONNX` or `OPENVINO`.
        form: which caches are inputs.

    Raises:
        UserError: torch cannot trace this architecture, the model does not run, or it has no cache.
    """
    layouts = cache_layouts(lm)
    own, cross = layouts
    inputs, outputs = decoder_names(layouts, form)
    rows, length = TRACED
    width = _states_width(lm)
    source = torch.ones(rows, TRACED_SOURCE, dtype=torch.long)
    tensors: Batch = {
        "input_ids": random_batch(lm, rows, length)["decoder_input_ids"].clone(),
        SOURCE_MASK: source,
        STATES_READ: torch.zeros(rows, TRACED_SOURCE, width),
        **own.zeros(rows, TRACED_PAST),
        **cross.zeros(rows, TRACED_SOURCE),
    }
    return trace_graph(
        lm,
        runtime,
        Signature(inputs, outputs, own if form is Form.STATEFUL else None),
        lambda model: TracedDecoder(model, layouts, form, width),
        {name: tensors[name] for name in inputs},
    )


def _states_width(lm: LanguageModel) -> int:
    batch = random_batch(lm, 1, 2)
    with torch.no_grad():
        return TracedEncoder(lm.model)(batch["input_ids"], batch["attention_mask"]).shape[-1]
