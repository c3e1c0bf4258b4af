"""Score the tokens of windows with a causal language model, alone or beside a reference, in one pass of each.

The body of a model runs once over all windows. At the positions that are scored, the head gives logits for as many
states at a time as fit into `COMPARED_LOGITS` numbers. With a reference, the same logits give the KL divergence from
it, and the logits of the reference give its own scores.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laconic.evaluate.halves import Body, Head, TwoHalves
from laconic.evaluate.prediction import COMPARED_LOGITS
from laconic.evaluate.products import BFLOAT16
from laconic.evaluate.shared_head import find_shared_head
from laconic.evaluate.windows import Windows, targets_of
from laconic.model import Batch, LanguageModel
from laconic.model.tokens import vocabulary_size
from laconic.numerics.softmax_kl import compare_softmax, negative_log_likelihood
from laconic.progress import Track
from laconic.system import keeping_large_blocks

ReferenceLogits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The logits of a reference, from the logits and last hidden states of the model, and the states of the reference."""


class States(Protocol):
    """The states of a reference that predict the scored tokens, and its head."""

    @property
    def head(self) -> Head:
        """The head."""
        ...

    def read(self) -> Iterator[Float[Tensor, "n width"]]:
        """The states of each batch of windows in turn."""
        ...

    def on_loan(self) -> AbstractContextManager[None]:
        """A context in which `logits` can be computed."""
        ...

    def logits(self, states: Float[Tensor, "n width"]) -> Float[Tensor, "n vocabulary"]:
        """The logits of the reference."""
        ...


@dataclass(frozen=True)
class WindowScores:
    """Sums over the scored tokens of each document, in float64 on the CPU.

    Args:
        tokens: number of tokens.
        nats: −log p of the tokens by the model.
        reference_nats: the same by the reference; 0 without one.
        kl: KL(reference ‖ model) in nats; 0 without a reference.
        same: number of tokens for which both have the same likeliest token; 0 without a reference.
        states: sum of the states of the model that predict the tokens.
        reference_states: the same of the reference; of width 0 without one.
    """

    tokens: Float[Tensor, " documents"]
    nats: Float[Tensor, " documents"]
    reference_nats: Float[Tensor, " documents"]
    kl: Float[Tensor, " documents"]
    same: Float[Tensor, " documents"]
    states: Float[Tensor, "documents width"]
    reference_states: Float[Tensor, "documents reference_width"]


@torch.inference_mode()
def score_windows(
    lm: LanguageModel, halves: TwoHalves, windows: Windows, track: Track, label: str, reference: States | None = None
) -> WindowScores:
    """Score every token of the windows that has a label.

    Args:
        lm: the model.
        halves: the two halves of the model.
        windows: the windows of some documents.
        track: shows progress.
        label: a description of the work, for progress.
        reference: the states of another model in the same windows.

    Raises:
        UserError: a logit of a model is NaN or infinite.
    """
    batches = windows.batches(lm)
    others = repeat(None) if reference is None else reference.read()
    rows = max(1, COMPARED_LOGITS // vocabulary_size(lm.model))
    totals: list[Tensor] = []
    with halves.on_loan(), _reference_logits(halves, reference) as beside, keeping_large_blocks():
        for number, states in enumerate(scored_states(halves.body, windows, batches, track, label)):
            _, targets, documents = targets_of(batches[number], windows.documents_of(number))
            other = next(others)
            for part in torch.arange(len(states)).split(rows):
                logits = halves.logits(states[part])
                theirs = None if beside is None or other is None else beside(logits, states[part], other[part])
                values = [_columns(logits, targets[part].to(logits.device), theirs), states[part]]
                values.append(states[part, :0] if other is None else other[part])
                sums = [_sum_by_document(value, documents[part], windows.count) for value in values]
                totals = [total + new for total, new in zip(totals, sums, strict=True)] if totals else sums
    table, own, theirs = totals
    tokens, nats, reference_nats, kl, same = table.unbind(1)
    return WindowScores(tokens, nats, reference_nats, kl, same, own, theirs)


@contextmanager
def _reference_logits(halves: TwoHalves, reference: States | None) -> Iterator[ReferenceLogits | None]:
    """Within the context, the logits of a reference can be computed.

    Yields:
        The function that computes them; None without a reference. With products in bfloat16 they come from the logits
        of the model where both have the same head, and the weights of the reference are not needed.
    """
    if reference is None:
        yield None
        return
    shared = None
    if halves.head is not None and halves.dtype == BFLOAT16:
        with reference.on_loan():
            shared = find_shared_head(halves.head, reference.head)
    if shared is not None:
        yield shared.reference_logits
        return
    with reference.on_loan():
        yield lambda _, __, states: reference.logits(states)


@torch.inference_mode()
def scored_states(
    body: Body, windows: Windows, batches: Sequence[Batch], track: Track, label: str
) -> Iterator[Float[Tensor, "n width"]]:
    """Run a body, and yield the states of each batch at the positions that are scored.

    Args:
        body: the first half of a model.
        windows: the windows of some documents.
        batches: the windows as batches.
        track: shows progress.
        label: a description of the work, for progress.
    """
    tokens = [float(batch["input_ids"].numel()) for batch in batches]
    hidden = body.last_hidden_states(batches)
    for number, (batch, states) in enumerate(zip(track(batches, label, tokens), hidden, strict=True)):
        positions, _, _ = targets_of(batch, windows.documents_of(number))
        yield states[positions.to(states.device)]


def _columns(
    logits: Float[Tensor, "n vocabulary"], targets: Int[Tensor, " n"], reference: Float[Tensor, "n vocabulary"] | None
) -> Float[Tensor, "n 5"]:
    """For each prediction: 1, the nats of the model and of the reference, the divergence, and whether both agree."""
    if reference is None:
        nats = negative_log_likelihood(logits, targets)
        return torch.stack([torch.ones_like(nats), nats, *[torch.zeros_like(nats)] * 3], dim=1)
    kl, reference_nats, nats, same = compare_softmax(reference, logits, targets)
    return torch.stack([torch.ones_like(nats), nats, reference_nats, kl, same.double()], dim=1)


def _sum_by_document(
    values: Float[Tensor, "n columns"], documents: Int[Tensor, " n"], count: int
) -> Float[Tensor, "documents columns"]:
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64)
    return sums.index_add_(0, documents, values.double().cpu())
