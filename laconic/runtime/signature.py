"""What goes into an exported model and what comes out: tensors by name, as a server will give and read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laconic.calibrate.passes import random_batch
from laconic.errors import UserError
from laconic.model import Batch, LanguageModel, Task, first_token_mask
from laconic.model.embedding import Pipeline
from laconic.model.embedding_modules import ATTENTION_MASK, POOLING_MASK, SENTENCE

LOGITS, STATES = "logits", "last_hidden_state"
SEGMENTS, GLOBAL, TARGETS = "token_type_ids", "global_attention_mask", "decoder_input_ids"
TRACED = (2, 8)
"""Batch × length of the example that is traced: neither may be 1, which would be taken for a constant."""


@dataclass(frozen=True)
class Signature:
    """inputs: whole numbers (batch, length), in order; that of `decoder_input_ids` is (batch, target length).

    `pooling_mask` is among them where the folder declares that a prompt is not pooled; it is 1 at what is.
    outputs: `logits` of a model with a head, and `last_hidden_state` of a plain encoder, or where it is asked for.
    `sentence_embedding` (batch, width) where the folder declares how the vector of a text is made.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, lm: LanguageModel, hidden: bool = False) -> "Signature":
        """That of `lm`; with its last hidden states too, of the decoder where there are two stacks, if `hidden`."""
        config = lm.model.config
        takes = {
            SEGMENTS: getattr(config, "type_vocab_size", 0) > 1,
            GLOBAL: lm.anatomy.global_attention,
            TARGETS: _reads_targets(lm),
            POOLING_MASK: (vectors := vectors_of(lm)) is not None and not vectors.pools_prompts,
        }
        states = (STATES,) if vectors is None else (STATES, SENTENCE)
        outputs = states if lm.task is Task.EMBEDDING else (LOGITS, STATES) if hidden else (LOGITS,)
        return cls(("input_ids", "attention_mask", *(name for name, taken in takes.items() if taken)), outputs)

    def feeds(self, lm: LanguageModel, given: Mapping[str, Tensor]) -> Batch:
        """The inputs, those that `given` lacks as the model itself would have them.

        Raises:
            UserError: something is given that the exported model does not take.
        """
        inputs = {name: tensor for name, tensor in given.items() if name != "labels"}
        if unexpected := sorted(inputs.keys() - {*self.inputs, SEGMENTS}):
            raise UserError(
                f"An exported model reads {', '.join(self.inputs)}; got '{unexpected[0]}', which it does not take."
            )
        ids = inputs["input_ids"]
        inputs.setdefault(ATTENTION_MASK, torch.ones_like(ids))
        inputs.setdefault(POOLING_MASK, inputs[ATTENTION_MASK])
        inputs.setdefault(SEGMENTS, torch.zeros_like(ids))
        if GLOBAL in self.inputs:
            inputs.setdefault(GLOBAL, first_token_mask(ids))
        if TARGETS in self.inputs and TARGETS not in inputs:
            inputs[TARGETS] = _targets(lm, given)
        return {name: inputs[name] for name in self.inputs}

    def example(self, lm: LanguageModel) -> Batch:
        """Inputs to trace the model with."""
        inputs = self.feeds(lm, random_batch(lm, *TRACED))
        # Lengths that differ and tensors that share no memory, or they would be taken for one and the same.
        return {name: (tensor[:, :-2] if name == TARGETS else tensor).clone() for name, tensor in inputs.items()}


class Traced(nn.Module):
    """Tensors in, tensors out: the model as its signature says, and what is declared behind it."""

    def __init__(self, model: nn.Module, signature: Signature, task: Task, vectors: Pipeline | None = None) -> None:
        super().__init__()
        self.model, self.signature, self.vectors = model, signature, vectors
        self.asked: dict[str, bool] = {"use_cache": False} if task in (Task.CAUSAL, Task.SEQ2SEQ) else {}
        self.states = STATES if task is Task.EMBEDDING else None
        if STATES in signature.outputs and self.states is None:
            self.asked["output_hidden_states"] = True
            self.states = "decoder_hidden_states" if task is Task.SEQ2SEQ else "hidden_states"

    def forward(self, *inputs: Tensor) -> tuple[Float[Tensor, "..."], ...]:
        given = dict(zip(self.signature.inputs, inputs, strict=True))
        output = self.model(**{name: one for name, one in given.items() if name != POOLING_MASK}, **self.asked)
        return tuple(self._read(output, name, given) for name in self.signature.outputs)

    def _read(self, output: Mapping[str, Any], name: str, given: Batch) -> Tensor:
        if name == LOGITS:
            return output[LOGITS]
        if name == SENTENCE:
            assert self.vectors is not None, "the signature has it only where they are declared"
            return self.vectors(output[STATES], given[ATTENTION_MASK], given.get(POOLING_MASK))
        assert self.states is not None
        states: Tensor | Sequence[Tensor] = output[self.states]
        return states if isinstance(states, Tensor) else states[-1]


def vectors_of(lm: LanguageModel) -> Pipeline | None:
    """What is declared to make a vector of each text; None where there is no such declaration."""
    return lm.pipeline if lm.task is Task.EMBEDDING else None


def _targets(lm: LanguageModel, given: Mapping[str, Tensor]) -> Tensor:
    """What the decoder reads, of `given` that does not say so: the labels, shifted; of a model without a head, which
    has none, the text itself."""
    if lm.task is Task.EMBEDDING:
        return given["input_ids"]
    # Every encoder-decoder of transformers shifts its labels so.
    shifted: Any = lm.model.prepare_decoder_input_ids_from_labels  # type: ignore[union-attr]
    return shifted(labels=given["labels"])


def _reads_targets(lm: LanguageModel) -> bool:
    return lm.task is Task.SEQ2SEQ or (lm.task is Task.EMBEDDING and lm.model.config.is_encoder_decoder)
