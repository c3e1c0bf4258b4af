"""Run a causal language model in two halves: its body, up to the last hidden states, and its head.

The logits of a token are as many numbers as the vocabulary has tokens, and its last hidden state is a hundred times
smaller. So the body runs on whole rows, and the head on some of the states at a time.

`Body` is the only thing that runs the blocks. `ModuleBody` runs them batch by batch; of a streamed model, each block is
on loan during its call. A body that runs each block on all batches would read every block once, and the rest would stay
as it is.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from laconic.calibrate.collation import to_device
from laconic.calibrate.passes import evaluating, random_batch
from laconic.evaluate.products import FLOAT32, with_products
from laconic.model import Batch, LanguageModel
from laconic.model.halves import SHORT, Halves, find_halves
from laconic.model.predictions import run_model
from laconic.numerics.moments import check_finite
from laconic.runtime import is_served


class Body(Protocol):
    """The first half of a causal language model."""

    def last_hidden_states(self, batches: Sequence[Batch]) -> Iterator[Float[Tensor, "rows tokens width"]]:
        """Compute the states that the head reads, for each batch in turn.

        Args:
            batches: the inputs, on the CPU.

        Yields:
            The states of a batch, on the device of the model.

        Raises:
            UserError: the model cannot run a batch.
        """
        ...


class Head:
    """The second half of a causal language model: its head, with scaling and capping of logits.

    It is a copy of the model in which a stand-in returns the given states in place of the blocks. It shares the tensors
    of the head with the model, and holds none of the blocks.

    Args:
        halves: the model, and the module whose last hidden states the head reads.

    Attributes:
        lm: the copy, with the tokenizer of the model.
        output_embeddings: the module of the copy that transformers calls so; None if there is none.
    """

    def __init__(self, halves: Halves) -> None:
        lm = halves.lm
        self._stand_in = _StandIn(halves.output)
        memo: dict[int, Any] = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
        memo[id(halves.body)] = self._stand_in
        self.lm = replace(lm, model=copy.deepcopy(lm.model, memo).eval(), original=None)
        # transformers does not find it in the copy, which has no input embeddings.
        embeddings = lm.model.get_output_embeddings()
        names = [name for name, module in lm.model.named_modules() if module is embeddings]
        self.output_embeddings = self.lm.model.get_submodule(names[0]) if names else None

    def on_loan(self) -> AbstractContextManager[None]:
        """A context in which the head of a streamed model has its weights; it does nothing for a model in memory."""
        return self.lm.on_loan("")

    @torch.inference_mode()
    def __call__(self, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
        """The logits of each state."""
        self._stand_in.states = states[None]
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return run_model(self.lm, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"][0]


class _StandIn(nn.Module):
    """Takes the place of the body, and returns the states that it is given."""

    def __init__(self, output: type[ModelOutput]) -> None:
        super().__init__()
        self._output = output
        self.states = torch.empty(1, 0, 0)

    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput:
        return self._output(last_hidden_state=self.states)


@dataclass(frozen=True)
class ModuleBody:
    """The body of a model in torch, which runs one batch after another.

    Args:
        halves: the model, in memory or streamed, and the module whose last hidden states the head reads.
    """

    halves: Halves

    @torch.inference_mode()
    def last_hidden_states(self, batches: Sequence[Batch]) -> Iterator[Float[Tensor, "rows tokens width"]]:
        """As `Body.last_hidden_states`; each batch runs through all blocks before the next."""
        lm = self.halves.lm
        with evaluating(lm), lm.loaned_on_call():
            for batch in batches:
                yield self.halves.run_body(to_device(batch, lm.device))


@dataclass(frozen=True)
class WholeBody:
    """A model that cannot be divided: its states are the logits of all positions, which its head returns as they are.

    Args:
        lm: the model.
    """

    lm: LanguageModel

    @torch.inference_mode()
    def last_hidden_states(self, batches: Sequence[Batch]) -> Iterator[Float[Tensor, "rows tokens vocabulary"]]:
        """The logits of each batch."""
        with evaluating(self.lm), self.lm.loaned_on_call():
            for batch in batches:
                yield run_model(self.lm, to_device(batch, self.lm.device))["logits"]


@dataclass(frozen=True)
class TwoHalves:
    """A causal language model as body and head.

    Args:
        source: the name of the model, for errors.
        body: the first half.
        head: the second half; None if the states of the body are logits already, as the model cannot be divided.
        dtype: the dtype of the matrix products in the body.
    """

    source: str
    body: Body
    head: Head | None
    dtype: str = FLOAT32

    def on_loan(self) -> AbstractContextManager[None]:
        """A context in which `logits` can be computed."""
        return nullcontext() if self.head is None else self.head.on_loan()

    def logits(self, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
        """The logits of some states.

        Raises:
            UserError: a logit is NaN or infinite.
        """
        logits = states if self.head is None else self.head(states)
        # NaN and infinite values reach the extremes, and take less time to find there.
        check_finite(
            torch.stack((logits.amin(-1), logits.amax(-1))),
            f"The model '{self.source}' predicts NaN or infinite values; it is broken or out of its range.",
        )
        return logits


@torch.inference_mode()
def divide(lm: LanguageModel, dtype: str = FLOAT32) -> TwoHalves:
    """Divide a causal language model into body and head.

    Both halves run on a short row and are compared with the whole model. A model cannot be divided if it runs in
    another runtime, or does more between the blocks and the logits than `Head` knows.

    Args:
        lm: the model, with weights.
        dtype: the dtype of the matrix products in the body, as for `with_products`.

    Raises:
        UserError: the model cannot run, or the processor has no products in `dtype`.
    """
    if is_served(lm):
        return TwoHalves(lm.source, WholeBody(lm), None)
    lm = with_products(lm, dtype)
    with evaluating(lm):
        halves = find_halves(lm, random_batch(lm, 1, SHORT), _run_head)
    if halves is None:
        return TwoHalves(lm.source, WholeBody(lm), None)
    return TwoHalves(lm.source, ModuleBody(halves), Head(halves), dtype)


def _run_head(halves: Halves, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
    head = Head(halves)
    with head.on_loan():
        return head(states)
