"""The cache of keys and values of a model: its tensors, their names in graphs, and the models that have none.

A graph with a cache reads the keys and values of earlier tokens (`past_key_values.0.key`), and gives those of all
tokens so far (`present.0.key`). ONNX Runtime GenAI, OpenVINO GenAI and optimum expect these names. A tensor is (batch,
heads, tokens, width). Layers with a sliding window keep all tokens, as the mask in the graph hides what is outside.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

from laconic.calibrate.passes import evaluating, random_batch
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, ModelTask
from laconic.model.predictions import check_named, report_run_errors

PAST, PRESENT = "past_key_values", "present"
"""The first word of the names of inputs and outputs."""
SELF, CROSS = "decoder", "encoder"
"""In encoder-decoders, the second word: keys of earlier tokens, or of the tokens that the encoder read."""
PAST_LENGTH, TOTAL_LENGTH = "past_length", "total_length"
"""The names of axes: earlier tokens, and all tokens."""
DIMS = 4
"""The number of axes of keys and values."""
AS_PROMPT = "export it as a graph that reads a whole prompt at every call, with --no-cache (cache=False)"
IN_TORCH = "evaluate it in the runtime eager"
"""Remedies for a model without such a cache."""


class LayerShape(NamedTuple):
    """The sizes of the keys and values of a layer.

    Args:
        heads: the number of heads with keys and values.
        key: the width of a key.
        value: the width of a value.
    """

    heads: int
    key: int
    value: int


@dataclass(frozen=True)
class CacheLayout:
    """The tensors of a cache, by layer.

    Args:
        layers: the sizes of each layer.
        kind: the second word of the names: `SELF`, `CROSS`, or nothing for a causal model.

    Example:
        >>> layout = CacheLayout((LayerShape(2, 8, 8),))
        >>> layout.past, layout.present
        (('past_key_values.0.key', 'past_key_values.0.value'), ('present.0.key', 'present.0.value'))
        >>> layout.zeros(3)["past_key_values.0.key"].shape
        torch.Size([3, 2, 0, 8])
    """

    layers: tuple[LayerShape, ...]
    kind: str = ""

    @property
    def past(self) -> tuple[str, ...]:
        """The names of inputs, keys and values in turn."""
        return self._names(PAST)

    @property
    def present(self) -> tuple[str, ...]:
        """The names of outputs, in the same order."""
        return self._names(PRESENT)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The number of heads and the width of every tensor, in the order of the names."""
        return tuple((layer.heads, width) for layer in self.layers for width in (layer.key, layer.value))

    def zeros(self, rows: int, length: int = 0) -> Batch:
        """Inputs of zeros for a number of rows and of earlier tokens."""
        return {
            name: torch.zeros(rows, heads, length, width)
            for name, (heads, width) in zip(self.past, self.sizes, strict=True)
        }

    def _names(self, first: str) -> tuple[str, ...]:
        kind = f"{self.kind}." if self.kind else ""
        parts = ("key", "value")
        return tuple(f"{first}.{number}.{kind}{part}" for number in range(len(self.layers)) for part in parts)


def writes_text(lm: LanguageModel) -> bool:
    """Whether the model writes text, so that a graph of it may have a cache."""
    return lm.task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ)


def check_cache(lm: LanguageModel, remedy: str = AS_PROMPT) -> None:
    """Check that a model that writes text has a cache of keys and values, as far as its class and configuration say.

    Args:
        lm: the model, with or without weights.
        remedy: what to do if it has none, for the error.

    Raises:
        UserError: it has another kind of state, or none.
    """
    model: Any = lm.model
    reads_cache = PAST in inspect.signature(type(model).forward).parameters
    if not reads_cache or model._is_stateful or not model._supports_default_dynamic_cache():
        raise _no_cache(lm, remedy)


def cache_layouts(lm: LanguageModel) -> tuple[CacheLayout, ...]:
    """The cache of a causal model; for an encoder-decoder, those of the tokens of the decoder and of the encoder.

    They are found by running the model on two tokens.

    Raises:
        UserError: the model keeps something else than keys and values of each token and layer.
    """
    check_cache(lm)
    batch = random_batch(lm, 1, 2)
    with evaluating(lm), torch.no_grad(), report_run_errors(lm, batch["input_ids"]):
        cache = check_named(lm, lm.model(**batch, use_cache=True)).get(PAST)
    if lm.task is ModelTask.CAUSAL:
        return (_layout(lm, cache, ""),)
    if not isinstance(cache, EncoderDecoderCache):
        raise _no_cache(lm)
    return _layout(lm, cache.self_attention_cache, SELF), _layout(lm, cache.cross_attention_cache, CROSS)


def _layout(lm: LanguageModel, cache: object, kind: str) -> CacheLayout:
    if not isinstance(cache, DynamicCache):
        raise _no_cache(lm)
    shapes: list[LayerShape] = []
    for layer in cache.layers:
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.keys.dim() != DIMS:
            raise _no_cache(lm)
        keys, values = _both(layer)
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3]))
    return CacheLayout(tuple(shapes), kind)


def _no_cache(lm: LanguageModel, remedy: str = AS_PROMPT) -> UserError:
    return UserError(
        f"The architecture '{lm.model.config.model_type}' does not keep keys and values of every token and layer, "
        f"which the cache of an exported model consists of; {remedy}."
    )


def filled_cache(layout: CacheLayout, tensors: Mapping[str, Tensor]) -> DynamicCache:
    """A cache of transformers with the keys and values of earlier tokens.

    Args:
        layout: the names of its tensors.
        tensors: the tensors by the names of inputs.
    """
    cache = DynamicCache()
    past = [tensors[name] for name in layout.past]
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer = DynamicLayer()
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        cache.layers.append(layer)
    return cache


def cache_tensors(cache: DynamicCache) -> tuple[Tensor, ...]:
    """The keys and values of a cache, layer by layer."""
    return tuple(tensor for layer in cache.layers for tensor in _both(layer))


def _both(layer: object) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None, "layers ran"
    return layer.keys, layer.values
