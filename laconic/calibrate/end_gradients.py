"""The gradients of the losses at the last hidden states of a model, where its backward pass begins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.calibrate.block_pass import BlockwisePass
from laconic.calibrate.losses import LossGradients, divide
from laconic.calibrate.recorder import Recorder
from laconic.calibrate.spill import HiddenStates
from laconic.calibrate.stream import Stream
from laconic.model.halves import SHORT, Halves

Gradients = HiddenStates
"""The gradients at one place: for each batch a tensor (losses, *shape of the hidden states)."""
COUNTS = "predictions"
"""The file of the number of predictions of each batch."""


def differentiate_end(
    run: BlockwisePass, ends: Sequence[HiddenStates], recorder: Recorder, place: str
) -> tuple[Gradients, list[int]]:
    """Run the end of the model on every batch, and differentiate its losses.

    Args:
        run: the pass, whose stream has finished all stacks.
        ends: the hidden states after each stack.
        recorder: updates the statistics of the layers after the blocks.
        place: the name of the gradients.

    Returns:
        The gradients of the losses at the last hidden states, and the number of predictions of each batch.
    """
    gradients, counts = run.stream.new_states(place), run.stream.new_states(COUNTS)
    losses = LossGradients(run.lm, run.data.labels, _divide(run, ends))
    with recorder, torch.enable_grad():
        for number, (batch, generator) in enumerate(zip(run.batches, run.generators, strict=True)):
            recorder.start(batch)
            *others, last = (states[number].detach() for states in ends)
            last.requires_grad_()
            predictions, found = [0], list[Tensor]()
            with run.stream.replaying(number, [*others, last]):
                for count in losses.backward(batch, generator):
                    # Every loss of a batch has the same number of predictions.
                    predictions.append(count)
                    found.append(take_gradient(last))
            gradients.append(torch.stack(found))
            counts.append(torch.tensor(predictions[-1], device="cpu"))
            recorder.count_predictions(predictions[-1])
    counts.complete()
    gradients.complete()
    return gradients, _read_numbers(counts)


def _divide(run: BlockwisePass, ends: Sequence[HiddenStates]) -> Halves | None:
    """Divide the model into body and head, if the logits of a batch are many."""
    if not run.batches:
        return None
    with run.stream.replaying(0, [states[0][:1, :SHORT] for states in ends]):
        return divide(run.lm, run.batches, run.last)


def read_counts(stream: Stream) -> list[int] | None:
    """The number of predictions of each batch, from an earlier run; None if they are not known."""
    counts = stream.open_states(COUNTS)
    return None if counts is None else _read_numbers(counts)


def _read_numbers(states: HiddenStates) -> list[int]:
    return [int(states[number]) for number in range(len(states))]


def take_gradient(leaf: Tensor) -> Tensor:
    """The gradient at a leaf, which is reset; zeros if there is none."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient
