"""The gradients of the losses at the last hidden states of a model, where its backward pass begins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.losses import SHORT, LossGradients, divide
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.spill import HiddenStates
from laconic.calibrate.stream import Stream

Gradients = list[HiddenStates]
"""The gradients of each loss at one place, for all batches."""


def differentiate_end(
    run: BlockwisePass, ends: Sequence[HiddenStates], recorder: Recorder
) -> tuple[Gradients, list[int]]:
    """Run the end of the model on every batch, and differentiate its losses.

    Args:
        run: the pass, whose stream has finished all stacks.
        ends: the hidden states after each stack.
        recorder: updates the statistics of the layers after the blocks.

    Returns:
        The gradients of the losses at the last hidden states, and the number of predictions of each batch.
    """
    gradients: Gradients = []
    counts: list[int] = []
    with run.stream.replaying(0, [states[0][:1, :SHORT] for states in ends]):
        losses = LossGradients(run.lm, run.data.labels, divide(run.lm, run.batches, run.last))
    with recorder, torch.enable_grad():
        for number, (batch, generator) in enumerate(zip(run.batches, run.generators, strict=True)):
            recorder.start(batch)
            *others, last = (states[number].detach() for states in ends)
            last.requires_grad_()
            count = 0
            with run.stream.replaying(number, [*others, last]):
                for order, count in enumerate(losses.backward(batch, generator)):  # noqa: B007 (used after the loop)
                    append_gradient(run.stream, gradients, order, take_gradient(last), "end")
            counts.append(count)
            recorder.count_predictions(count)
    return gradients, counts


def append_gradient(stream: Stream, gradients: Gradients, order: int, gradient: Tensor, place: str) -> None:
    """Append the gradient of one batch to those of its loss.

    Args:
        stream: makes the files.
        gradients: the gradients at one place; a loss is added if it is the first batch.
        order: the number of the loss.
        gradient: the gradient.
        place: the name of the place.
    """
    if order == len(gradients):
        gradients.append(stream.new_states(f"gradients.{place}.{order}"))
    gradients[order].append(gradient.detach())


def take_gradient(leaf: Tensor) -> Tensor:
    """The gradient at a leaf, which is reset; zeros if there is none."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient
