"""The names of the inputs and outputs of an exported model, and conversions between batches and its inputs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.calibrate.passes import random_batch
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, ModelTask, global_token_mask
from laconic.model.batch import CONTEXT_MASK, LABELS, POSITIONS
from laconic.model.embedding import Pipeline
from laconic.model.embedding_modules import ATTENTION_MASK, POOLING_MASK, SENTENCE
from laconic.model.tokens import shift_labels
from laconic.runtime.cache_layout import PAST, CacheLayout, cache_layouts, cache_tensors, filled_cache

STATES = "last_hidden_state"
SEGMENTS, GLOBAL, TARGETS = "token_type_ids", "global_attention_mask", "decoder_input_ids"
POSITION_IDS = "position_ids"
TRACED_PAST = 3
"""The number of earlier tokens of the traced example; see `TRACED`."""
TRACED = (2, 7)
"""Batch size and length of the traced example. Neither may be 1, which the tracer would treat as a constant, nor the
number of choices, as the tracer would identify axes of equal length. State spaces compute chunks of tokens and pad the
last one: a length that is no multiple of a chunk has the padding in the graph, which is right for every length."""


@dataclass(frozen=True)
class Signature:
    """Names of inputs and outputs, in order.

    Args:
        inputs: int64 tensors (batch, length), or (batch, choices, length) for multiple choice; `decoder_input_ids` is
            (batch, target length). A sentence encoder that excludes its prompt from pooling has the input
            `pooling_mask`, which is 1 at pooled tokens.
        outputs: `logits` of a model with a head, `start_logits` and `end_logits` for question answering,
            `last_hidden_state` of a plain encoder or on request, and `sentence_embedding` (batch, width) of a sentence
            encoder.
        cache: the cache of a causal model, whose tensors are further inputs and outputs; None without a cache.

    Example:
        >>> ids = torch.ones(1, 3, dtype=torch.long)
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> lm = LanguageModel.of(BertModel(config))
        >>> signature = Signature.of(lm)
        >>> signature.inputs, signature.outputs[0]
        (('input_ids', 'attention_mask', 'token_type_ids'), 'last_hidden_state')
        >>> signature.feeds(lm, {"input_ids": ids})["attention_mask"].tolist()
        [[1, 1, 1]]
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    cache: CacheLayout | None = None

    @classmethod
    def of(cls, lm: LanguageModel, hidden: bool = False, cached: bool = False) -> "Signature":
        """The signature of a model.

        Args:
            lm: the model.
            hidden: whether the last hidden states (of the decoder, if any) are an output.
            cached: whether a causal model reads and gives a cache.

        Raises:
            UserError: a cache is asked for, and the model has none.
        """
        config = lm.model.config
        optional = {
            SEGMENTS: getattr(config, "type_vocab_size", 0) > 1,
            GLOBAL: lm.anatomy.global_attention,
            TARGETS: lm.task is ModelTask.SEQ2SEQ or (lm.task is ModelTask.EMBEDDING and config.is_encoder_decoder),
            POOLING_MASK: (pipeline := sentence_pipeline(lm)) is not None and not pipeline.pools_prompts,
        }
        outputs = lm.task.output_names
        if pipeline is not None:
            outputs = (*outputs, SENTENCE)
        elif hidden and STATES not in outputs:
            outputs = (*outputs, STATES)
        inputs = ("input_ids", ATTENTION_MASK, *(name for name, used in optional.items() if used))
        if not cached:
            return cls(inputs, outputs)
        (cache,) = cache_layouts(lm)
        positions = (POSITION_IDS,) if reads_positions(lm) else ()
        return cls((*inputs, *positions, *cache.past), (*outputs, *cache.present), cache)

    @property
    def predictions(self) -> tuple[str, ...]:
        """The outputs that are no cache."""
        return tuple(name for name in self.outputs if self.cache is None or name not in self.cache.present)

    def feeds(self, lm: LanguageModel, batch: Mapping[str, Tensor]) -> Batch:
        """All inputs of the exported model, in order.

        Args:
            lm: the model in torch.
            batch: inputs of the model. A missing input gets the default that the model itself uses. `labels` are used
                only for the inputs of a decoder; the places of answers are not read.

        Raises:
            UserError: `batch` has an input that the exported model does not take.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name not in (LABELS, CONTEXT_MASK, *POSITIONS)}
        if unexpected := sorted(inputs.keys() - {*self.inputs, SEGMENTS}):
            raise UserError(
                f"An exported model reads {', '.join(self.inputs)}; got '{unexpected[0]}', which it does not take."
            )
        ids = inputs["input_ids"]
        inputs.setdefault(ATTENTION_MASK, torch.ones_like(ids))
        inputs.setdefault(POOLING_MASK, inputs[ATTENTION_MASK])
        inputs.setdefault(SEGMENTS, torch.zeros_like(ids))
        if self.cache is not None:
            inputs = {**self.cache.zeros(len(ids)), **inputs}
        if POSITION_IDS in self.inputs and POSITION_IDS not in inputs:
            # As the models of transformers number them, if they are not told.
            length, total = ids.shape[1], inputs[ATTENTION_MASK].shape[1]
            inputs[POSITION_IDS] = torch.arange(total - length, total).expand(len(ids), -1)
        if GLOBAL in self.inputs:
            inputs.setdefault(GLOBAL, global_token_mask(lm, ids))
        if TARGETS in self.inputs and TARGETS not in inputs:
            inputs[TARGETS] = _decoder_inputs(lm, batch)
        return {name: inputs[name] for name in self.inputs}

    def example(self, lm: LanguageModel) -> Batch:
        """Random inputs for tracing the model."""
        batch = random_batch(lm, *TRACED)
        if self.cache is not None:
            rows, length = batch["input_ids"].shape
            batch[ATTENTION_MASK] = torch.ones(rows, length + TRACED_PAST, dtype=torch.long)
            batch.update(self.cache.zeros(rows, TRACED_PAST))
        inputs = self.feeds(lm, batch)
        # The tracer would identify axes of equal length, and inputs that share memory.
        return {name: (tensor[..., :-2] if name == TARGETS else tensor).clone() for name, tensor in inputs.items()}


class TracedModel(nn.Module):
    """A model with positional tensor inputs and a tuple of outputs, for tracing.

    Args:
        model: the transformer.
        signature: the order of its inputs and outputs.
        task: the task of the model, which determines how hidden states are requested.
        pipeline: the modules of sentence-transformers that follow it, or None.
    """

    def __init__(
        self, model: nn.Module, signature: Signature, task: ModelTask, pipeline: Pipeline | None = None
    ) -> None:
        super().__init__()
        self.model, self.signature, self.pipeline = model, signature, pipeline
        writes = task in (ModelTask.CAUSAL, ModelTask.SEQ2SEQ)
        self.options: dict[str, bool] = {"use_cache": signature.cache is not None} if writes else {}
        if STATES in signature.outputs and STATES not in task.output_names:
            self.options["output_hidden_states"] = True

    def forward(self, *inputs: Tensor) -> tuple[Float[Tensor, "..."], ...]:
        batch = dict(zip(self.signature.inputs, inputs, strict=True))
        cache, options = self.signature.cache, dict[str, Any](self.options)
        unread = {POOLING_MASK, *(() if cache is None else cache.past)}
        if cache is not None:
            options[PAST] = filled_cache(cache, batch)
        output = self.model(**{name: ids for name, ids in batch.items() if name not in unread}, **options)
        tensors = () if cache is None else cache_tensors(output[PAST])
        return *(self._read(output, name, batch) for name in self.signature.predictions), *tensors

    def _read(self, output: Mapping[str, Any], name: str, batch: Batch) -> Tensor:
        if name == SENTENCE:
            assert self.pipeline is not None, "only its signature has this output"
            return self.pipeline(output[STATES], batch[ATTENTION_MASK], batch.get(POOLING_MASK))
        if name in output:
            return output[name]
        # The predictions of an encoder-decoder come from its decoder.
        return (output.get("decoder_hidden_states") or output["hidden_states"])[-1]


def reads_positions(lm: LanguageModel) -> bool:
    """Whether the positions of tokens are an input of a causal model. Some models compute them from the mask."""
    return POSITION_IDS in inspect.signature(type(lm.model).forward).parameters


def sentence_pipeline(lm: LanguageModel) -> Pipeline | None:
    """The modules of sentence-transformers that follow an encoder; None for any other model."""
    return lm.pipeline if lm.task is ModelTask.EMBEDDING else None


def _decoder_inputs(lm: LanguageModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The inputs of the decoder: the shifted labels, or the input tokens for a model without a head."""
    if lm.task is ModelTask.EMBEDDING:
        return batch["input_ids"]
    return shift_labels(lm.model, batch["labels"])
