"""The gradients of the losses at the last hidden states of a model, where its backward pass begins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.collect_stats import fisher_losses
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
    with run.lm.loaned_on_call(keep=True), recorder, torch.enable_grad():
        for number, (batch, generator) in enumerate(zip(run.batches, run.generators, strict=True)):
            recorder.start(batch)
            *others, last = (states[number].detach() for states in ends)
            last.requires_grad_()
            predictions = run.stream.run_end(number, [*others, last])
            losses = list(fisher_losses(predictions, run.data.labels, generator))
            for order, loss in enumerate(losses):
                loss.backward(retain_graph=order + 1 < len(losses))
                append_gradient(run.stream, gradients, order, take_gradient(last), "end")
            counts.append(len(predictions.values))
            recorder.count_predictions(counts[-1])
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
