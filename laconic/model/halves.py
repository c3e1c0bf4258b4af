"""Run a model that predicts tokens in two halves: its body, up to the last hidden states, and its head.

The logits of a token are as many numbers as the vocabulary has tokens, and its last hidden state is a hundred times
smaller. So the body runs on whole rows, and the head on some of the states at a time.

A stand-in takes the place of the body while the head runs. So whatever the class does to the logits (a scale, a cap)
is done. `find_halves` compares both halves with the whole model on a short row.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from laconic.model.batch import LABELS, Batch
from laconic.model.forward import replacing_forward
from laconic.model.lm import LanguageModel
from laconic.model.predictions import ModelRunError, run_model

CLOSE = 1e-4
"""The largest accepted difference of a logit, relative to the largest logit."""
SHORT = 8
"""Number of tokens of the row on which both halves are compared with the whole model."""


class _BodyEnded(Exception):  # noqa: N818 - it ends a run, and is no error
    """Ends a run after the body."""


@dataclass(frozen=True)
class Halves:
    """A model whose last hidden states are the output of one module, its body.

    Args:
        lm: the model, in memory or streamed. A streamed one runs within `LanguageModel.loaned_on_call`.
        body: the module.
        output: the class of its output.
    """

    lm: LanguageModel
    body: nn.Module
    output: type[ModelOutput]

    def run_body(self, batch: Batch) -> Float[Tensor, "rows tokens width"]:
        """The last hidden states of a batch.

        Args:
            batch: the batch, on the device of the model.

        Raises:
            UserError: the model cannot run the batch.
        """
        output = _run_body(self.lm, self.body, batch)
        assert output is not None, "`find_halves` has run the model in two halves"
        return output["last_hidden_state"]

    def run_head(self, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
        """The logits of some last hidden states."""
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), LABELS: ids}
        with ExitStack() as stand_ins:
            output = self.output(last_hidden_state=states[None])
            stand_ins.enter_context(replacing_forward(self.body, lambda *args, **kwargs: output))
            if self.lm.model.config.is_encoder_decoder:
                encoder = BaseModelOutput(last_hidden_state=states[None])
                stand_ins.enter_context(replacing_forward(self.lm.model.get_encoder(), lambda *args, **kwargs: encoder))
            return run_model(self.lm, batch)["logits"][0]


RunHead = Callable[[Halves, Float[Tensor, "n width"]], Float[Tensor, "n vocabulary"]]
"""Computes the logits of some last hidden states."""


@torch.no_grad()
def find_halves(lm: LanguageModel, batch: Batch, run_head: RunHead | None = None) -> Halves | None:
    """Find the body and the head of a model that predicts tokens.

    Args:
        lm: the model, in memory or streamed.
        batch: a short row, without padding, on the device of the model.
        run_head: runs the head that will be used; by default `Halves.run_head`.

    Returns:
        None if the model does more between the blocks and the logits than a head can.

    Raises:
        UserError: the model cannot run.
    """
    with lm.loaned_on_call():
        whole = run_model(lm, batch)["logits"][0]
    for body in _body_candidates(lm):
        with suppress(ModelRunError):
            with lm.loaned_on_call():
                output = _run_body(lm, body, batch)
            if output is None or "last_hidden_state" not in output:
                continue
            halves = Halves(lm, body, type(output))
            logits = (run_head or _run_head_on_loan)(halves, output["last_hidden_state"][0])
            if logits.shape == whole.shape and (logits - whole).abs().max() <= CLOSE * whole.abs().max():
                return halves
    return None


def _run_head_on_loan(halves: Halves, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
    with halves.lm.loaned_on_call():
        return halves.run_head(states)


def _body_candidates(lm: LanguageModel) -> list[nn.Module]:
    """The modules that may return the last hidden states which the head reads."""
    base: Any = lm.model.base_model
    # The head of OPT and T5 reads the decoder in the base model.
    return [module for module in dict.fromkeys((base, base.get_decoder())) if module is not lm.model]


def _run_body(lm: LanguageModel, body: nn.Module, batch: Batch) -> ModelOutput | None:
    """Run a model up to the end of a module.

    Args:
        lm: the model.
        body: the module.
        batch: a batch on the device of the model.

    Returns:
        The output of the module; None if the model runs without calling it, or if it returns no `ModelOutput`.

    Raises:
        UserError: the model cannot run the batch.
    """
    outputs: list[Any] = []

    def end_run(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)
        raise _BodyEnded

    handle = body.register_forward_hook(end_run)
    try:
        with suppress(_BodyEnded):
            run_model(lm, batch)
    finally:
        handle.remove()
    return outputs[0] if outputs and isinstance(outputs[0], ModelOutput) else None
